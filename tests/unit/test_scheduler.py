"""The scheduler and its driver on a real SQLite store and real local storage; only Ray is not there."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

import pytest

from protos.tunesmith.v1 import runs_pb2 as pb
from service.admission import Admission
from service.app import App
from service.catalogue import Catalogue
from service.driver import Driver
from service.errors import ErrorCode, TunesmithError
from service.file_checks import FileChecks
from service.grading import Grading
from service.jobs import Job, JobSpec, JobStatus, MethodSpec, Notice, advance
from service.metrics import Metrics
from service.quotas import Quotas
from service.records import Caller
from service.reports import RunReports
from service.resolve import resolve
from service.runtime import Capacity, RunState
from service.scheduler import Scheduler
from service.settings import Settings
from service.store import Store
from service.watches import Watches
from tests.fake_runtime import FakeRuntime
from trainers.spec import BaseModelRef, DatasetRef, ResourceSpec, TunesmithSpec
from trainers.storage import Storage, open_storage

BASE = BaseModelRef(id="m", revision="1", prefix="base/m/1", licence="mit")
DATA = DatasetRef(prefix="datasets/d", sha256="d", rows=32, tokens=900, trained_tokens=64, longest=40)


class Validated:
    """A data check that finds nothing wrong."""

    async def check(self, job: Job) -> tuple[Job, list[Notice]]:
        return advance(job, JobStatus.QUEUED, dataset=DATA, resolved=resolve(job.spec, DATA, "torch")), [Notice("Files validated")]


@dataclass
class World:
    store: Store
    storage: Storage
    runtime: FakeRuntime
    settings: Settings
    reports: RunReports
    schedulers: list[Scheduler]

    @property
    def app(self) -> App:
        admission, checks = Admission(self.store, Quotas.of(self.settings)), FileChecks(self.storage, self.settings)
        catalogue, grading, watches = Catalogue.load(self.settings), Grading.configured(self.settings), Watches(self.store, 10, Metrics())
        parts = (self.store, self.storage, catalogue, self.runtime, self.reports, self.wake, admission, checks, grading, watches)
        return App(*parts, self.settings)

    def scheduler(self) -> Scheduler:
        def new_driver(owner: str) -> Driver:
            return Driver(owner, self.store, self.storage, self.runtime, Validated(), self.settings, Metrics(), "127.0.0.1:1")

        made = Scheduler(self.store, self.runtime, self.settings, Metrics(), new_driver)
        self.schedulers.append(made)
        return made

    async def post(self, number: int = 1, resources: ResourceSpec | None = None) -> str:
        spec = JobSpec(
            model="m",
            training_file="file-1",
            seed=1,
            method=MethodSpec(type="supervised"),
            tunesmith=TunesmithSpec(resources=resources or ResourceSpec()),
        )
        job = Job(f"ftjob-{number}", "proj_1", "org-1", spec, JobStatus.VALIDATING, 1, 0.0, BASE)
        async with self.store.begin() as tx:
            await tx.insert_job(job, "f", [Notice("Created")])
        self.wake()
        return job.id

    async def job(self, job_id: str) -> Job:
        async with self.store.read() as tx:
            return await tx.any_job(job_id)

    async def until(self, job_id: str, holds: Callable[[Job], bool]) -> Job:
        for _ in range(400):
            job = await self.job(job_id)
            if holds(job):
                return job
            await asyncio.sleep(0.02)
        raise AssertionError(f"the job stayed {job.status} at run {job.epoch}: {job.reason}")

    async def until_is(self, job_id: str, status: JobStatus, epoch: int | None = None) -> Job:
        return await self.until(job_id, lambda job: job.status is status and epoch in (None, job.epoch))

    async def tell(self, job: Job, *reports: pb.RunReport) -> pb.ReportResponse:
        token = self.storage.get(f"runs/{job.id}/{job.epoch}/token").decode()
        answer = await self.reports.take(token, pb.ReportRequest(job_id=job.id, epoch=job.epoch, reports=reports))
        self.wake()
        return answer

    async def finish(self, job: Job, seq: int) -> None:
        csv = b"step\n"
        manifest = {"files": [{"name": "metrics.csv", "bytes": len(csv), "sha256": hashlib.sha256(csv).hexdigest()}]}
        body = json.dumps(manifest).encode()
        self.storage.put(f"models/{job.id}/{job.epoch}/metrics.csv", csv)
        self.storage.put(f"models/{job.id}/{job.epoch}/manifest.json", body)
        finished = pb.Finished(last_step=4, manifest_sha256=hashlib.sha256(body).hexdigest(), trained_tokens=256)
        await self.tell(job, pb.RunReport(seq=seq, finished=finished))

    def wake(self) -> None:
        for scheduler in self.schedulers:
            scheduler.wake()

    async def events(self, job_id: str) -> list[str]:
        async with self.store.read() as tx:
            return [event.message for event in (await tx.list_events(job_id, after=None, limit=100)).items]


@asynccontextmanager
async def world_of(settings: Settings) -> AsyncIterator[World]:
    store = Store(settings.database)
    await store.migrate()
    storage = open_storage(settings.storage)
    yield World(store, storage, FakeRuntime(), settings, RunReports(store, storage, Metrics(), lambda: None), [])
    await store.close()


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    settings = Settings(
        data_dir=tmp_path,
        lease_ttl=timedelta(seconds=2),
        heartbeat=timedelta(seconds=0.2),
        retry_backoff=timedelta(seconds=0.05),
        cancel_grace=timedelta(seconds=0.1),
        pause_grace=timedelta(seconds=60),
        run_silence=timedelta(seconds=60),
        max_retries=2,
    )
    async with world_of(settings) as made:
        yield made


@pytest.fixture
async def scheduler(world: World) -> AsyncIterator[Scheduler]:
    made = world.scheduler()
    task = asyncio.create_task(made.run())
    yield made
    await stop(task)


async def stop(task: asyncio.Task[None]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


STARTED = pb.RunReport(seq=1, started=pb.Started(world_size=1, total_steps=4))


async def test_a_job_runs_from_post_to_success(world: World, scheduler: Scheduler) -> None:
    job = await world.until_is(await world.post(), JobStatus.STARTING)
    await world.until(job.id, lambda _: bool(world.runtime.launched))
    (spec,) = world.runtime.launched
    assert (spec.run_id, spec.tunesmith.resources.cpus_per_worker, spec.resolved.steps) == ("ftjob-1-1", 2, 12)
    assert (await world.tell(job, STARTED)).directive == pb.DIRECTIVE_CONTINUE
    assert (await world.job(job.id)).status is JobStatus.RUNNING
    step = pb.StepDone(step=4, train_loss=0.5, learning_rate=1e-4)
    await world.tell(job, pb.RunReport(seq=2, step=step), pb.RunReport(seq=3, checkpoint=pb.CheckpointSaved(step=4, prefix="p")))
    await world.finish(job, seq=4)
    done = await world.until_is(job.id, JobStatus.SUCCEEDED)
    assert done.tuned_model == "ft:m:org-1::1"
    assert (done.trained_tokens, len(done.result_files), done.lease_owner) == (256, 1, None)
    assert (await world.events(job.id))[:2] == ["The job has successfully completed", "New fine-tuned model created: ft:m:org-1::1"]
    async with world.store.read() as tx:
        (checkpoint,) = await tx.checkpoints(job.id)
        assert (checkpoint.model_name, checkpoint.metrics["train_loss"]) == (done.tuned_model, 0.5)
        assert (await tx.file("proj_1", done.result_files[0])) is not None
    with pytest.raises(KeyError):
        world.storage.get(f"runs/{job.id}/1/token") if world.storage.head(f"runs/{job.id}/1/token") else {}["gone"]


async def running(world: World, number: int = 1) -> Job:
    job = await world.until_is(await world.post(number), JobStatus.STARTING)
    await world.until(job.id, lambda job: f"{job.id}-{job.epoch}" in world.runtime.runs)
    await world.tell(job, STARTED)
    return await world.job(job.id)


async def test_repeating_a_report_has_no_effect_and_a_gap_is_refused(world: World, scheduler: Scheduler) -> None:
    job = await running(world)
    before = await world.events(job.id)
    assert (await world.tell(job, STARTED)).acknowledged == 1
    assert await world.events(job.id) == before
    with pytest.raises(TunesmithError, match="2 is missing"):
        await world.tell(job, pb.RunReport(seq=3, step=pb.StepDone(step=1)))


async def test_a_wrong_token_is_refused(world: World, scheduler: Scheduler) -> None:
    job = await running(world)
    with pytest.raises(TunesmithError) as refusal:
        await world.reports.take("guess", pb.ReportRequest(job_id=job.id, epoch=1))
    assert refusal.value.code is ErrorCode.UNAUTHENTICATED


async def test_a_lost_run_is_followed_by_another_and_the_first_may_no_longer_write(world: World, scheduler: Scheduler) -> None:
    job = await running(world)
    world.runtime.ends(f"{job.id}-1", RunState.FAILED, "killed")
    again = await world.until_is(job.id, JobStatus.STARTING, epoch=2)
    await world.until(job.id, lambda _: f"{job.id}-2" in world.runtime.runs)
    with pytest.raises(TunesmithError) as refusal:
        await world.tell(job, pb.RunReport(seq=2, step=pb.StepDone(step=1)))
    assert refusal.value.code is ErrorCode.STALE
    await world.tell(again, STARTED)
    await world.finish(again, seq=2)
    await world.until_is(job.id, JobStatus.SUCCEEDED)
    assert any("Run 1 was lost" in message and "killed" in message for message in await world.events(job.id))


async def test_a_run_that_dies_every_time_is_given_up(world: World, scheduler: Scheduler) -> None:
    job_id = await world.post()
    for epoch in (1, 2, 3):
        await world.until(job_id, lambda _, epoch=epoch: f"{job_id}-{epoch}" in world.runtime.runs)
        world.runtime.ends(f"{job_id}-{epoch}", RunState.FAILED, "segmentation fault")
    failed = await world.until_is(job_id, JobStatus.FAILED)
    assert failed.error is not None
    assert (failed.error.code, failed.error.cause, failed.epoch) == ("quarantined", "infrastructure", 3)
    assert (failed.error.details["code"], failed.error.last_good_step) == ("worker_lost", 0)
    assert "segmentation fault" in failed.error.message
    assert failed.error.details["log_tail"] == ["the last line"]


async def test_progress_gives_the_retry_budget_back(world: World, scheduler: Scheduler) -> None:
    job_id = await world.post()
    for epoch in range(1, 6):
        job = await world.until_is(job_id, JobStatus.STARTING, epoch=epoch)
        await world.until(job_id, lambda job: f"{job.id}-{job.epoch}" in world.runtime.runs)
        resumed = pb.Started(total_steps=12, resumed_step=epoch - 1)
        saved = pb.CheckpointSaved(step=epoch, prefix=f"runs/{job_id}/{epoch}/checkpoints/step-{epoch}")
        await world.tell(job, pb.RunReport(seq=1, started=resumed), pb.RunReport(seq=2, checkpoint=saved))
        world.runtime.ends(f"{job_id}-{epoch}", RunState.FAILED, "node lost")
    await world.until_is(job_id, JobStatus.STARTING, epoch=6)


async def test_a_fault_of_the_job_is_not_tried_again(world: World, scheduler: Scheduler) -> None:
    job = await running(world)
    failed = pb.Failed(code="nan_loss", message="the loss is NaN; lower the learning rate", cause="config")
    await world.tell(job, pb.RunReport(seq=2, failed=failed))
    ended = await world.until_is(job.id, JobStatus.FAILED)
    assert ended.error is not None
    assert (ended.error.code, ended.epoch) == ("nan_loss", 1)


async def test_of_two_last_words_the_first_one_counts(world: World, scheduler: Scheduler) -> None:
    job = await running(world)
    stuck = pb.Failed(code="run_stuck", message="rank 1 hangs", cause="infrastructure", rank=1, node="node-b", hint="look")
    echo = pb.Failed(code="worker_lost", message="a worker died", cause="infrastructure")
    await world.tell(job, pb.RunReport(seq=2, failed=stuck), pb.RunReport(seq=3, failed=echo))
    await world.until_is(job.id, JobStatus.STARTING, epoch=2)
    async with world.store.read() as tx:
        [told] = await tx.detailed([await tx.any_job(job.id)])
    first = told.attempts[0]
    assert (first.code, first.rank, first.node, first.hint, first.last_good_step) == ("run_stuck", 1, "node-b", "look", 0)


async def test_a_silent_run_is_killed_and_started_again(world: World, scheduler: Scheduler) -> None:
    world.settings.__dict__["run_silence"] = timedelta(seconds=0.3)
    job = await running(world)
    await world.until_is(job.id, JobStatus.STARTING, epoch=2)
    assert f"{job.id}-1" in world.runtime.stopped


async def test_cancel_waits_until_the_processes_are_gone(world: World, scheduler: Scheduler) -> None:
    job = await running(world)
    async with world.store.begin() as tx:
        current = await tx.any_job(job.id)
        await tx.apply(current, advance(current, JobStatus.CANCELLING), [])
    assert (await world.tell(job)).directive == pb.DIRECTIVE_STOP
    assert (await world.job(job.id)).status is JobStatus.CANCELLING
    await world.until_is(job.id, JobStatus.CANCELLED)
    assert world.runtime.stopped[0] == f"{job.id}-1"
    assert not world.runtime.runs[f"{job.id}-1"].alive


async def test_a_full_cluster_says_what_the_job_waits_for(world: World, scheduler: Scheduler) -> None:
    await running(world)
    await world.post(2)
    await world.post(3, ResourceSpec(workers=1, gpus_per_worker=4))
    assert (await world.until("ftjob-2", lambda job: bool(job.reason) and job.status is JobStatus.QUEUED)).reason == (
        "waiting for 2 processor cores, 0 free"
    )
    assert (await world.until("ftjob-3", lambda job: "GPU" in job.reason)).reason == (
        "waiting for 4 GPUs, 0 in all: the cluster is too small for this job"
    )


async def test_an_elastic_job_starts_with_the_workers_that_fit_and_holds_no_more(world: World, scheduler: Scheduler) -> None:
    world.runtime.total = Capacity(cpus=4, gpus=0, nodes=2)
    await world.post(1, ResourceSpec(workers=2, cpus_per_worker=1))
    await world.until_is("ftjob-1", JobStatus.STARTING)
    await world.post(2, ResourceSpec(workers=4, min_workers=1, cpus_per_worker=1))
    shrunk = await world.until_is("ftjob-2", JobStatus.STARTING)
    assert shrunk.progress.workers == 2
    await world.until("ftjob-2", lambda _: "ftjob-2-1" in world.runtime.runs)
    told = next(spec for spec in world.runtime.launched if spec.job_id == "ftjob-2")
    assert told.tunesmith.resources.workers == 2
    assert told.resolved == shrunk.resolved, "the global batch stays"
    assert "Starting with 2 of 4 workers" in await world.events("ftjob-2")
    await world.post(3, ResourceSpec(workers=1, cpus_per_worker=1))
    assert (await world.until("ftjob-3", lambda job: "core" in job.reason)).reason == "waiting for 1 processor core, 0 free"
    world.runtime.ends("ftjob-1-1", RunState.FAILED, "node lost")
    world.runtime.ends("ftjob-2-1", RunState.FAILED, "node lost")
    world.runtime.total = Capacity(cpus=8, gpus=0, nodes=2)
    again = await world.until_is("ftjob-2", JobStatus.STARTING, epoch=2)
    assert again.progress.workers is None, "the next run has all of them"


async def test_jobs_survive_a_runtime_that_is_away(world: World, scheduler: Scheduler) -> None:
    job = await running(world)
    world.runtime.away = True
    await asyncio.sleep(0.3)
    world.runtime.away = False
    await world.finish(job, seq=2)
    await world.until_is(job.id, JobStatus.SUCCEEDED)


async def test_another_scheduler_takes_over_and_the_first_may_no_longer_write(world: World) -> None:
    first = world.scheduler()
    task = asyncio.create_task(first.run())
    job = await running(world)
    # The first falls silent without a word: its tasks stop, its leases stay until they run out.
    async with world.store.begin() as tx:
        await tx.renew_leases(first.owner, timedelta(seconds=-1))
    second = world.scheduler()
    takeover = asyncio.create_task(second.run())
    taken = await world.until(job.id, lambda job: job.lease_owner == second.owner)
    assert (taken.status, taken.epoch) == (JobStatus.RUNNING, 1)
    await world.finish(replace(job), seq=2)
    await world.until_is(job.id, JobStatus.SUCCEEDED)
    assert (await world.events(job.id)).count("The job has successfully completed") == 1
    for each in (task, takeover):
        await stop(each)


async def test_a_job_that_the_service_stumbles_over_is_given_up(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    async def stumble(self: Validated, job: Job) -> tuple[Job, list[Notice]]:
        raise ZeroDivisionError("a fault of ours")

    monkeypatch.setattr(Validated, "check", stumble)
    task = asyncio.create_task(world.scheduler().run())
    failed = await world.until_is(await world.post(), JobStatus.FAILED)
    assert failed.error is not None
    assert (failed.error.code, failed.error.cause, failed.lease_owner) == ("service_error", "service", None)
    assert "ZeroDivisionError" in failed.error.message
    await stop(task)


@pytest.fixture(params=["sqlite", "postgresql"])
async def shared(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[World]:
    """A world on either database."""
    url = {} if request.param == "sqlite" else {"database": request.getfixturevalue("postgres_url")}
    async with world_of(Settings(data_dir=tmp_path, lease_ttl=timedelta(seconds=60), **url)) as made:
        yield made


async def test_19_two_schedulers_start_each_of_300_jobs_once(shared: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.driver.GLANCE", timedelta(minutes=1))  # 300 runs that are looked at each second are not what is tried
    shared.runtime.total = Capacity(cpus=1000, gpus=0, nodes=500)
    ids = [await shared.post(number, ResourceSpec(cpus_per_worker=1)) for number in range(300)]
    tasks = [asyncio.create_task(shared.scheduler().run()) for _ in range(2)]
    expected = sorted(f"{job_id}-1" for job_id in ids)
    async with asyncio.timeout(200):
        while len(shared.runtime.launched) < len(expected):
            await asyncio.sleep(0.1)
    assert sorted(spec.run_id for spec in shared.runtime.launched) == expected
    async with shared.store.read() as tx:
        owners = {job.lease_owner for job in await tx.jobs_in([JobStatus.STARTING])}
        runs = [await tx.list_runs(job_id) for job_id in ids]
    assert owners == {scheduler.owner for scheduler in shared.schedulers}, "both took their share"
    assert [len(of_job) for of_job in runs] == [1] * 300
    for task in tasks:
        await stop(task)


OWNER = Caller("key_1", "proj_1", "org-1", frozenset({"read", "write"}))


def saved(job: Job, seq: int, step: int) -> pb.RunReport:
    return pb.RunReport(seq=seq, checkpoint=pb.CheckpointSaved(step=step, prefix=f"runs/{job.id}/{job.epoch}/checkpoints/step-{step}"))


async def in_state(world: World, status: JobStatus) -> Job:
    """A job that was brought into this state without a scheduler."""
    job_id = await world.post()
    on_ray = (JobStatus.QUEUED, JobStatus.STARTING, JobStatus.RUNNING)
    elsewhere = {JobStatus.PAUSED: (JobStatus.QUEUED, JobStatus.PAUSED), JobStatus.CANCELLED: (JobStatus.CANCELLED,)}
    early = {JobStatus.VALIDATING: (), JobStatus.QUEUED: on_ray[:1], JobStatus.STARTING: on_ray[:2], JobStatus.RUNNING: on_ray}
    path = (elsewhere | early).get(status, (*on_ray, status))
    for step in path:
        async with world.store.begin() as tx:
            job = await tx.any_job(job_id)
            await tx.apply(job, advance(job, step))
    return await world.job(job_id)


@pytest.mark.parametrize(
    ("status", "paused", "resumed"),
    [
        (JobStatus.VALIDATING, "still being checked", "only a paused job"),
        (JobStatus.QUEUED, JobStatus.PAUSED, "only a paused job"),
        (JobStatus.STARTING, JobStatus.PAUSING, "only a paused job"),
        (JobStatus.RUNNING, JobStatus.PAUSING, "only a paused job"),
        (JobStatus.PAUSING, JobStatus.PAUSING, "still being paused"),
        (JobStatus.PAUSED, JobStatus.PAUSED, JobStatus.QUEUED),
        (JobStatus.CANCELLING, "can no longer be paused", "only a paused job"),
        (JobStatus.SUCCEEDED, "can no longer be paused", "only a paused job"),
        (JobStatus.FAILED, "can no longer be paused", "only a paused job"),
        (JobStatus.CANCELLED, "can no longer be paused", "only a paused job"),
    ],
)
async def test_pause_and_resume_have_an_answer_in_every_state(
    world: World, status: JobStatus, paused: JobStatus | str, resumed: JobStatus | str
) -> None:
    job = await in_state(world, status)
    assert job.status is status
    for answer, ask in ((resumed, world.app.resume_job), (paused, world.app.pause_job)):
        before = await world.job(job.id)
        if isinstance(answer, JobStatus):
            assert (await ask(OWNER, job.id)).status is answer
        else:
            with pytest.raises(TunesmithError, match=answer) as refusal:
                await ask(OWNER, job.id)
            assert refusal.value.code is ErrorCode.INVALID_REQUEST
            assert await world.job(job.id) == before
    other = replace(OWNER, project_id="proj_2")
    for ask in (world.app.pause_job, world.app.resume_job):
        with pytest.raises(TunesmithError, match="No such fine-tuning job"):
            await ask(other, job.id)


async def test_a_paused_job_has_no_process_and_goes_on_from_its_checkpoint(world: World, scheduler: Scheduler) -> None:
    job = await running(world)
    assert (await world.app.pause_job(OWNER, job.id)).status is JobStatus.PAUSING
    assert (await world.tell(job)).directive == pb.DIRECTIVE_CHECKPOINT_AND_STOP
    await world.tell(job, saved(job, 2, 3))
    assert (await world.app.pause_job(OWNER, job.id)).status is JobStatus.PAUSING
    assert world.runtime.runs[f"{job.id}-1"].alive, "the run leaves by itself"
    world.runtime.ends(f"{job.id}-1", RunState.FAILED, "exit status 3")
    paused = await world.until_is(job.id, JobStatus.PAUSED)
    assert world.runtime.stopped == []
    assert (paused.reason, paused.lease_owner) == ("paused: once resumed it will go on from step 3", None)
    with pytest.raises(TunesmithError) as refusal:
        await world.tell(job, saved(job, 3, 4))
    assert refusal.value.code is ErrorCode.STALE
    assert (await world.app.resume_job(OWNER, job.id)).status is JobStatus.QUEUED
    again = await world.until_is(job.id, JobStatus.STARTING, epoch=2)
    await world.until(job.id, lambda _: f"{job.id}-2" in world.runtime.runs)
    assert again.infra_failures == 0
    await world.tell(again, pb.RunReport(seq=1, started=pb.Started(total_steps=4, resumed_step=3)))
    await world.finish(again, seq=2)
    await world.until_is(job.id, JobStatus.SUCCEEDED)
    told = (await world.events(job.id))[::-1]
    first = told.index("Pausing the job: waiting for its run to write a checkpoint and leave")
    assert told[first + 1 : -2] == [
        "Checkpoint created at step 3 with Snapshot ID: ft:m:org-1::1:ckpt-step-3",
        "The job has been paused",
        "The job has been resumed",
        "Starting run 2",
        "Fine-tuning resumed from step 3",
    ]


async def test_a_run_that_does_not_leave_is_killed_and_its_last_checkpoint_counts(world: World, scheduler: Scheduler) -> None:
    world.settings.__dict__["pause_grace"] = timedelta(seconds=0.3)
    job = await running(world)
    await world.tell(job, saved(job, 2, 2))
    await world.app.pause_job(OWNER, job.id)
    paused = await world.until_is(job.id, JobStatus.PAUSED)
    assert paused.reason.endswith("go on from step 2")
    assert world.runtime.stopped[0] == f"{job.id}-1"
    assert not world.runtime.runs[f"{job.id}-1"].alive


async def test_a_run_that_has_not_begun_is_not_waited_for(world: World, scheduler: Scheduler) -> None:
    job = await world.until_is(await world.post(), JobStatus.STARTING)
    await world.until(job.id, lambda job: f"{job.id}-1" in world.runtime.runs)
    await world.app.pause_job(OWNER, job.id)
    paused = await world.until_is(job.id, JobStatus.PAUSED)
    assert paused.reason.endswith("start afresh")
    assert not world.runtime.runs[f"{job.id}-1"].alive


async def test_a_run_that_finishes_while_it_is_paused_has_finished(world: World, scheduler: Scheduler) -> None:
    job = await running(world)
    await world.app.pause_job(OWNER, job.id)
    await world.finish(job, seq=2)
    done = await world.until_is(job.id, JobStatus.SUCCEEDED)
    assert done.tuned_model is not None
    assert "The job finished before it could be paused" in await world.events(job.id)


async def test_a_run_that_fails_while_it_is_paused_has_failed_unless_it_was_only_lost(world: World, scheduler: Scheduler) -> None:
    world.runtime.total = Capacity(cpus=4, gpus=0, nodes=2)
    faulty, lost = await running(world, 1), await running(world, 2)
    for job, cause in ((faulty, "config"), (lost, "infrastructure")):
        await world.app.pause_job(OWNER, job.id)
        await world.tell(job, pb.RunReport(seq=2, failed=pb.Failed(code="diverged", message="why", cause=cause)))
        world.runtime.ends(f"{job.id}-1", RunState.FAILED)
    await world.until_is(faulty.id, JobStatus.FAILED)
    assert (await world.until_is(lost.id, JobStatus.PAUSED)).infra_failures == 0


async def test_a_job_is_cancelled_while_it_is_being_paused_and_once_it_is(world: World, scheduler: Scheduler) -> None:
    world.runtime.total = Capacity(cpus=4, gpus=0, nodes=2)
    first, second = await running(world, 1), await running(world, 2)
    for job in (first, second):
        world.storage.put(f"runs/{job.id}/1/checkpoints/step-2/manifest.json", b"{}")
        await world.tell(job, saved(job, 2, 2))
        await world.app.pause_job(OWNER, job.id)
    assert (await world.app.cancel_job(OWNER, first.id)).status is JobStatus.CANCELLING
    await world.until_is(first.id, JobStatus.CANCELLED)
    world.runtime.ends(f"{second.id}-1", RunState.FAILED)
    await world.until_is(second.id, JobStatus.PAUSED)
    assert (await world.app.cancel_job(OWNER, second.id)).status is JobStatus.CANCELLED
    async with world.store.read() as tx:
        assert await tx.checkpoints(first.id) + await tx.checkpoints(second.id) == []
    for job in (first, second):
        await world.until(job.id, lambda job: not list(world.storage.list(f"runs/{job.id}/")))


async def test_pausing_goes_on_when_the_gateway_was_killed(world: World) -> None:
    first = world.scheduler()
    task = asyncio.create_task(first.run())
    job = await running(world)
    task.cancel()  # its leases are dropped; killed, they would only run out later
    with suppress(asyncio.CancelledError):
        await task
    await world.app.pause_job(OWNER, job.id)
    await asyncio.sleep(0.2)
    assert (await world.job(job.id)).status is JobStatus.PAUSING, "nobody is there to see the run leave"
    await world.tell(job, saved(job, 2, 2))
    world.runtime.ends(f"{job.id}-1", RunState.FAILED)
    second = asyncio.create_task(world.scheduler().run())
    await world.until_is(job.id, JobStatus.PAUSED)
    await stop(second)


async def test_pause_against_finish_loses_nothing(world: World, scheduler: Scheduler) -> None:
    """Both at once, many times: the job has succeeded, or is paused with its checkpoint; never anything else."""
    world.runtime.total = Capacity(cpus=1000, gpus=0, nodes=500)
    ended = set()
    for number in range(12):
        job = await running(world, number)
        answers = await asyncio.gather(world.app.pause_job(OWNER, job.id), world.finish(job, seq=2), return_exceptions=True)
        assert [a for a in answers if isinstance(a, Exception) and "no longer be paused" not in str(a)] == []
        ended.add((await world.until(job.id, lambda job: job.status in (JobStatus.SUCCEEDED, JobStatus.PAUSED))).status)
    assert ended == {JobStatus.SUCCEEDED}


async def test_a_checkpoint_of_an_earlier_run_stays_while_it_is_listed(world: World, scheduler: Scheduler) -> None:
    job = await running(world)
    keys = [f"runs/{job.id}/1/checkpoints/step-{step}/manifest.json" for step in (1, 2)]
    for key in (*keys, f"runs/{job.id}/1/spec.json"):
        world.storage.put(key, b"{}")
    await world.tell(job, saved(job, 2, 2))
    world.runtime.ends(f"{job.id}-1", RunState.FAILED)
    again = await world.until_is(job.id, JobStatus.STARTING, epoch=2)
    await world.until(job.id, lambda _: f"{job.id}-2" in world.runtime.runs)
    await world.tell(again, STARTED)
    await world.finish(again, seq=2)
    await world.until_is(job.id, JobStatus.SUCCEEDED)
    await world.until(job.id, lambda _: [info.key for info in world.storage.list(f"runs/{job.id}/1/")] == keys[1:])
