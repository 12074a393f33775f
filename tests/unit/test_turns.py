"""What the queue's rules do to jobs: priorities, preemption to a checkpoint, limits; on a real store, with runs that only report."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from protos.tunesmith.v1 import runs_pb2 as pb
from service.jobs import Job, JobSpec, JobStatus, MethodSpec, Notice
from service.runtime import Capacity, RunState
from service.settings import Settings
from service.store import tables as t
from tests.unit.test_scheduler import BASE, OWNER, World, saved, stop, world_of
from trainers.spec import LimitSpec, ResourceSpec, TunesmithSpec

ONE = Capacity(cpus=1, gpus=0, nodes=1)
STARTED = pb.RunReport(seq=1, started=pb.Started(world_size=1, total_steps=4))


@pytest.fixture(params=["sqlite", "postgresql"])
async def world(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[World]:
    """One scheduler on a cluster with room for one job."""
    url = {} if request.param == "sqlite" else {"database": request.getfixturevalue("postgres_url")}
    settings = Settings(
        data_dir=tmp_path,
        heartbeat=timedelta(seconds=0.2),
        retry_backoff=timedelta(seconds=0.05),
        cancel_grace=timedelta(seconds=0.1),
        pause_grace=timedelta(seconds=60),
        **url,
    )
    async with world_of(settings) as made:
        made.runtime.total = ONE
        task = asyncio.create_task(made.scheduler().run())
        yield made
        await stop(task)


async def post(world: World, name: str, *, project: str = "proj_1", priority: int = 0, workers: int = 1, **limits: Any) -> str:
    ours = TunesmithSpec(resources=ResourceSpec(workers=workers, cpus_per_worker=1), priority=priority, limits=LimitSpec(**limits))
    spec = JobSpec(model="m", training_file="file-1", seed=1, method=MethodSpec(type="supervised"), tunesmith=ours)
    job = Job(f"ftjob-{name}", project, "org-1", spec, JobStatus.VALIDATING, 1, 0.0, BASE)
    async with world.store.begin() as tx:
        await tx.insert_job(job, "f", [Notice("Created")])
    world.wake()
    return job.id


async def running(world: World, name: str, **given: Any) -> Job:
    job = await world.until_is(await post(world, name, **given), JobStatus.STARTING)
    await world.until(job.id, lambda job: f"{job.id}-{job.epoch}" in world.runtime.runs)
    await world.tell(job, STARTED)
    return await world.job(job.id)


async def asked_to_leave(world: World, job: Job, seq: int = 2, step: int = 3) -> None:
    """The run hears that it is to leave, saves and goes."""
    for _ in range(400):
        if (await world.tell(job)).directive == pb.DIRECTIVE_CHECKPOINT_AND_STOP:
            break
        await asyncio.sleep(0.02)
    else:
        raise AssertionError("the run was not asked to leave")
    await world.tell(job, saved(job, seq, step))
    world.runtime.ends(f"{job.id}-{job.epoch}", RunState.FAILED, "exit status 3")
    world.wake()


async def test_a_job_of_higher_priority_preempts_to_a_checkpoint_and_the_other_goes_on_after_it(world: World) -> None:
    low = await running(world, "low")
    high_id = await post(world, "high", project="proj_2", priority=5)
    assert (await world.until(high_id, lambda job: "room" in job.reason)).reason == (
        "waiting for 1 processor core, 0 free: 1 job of lower priority makes room"
    )
    assert (await world.job(low.id)).reason == "making room for a job of higher priority"
    assert world.runtime.runs["ftjob-low-1"].alive, "it leaves by itself"
    await asked_to_leave(world, low)
    high = await world.until_is(high_id, JobStatus.STARTING)
    waiting = await world.job(low.id)
    assert (waiting.status, waiting.infra_failures, waiting.queued_at) == (JobStatus.QUEUED, 0, low.queued_at)
    await world.until(high_id, lambda _: "ftjob-high-1" in world.runtime.runs)
    await world.tell(high, STARTED)
    await world.finish(high, seq=2)
    again = await world.until_is(low.id, JobStatus.STARTING, epoch=2)
    await world.until(low.id, lambda _: "ftjob-low-2" in world.runtime.runs)
    assert world.runtime.launched[-1].resume_from == [], "no checkpoint of this fake run lies in storage"
    await world.tell(again, pb.RunReport(seq=1, started=pb.Started(total_steps=4, resumed_step=3)))
    await world.finish(again, seq=2)
    await world.until_is(low.id, JobStatus.SUCCEEDED)
    async with world.store.read() as tx:
        [told] = await tx.detailed([await tx.any_job(low.id)])
    assert [(run.outcome, run.code, run.last_good_step) for run in told.attempts] == [
        ("stopped", "outranked", 3),
        ("succeeded", None, None),
    ]
    assert "Run 1 has made room for a job of higher priority. The job will go on from step 3." in await world.events(low.id)


async def test_a_run_that_does_not_leave_in_time_is_killed(world: World) -> None:
    world.settings.__dict__["pause_grace"] = timedelta(seconds=0.2)
    low = await running(world, "low")
    await post(world, "high", priority=5)
    await world.until_is("ftjob-high", JobStatus.STARTING)
    assert (await world.job(low.id)).status is JobStatus.QUEUED
    assert "ftjob-low-1" in world.runtime.stopped


async def test_a_job_makes_room_so_many_times_and_no_more(world: World) -> None:
    world.settings.__dict__["max_outranked"] = 1
    low = await running(world, "low")
    high = await post(world, "high", priority=5)
    await asked_to_leave(world, low)
    job = await world.until_is(high, JobStatus.STARTING)
    await world.until(high, lambda _: "ftjob-high-1" in world.runtime.runs)
    await world.tell(job, STARTED)
    await world.finish(job, seq=2)
    again = await world.until_is(low.id, JobStatus.STARTING, epoch=2)
    await world.until(low.id, lambda _: "ftjob-low-2" in world.runtime.runs)
    await world.tell(again, STARTED)
    await post(world, "higher", priority=9)
    waiting = await world.until("ftjob-higher", lambda job: bool(job.reason) and job.status is JobStatus.QUEUED)
    assert waiting.reason == "waiting for 1 processor core, 0 free"
    assert (await world.tell(again)).directive == pb.DIRECTIVE_CONTINUE


async def test_a_run_that_finishes_while_it_makes_room_has_finished(world: World) -> None:
    low = await running(world, "low")
    await post(world, "high", priority=5)
    await world.until(low.id, lambda job: job.reason.startswith("making room"))
    await world.finish(low, seq=2)
    assert (await world.until_is(low.id, JobStatus.SUCCEEDED)).epoch == 1
    await world.until_is("ftjob-high", JobStatus.STARTING)


async def test_pausing_a_job_that_makes_room_pauses_it(world: World) -> None:
    low = await running(world, "low")
    await post(world, "high", priority=5)
    await world.until(low.id, lambda job: job.reason.startswith("making room"))
    await world.app.pause_job(OWNER, low.id)
    world.runtime.ends("ftjob-low-1", RunState.FAILED, "exit status 3")
    await world.until_is(low.id, JobStatus.PAUSED)
    await world.until_is("ftjob-high", JobStatus.STARTING)


async def age(world: World, job_id: str, **columns: float) -> None:
    """Let so many seconds have gone by for these times of the job, or of its newest run."""
    async with world.store.begin() as tx:
        for name, seconds in columns.items():
            table, mine = (t.runs, t.runs.c.job_id == job_id) if name == "run_created_at" else (t.jobs, t.jobs.c.id == job_id)
            column = name.removeprefix("run_")
            await tx.connection.execute(sa.update(table).where(mine).values({column: table.c[column] - seconds}))
    world.wake()


async def test_a_job_that_has_held_its_workers_too_long_leaves_with_a_checkpoint_and_fails(world: World) -> None:
    job = await running(world, "long", max_duration=3600)
    assert (await world.tell(job)).directive == pb.DIRECTIVE_CONTINUE
    await age(world, job.id, run_created_at=3600)
    await asked_to_leave(world, job)
    failed = await world.until_is(job.id, JobStatus.FAILED)
    assert failed.error is not None
    assert (failed.error.code, failed.error.cause, failed.error.last_good_step) == ("max_duration_exceeded", "config", 3)
    assert failed.error.message == "its runs have held their workers for the 3600 s that it was given"
    assert failed.error.hint == "The checkpoint at step 3 is kept. Give a new job a larger max_duration, more workers or fewer epochs."
    async with world.store.read() as tx:
        assert [checkpoint.step for checkpoint in await tx.checkpoints(job.id)] == [3]


async def test_earlier_runs_count_in_the_duration(world: World) -> None:
    job = await running(world, "long", max_duration=3600)
    await age(world, job.id, run_created_at=3000)
    world.runtime.ends(f"{job.id}-1", RunState.FAILED, "node lost")
    again = await world.until_is(job.id, JobStatus.STARTING, epoch=2)
    await world.until(job.id, lambda _: "ftjob-long-2" in world.runtime.runs)
    await world.tell(again, STARTED)
    async with world.store.begin() as tx:
        run = t.runs.c
        await tx.connection.execute(sa.update(t.runs).where(run.job_id == job.id, run.epoch == 2).values(created_at=run.created_at - 700))
    await asked_to_leave(world, again)
    assert (await world.until_is(job.id, JobStatus.FAILED)).epoch == 2


async def test_a_deadline_ends_a_job_in_the_queue_and_one_that_runs(world: World) -> None:
    runs = await running(world, "runs", deadline=3600)
    waits = await world.until_is(await post(world, "waits", deadline=3600), JobStatus.QUEUED)
    for job in (runs, waits):
        await age(world, job.id, created_at=3600, deadline_at=3600)
    await asked_to_leave(world, runs, step=2)
    for job, step in ((runs, 2), (waits, None)):
        failed = await world.until_is(job.id, JobStatus.FAILED)
        assert failed.error is not None
        assert (failed.error.code, failed.error.last_good_step) == ("deadline_exceeded", step)
        assert failed.finished_at is not None


async def test_who_has_waited_too_long_is_next_and_is_not_preempted(world: World) -> None:
    world.settings.__dict__["max_outranked"] = 0
    first = await running(world, "first")
    for name, priority in (("old", 0), ("high", 5)):
        await world.until_is(await post(world, name, priority=priority), JobStatus.QUEUED)
    await age(world, "ftjob-old", queued_at=2 * 86400)
    await world.finish(first, seq=2)
    old = await world.until_is("ftjob-old", JobStatus.STARTING)
    async with world.store.read() as tx:
        assert (await tx.holdings())[old.id].out_of_turn
    world.settings.__dict__["max_outranked"] = 3
    await world.until("ftjob-high", lambda job: bool(job.reason))
    await asyncio.sleep(0.3)
    assert (await world.job("ftjob-high")).reason == "waiting for 1 processor core, 0 free"
    assert (await world.job(old.id)).status is JobStatus.STARTING


async def test_a_shrunken_job_leaves_and_goes_on_with_all_its_workers_once_there_is_room(world: World) -> None:
    ours = TunesmithSpec(resources=ResourceSpec(workers=2, min_workers=1, cpus_per_worker=1))
    spec = JobSpec(model="m", training_file="file-1", seed=1, method=MethodSpec(type="supervised"), tunesmith=ours)
    async with world.store.begin() as tx:
        await tx.insert_job(Job("ftjob-e", "proj_1", "org-1", spec, JobStatus.VALIDATING, 1, 0.0, BASE), "f", [Notice("Created")])
    world.wake()
    job = await world.until_is("ftjob-e", JobStatus.STARTING)
    await world.until(job.id, lambda _: "ftjob-e-1" in world.runtime.runs)
    await world.tell(job, STARTED)
    await age(world, job.id, run_created_at=700)
    await asyncio.sleep(0.3)
    assert (await world.tell(job)).directive == pb.DIRECTIVE_CONTINUE, "there is no room"
    world.runtime.total = Capacity(cpus=2, gpus=0, nodes=1)
    await asked_to_leave(world, job)
    again = await world.until_is(job.id, JobStatus.STARTING, epoch=2)
    assert (again.progress.workers, again.infra_failures) == (None, 0)
    told = await world.events(job.id)
    assert "There is room for more workers: waiting for the run to write a checkpoint and leave" in told
    assert "Run 1 has left to go on with more workers. The job will go on from step 3." in told
