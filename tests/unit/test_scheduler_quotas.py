"""Quotas, limits and devices where several schedulers claim from one queue, on SQLite and on a real PostgreSQL."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import pytest

from service.driver import Driver
from service.jobs import ON_RAY, Job, JobSpec, JobStatus, MethodSpec
from service.metrics import Metrics
from service.quotas import Quotas
from service.runtime import Capacity
from service.scheduler import Scheduler
from service.settings import Settings
from service.store import Store
from tests.fake_runtime import FakeRuntime
from trainers.spec import BaseModelRef, ResourceSpec, TunesmithSpec

CLUSTER = Capacity(cpus=100, gpus=0, nodes=1)
QUOTA = 3


class Idle:
    """A driver that leaves jobs where they are."""

    async def drive(self, job_id: str) -> None:
        await asyncio.sleep(60)

    def wake(self) -> None:
        pass


def queued(number: int, project_id: str) -> Job:
    ours = TunesmithSpec(resources=ResourceSpec(cpus_per_worker=1))
    spec = JobSpec(model="m", training_file="f", seed=1, method=MethodSpec(type="supervised"), tunesmith=ours)
    base = BaseModelRef(id="m", revision="1", prefix="p", licence="mit")
    return Job(f"ftjob-{number}", project_id, "org-1", spec, JobStatus.QUEUED, 1, 0.0, base)


@dataclass
class Queue:
    """Twelve jobs of a project that may run three, one of a project that may run any, and schedulers on connections of their own."""

    store: Store
    schedulers: list[Scheduler]
    runtime: FakeRuntime

    async def running(self, project_id: str = "proj_1") -> int:
        async with self.store.read() as tx:
            return await tx.count_jobs(project_id, ON_RAY)


@pytest.fixture(params=["sqlite", "postgresql"])
async def queue(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Queue]:
    url = f"sqlite+aiosqlite:///{tmp_path}/jobs.db" if request.param == "sqlite" else request.getfixturevalue("postgres_url")
    stores = [Store(url) for _ in range(4)]
    await stores[0].migrate()
    async with stores[0].begin() as tx:
        await tx.insert_project("proj_1", "org-1", "limited", Quotas(running_jobs=QUOTA))
        await tx.insert_project("proj_2", "org-1", "free")
        for number in range(13):
            await tx.insert_job(queued(number, "proj_1" if number < 12 else "proj_2"), "f", [])
    runtime, settings = FakeRuntime(total=CLUSTER), Settings(data_dir=tmp_path)
    schedulers = [Scheduler(store, runtime, settings, Metrics(), lambda owner: cast(Driver, Idle())) for store in stores]
    yield Queue(stores[0], schedulers, runtime)
    for task in [task for scheduler in schedulers for task in scheduler._tasks.values()]:
        task.cancel()
    for store in stores:
        await store.close()


async def reasons(queue: Queue) -> set[str]:
    async with queue.store.read() as tx:
        return {job.reason for job in await tx.jobs_in([JobStatus.QUEUED])}


async def test_schedulers_start_no_more_than_the_quota_and_say_why(queue: Queue) -> None:
    for _ in range(2):
        await asyncio.gather(*(scheduler._look() for scheduler in queue.schedulers))
    assert [await queue.running("proj_1"), await queue.running("proj_2")] == [QUOTA, 1]
    assert await reasons(queue) == {"the project runs 3 of 3 jobs"}
    async with queue.store.begin() as tx:
        job = next(job for job in await tx.jobs_in(ON_RAY) if job.project_id == "proj_1")
        await tx.apply(job, replace(job, status=JobStatus.SUCCEEDED))
    await asyncio.gather(*(scheduler._look() for scheduler in queue.schedulers))
    assert await queue.running() == QUOTA


async def test_the_services_limit_holds_for_all_schedulers_together(queue: Queue) -> None:
    for scheduler in queue.schedulers:
        scheduler._settings.__dict__["max_running_jobs"] = 2
    await asyncio.gather(*(scheduler._look() for scheduler in queue.schedulers))
    assert await queue.running("proj_1") + await queue.running("proj_2") == 2
    assert await reasons(queue) == {"the service runs 2 of 2 jobs"}


async def test_devices_are_given_away_once(queue: Queue) -> None:
    queue.runtime.total = Capacity(cpus=2, gpus=0, nodes=1)
    await asyncio.gather(*(scheduler._look() for scheduler in queue.schedulers))
    assert [await queue.running("proj_1"), await queue.running("proj_2")] == [1, 1], "the projects take turns"
    assert await reasons(queue) == {"waiting for 1 processor core, 0 free"}
