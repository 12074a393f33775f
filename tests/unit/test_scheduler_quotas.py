"""The quota of running jobs where several schedulers claim from one queue, on SQLite and on a real PostgreSQL."""

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
from service.places import Places
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
    jobs: list[Job]
    schedulers: list[Scheduler]

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
        jobs = [await tx.insert_job(queued(number, "proj_1"), "f", []) for number in range(12)]
        await tx.insert_job(queued(12, "proj_2"), "f", [])
    runtime, settings = FakeRuntime(total=CLUSTER), Settings(data_dir=tmp_path)
    schedulers = [Scheduler(store, runtime, settings, Metrics(), lambda owner: cast(Driver, Idle())) for store in stores]
    yield Queue(stores[0], jobs, schedulers)
    for task in [task for scheduler in schedulers for task in scheduler._tasks.values()]:
        task.cancel()
    for store in stores:
        await store.close()


async def test_schedulers_start_no_more_than_the_quota_and_say_why(queue: Queue) -> None:
    for _ in range(2):
        await asyncio.gather(*(scheduler._claim() for scheduler in queue.schedulers))
    assert [await queue.running("proj_1"), await queue.running("proj_2")] == [QUOTA, 1]
    async with queue.store.begin() as tx:
        assert {job.reason for job in await tx.jobs_in([JobStatus.QUEUED])} == {"the project runs 3 of 3 jobs"}
        job = next(job for job in await tx.jobs_in(ON_RAY) if job.project_id == "proj_1")
        await tx.apply(job, replace(job, status=JobStatus.SUCCEEDED))
    await queue.schedulers[0]._claim()
    assert await queue.running() == QUOTA


async def test_the_last_places_are_given_away_once_though_each_scheduler_has_another_job_in_hand(queue: Queue) -> None:
    quotas = {"proj_1": Quotas(running_jobs=QUOTA)}

    async def claim(number: int) -> str:
        reasons: dict[str, str] = {}
        scheduler, job = queue.schedulers[number % 4], queue.jobs[number]
        await scheduler._claimed(job, 0.0, CLUSTER, [], Places(Quotas(), quotas, []), reasons)
        return reasons[job.id]

    reasons = await asyncio.gather(*(claim(number) for number in range(12)))
    assert await queue.running() == QUOTA
    assert sorted(reasons) == [""] * QUOTA + ["the project runs 3 of 3 jobs"] * 9
