"""Carries one job from state to state while its scheduler holds the lease.

Each state has one step; a step reads the database, looks at the runtime, and writes the next state
under the version it has read. A driver that lost its job finds out at the next write and stops.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import secrets
import time
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from datetime import timedelta
from typing import Any, Protocol

import structlog

from service import objects, run_logs
from service.conclude import (
    OUT_OF_MEMORY,
    Budget,
    after_failure,
    failed_job,
    given_up,
    leaving_job,
    limit_error,
    micro_batch_limit,
    paused_job,
    requeued_job,
    result_file,
    succeeded_notices,
    yielded_job,
)
from service.gangs import gang_of
from service.jobs import FINAL, ON_RAY, TRANSITIONS, Departure, Job, JobError, JobStatus, Notice, advance
from service.metrics import Metrics
from service.reports import planned_model_name
from service.runtime import Observation, RunState, Runtime, RuntimeUnavailable
from service.settings import Settings
from service.store import Stale, Store, StoreUnavailable, Transaction
from service.store.runs import Run
from trainers import manifest
from trainers.redact import redactor
from trainers.spec import RunSpec, is_log, model_prefix, run_prefix
from trainers.storage import NoSuchObject, Storage, StorageError, StorageUnavailable

log = structlog.get_logger(__name__)
GLANCE = timedelta(seconds=1)
"""Longest wait between two looks at a run; `wake` makes it shorter."""
LAST_WORDS = 50
"""Lines of its log that an attempt keeps when it ended without a result."""
RESTING = FINAL | {JobStatus.QUEUED, JobStatus.PAUSED}
"""States in which a job needs no driver."""
ENDED = frozenset({RunState.SUCCEEDED, RunState.FAILED, RunState.STOPPED, RunState.UNKNOWN})


class LeaseLost(Exception):
    """Another scheduler has the job now."""


class DataCheck(Protocol):
    """Validates and tokenises a job's files; see validation.py."""

    async def check(self, job: Job) -> tuple[Job, list[Notice]]:
        """The job QUEUED with its datasets and numbers, or FAILED with the report."""
        ...


class Driver:
    """The steps of all jobs of one scheduler."""

    def __init__(
        self,
        owner: str,
        store: Store,
        storage: Storage,
        runtime: Runtime,
        validation: DataCheck,
        settings: Settings,
        metrics: Metrics,
        report_address: str,
    ) -> None:
        self._owner, self._store, self._storage, self._runtime = owner, store, storage, runtime
        self._validation, self._settings, self._metrics = validation, settings, metrics
        self._report_address = report_address
        self._budget = Budget(settings.max_retries, settings.quarantine_after, settings.max_preemptions)
        self._news = asyncio.Event()
        self._steps: dict[JobStatus, Callable[[Job], Coroutine[Any, Any, None]]] = {
            JobStatus.VALIDATING: self._validate,
            JobStatus.STARTING: self._start,
            JobStatus.RUNNING: self._watch,
            JobStatus.CANCELLING: self._stop,
            JobStatus.PAUSING: self._pause,
        }

    def wake(self) -> None:
        """A run has reported or a client has asked for something: look now."""
        self._news.set()

    async def drive(self, job_id: str) -> None:
        """Carry the job on until it rests in a queue or has ended. Raises LeaseLost."""
        while True:
            try:
                job = await self._read(job_id)
                if job.status in RESTING:
                    return
                if job.lease_owner != self._owner:
                    raise LeaseLost(job_id)
                await self._steps[job.status](job)
            except Stale:
                continue  # the job changed under the step: read it again
            except (StoreUnavailable, RuntimeUnavailable, StorageUnavailable) as error:
                log.warning("driver_waits", job=job_id, cause=str(error))
                await self._glance()

    # Steps

    async def _validate(self, job: Job) -> None:
        check = asyncio.ensure_future(self._validation.check(job))
        try:
            while not check.done():
                await asyncio.wait({check}, timeout=GLANCE.total_seconds())
                if (await self._read(job.id)).status is not JobStatus.VALIDATING:
                    return
            checked, notices = check.result()
        finally:
            check.cancel()
        async with self._writing() as tx:
            stamp = {"queued_at": tx.time} if checked.status is JobStatus.QUEUED else {"finished_at": tx.time}
            await tx.apply(job, replace(checked, lease_owner=None, **stamp), notices)

    async def _start(self, job: Job) -> None:
        await self._prepare_run(job)
        await self._watch(job)

    async def _watch(self, job: Job) -> None:
        """Until the run has said its last word, or has fallen silent."""
        run_id, since, earlier = f"{job.id}-{job.epoch}", time.monotonic(), await self._held_before(job)
        while True:
            seen = await self._observe(run_id)
            job, run = await self._read_run(job.id)
            if job.status not in (JobStatus.STARTING, JobStatus.RUNNING):
                return
            if run.outcome is not None:
                return await self._conclude(job, run)
            if run.leaving is not None:
                return await self._depart(job)
            if (limit := self._limit_reached(job, run, earlier)) is not None:
                await self._ask_to_leave(job, limit)
                continue
            outcome = self._lost_outcome(run, seen, time.monotonic() - since)
            if outcome is not None:
                return await self._lost(job, run, outcome)
            await self._glance()

    async def _pause(self, job: Job) -> None:
        """PAUSING ends when the run has left."""
        if (left := await self._left(job, {JobStatus.PAUSING})) is not None:
            await self._rest(*left)

    async def _depart(self, job: Job) -> None:
        """The run was asked to leave: its job goes back to the queue, or has used up its time."""
        left = await self._left(job, {JobStatus.STARTING, JobStatus.RUNNING})
        if left is None:
            return
        job, run = left
        assert run.leaving is not None
        why, tail = Departure(run.leaving), await self._log_tail(run)
        async with self._writing() as tx:
            current = await self._still(tx, job)
            last_saved = await tx.last_saved(job.id)
            outcome = {"kind": "stopped", "code": why.value, "last_good_step": last_saved, "log_tail": tail}
            await tx.update_run(job.id, run.epoch, ended_at=tx.time, outcome=outcome)
            if why in (Departure.MAX_DURATION, Departure.DEADLINE):
                changed, notices = failed_job(current, limit_error(why, current, last_saved), tx.time)
            else:
                changed, notices = yielded_job(current, run, why, last_saved, tx.time)
            await tx.apply(current, changed, notices)
        if changed.status is JobStatus.FAILED:
            self._ended(job.id, "failed")
        else:
            self._metrics.run_ended(why.value)

    async def _left(self, job: Job, states: set[JobStatus]) -> tuple[Job, Run] | None:
        """Once nothing of the run is left: it writes a checkpoint and leaves, or is killed when it takes too long.

        None when its last word has counted, or when the job has left the `states`.
        """
        run_id, since = f"{job.id}-{job.epoch}", time.monotonic()
        while True:
            seen = await self._observe(run_id)
            job, run = await self._read_run(job.id)
            if job.status not in states:
                return None
            if run.outcome is not None and run.outcome.get("cause") != "infrastructure":
                await self._conclude(job, run)
                return None
            if seen is not None and not seen.alive:
                return job, run
            if time.monotonic() - since > self._pause_grace(run).total_seconds():
                with suppress(RuntimeUnavailable):
                    await self._runtime.stop(run_id)
            await self._glance()

    async def _held_before(self, job: Job) -> float:
        """Seconds that the job's earlier runs have held their workers."""
        async with self._store.read() as tx:
            runs = await tx.list_runs(job.id)
        return sum((run.ended_at or run.created_at) - run.created_at for run in runs if run.epoch < job.epoch)

    def _limit_reached(self, job: Job, run: Run, earlier: float) -> Departure | None:
        """Which of the job's limits is used up, by the database's clock at the last read."""
        limits = job.spec.tunesmith.limits
        if limits.max_duration is not None and earlier + self._now - run.created_at >= limits.max_duration:
            return Departure.MAX_DURATION
        if limits.deadline is not None and self._now >= job.created_at + limits.deadline:
            return Departure.DEADLINE
        return None

    async def _ask_to_leave(self, job: Job, limit: Departure) -> None:
        async with self._writing() as tx:
            current = await self._still(tx, job)
            await tx.ask_to_leave(job.id, job.epoch, limit)
            await tx.apply(current, *leaving_job(current, limit))

    def _pause_grace(self, run: Run) -> timedelta:
        """A run that has not begun to train has nothing to save."""
        return self._settings.pause_grace if run.resumed_step is not None else timedelta(0)

    async def _rest(self, job: Job, run: Run) -> None:
        """PAUSED: nothing of the run is left."""
        async with self._writing() as tx:
            current = await self._still(tx, job)
            await tx.update_run(job.id, run.epoch, ended_at=tx.time)
            paused, notices = paused_job(current, await tx.last_saved(job.id))
            await tx.apply(current, paused, notices)
        self._ended(job.id, "paused")

    async def _stop(self, job: Job) -> None:
        """CANCELLING ends only when nothing of the run is left."""
        await self._until_gone(f"{job.id}-{job.epoch}", grace=self._settings.cancel_grace)
        async with self._writing() as tx:
            current = await tx.any_job(job.id, lock=True)
            if current.status is not job.status:
                raise Stale(job.id)
            await tx.update_run(job.id, job.epoch, ended_at=tx.time)
            await tx.forget_checkpoints(job.id)
            cancelled = advance(current, JobStatus.CANCELLED, lease_owner=None, reason="", finished_at=tx.time)
            await tx.apply(current, cancelled, [Notice("The job has been cancelled")])
        self._ended(job.id, "cancelled")
        await asyncio.to_thread(objects.discard_job, self._storage, job.id)

    async def give_up(self, job_id: str, error: JobError) -> None:
        """Fail the job whose steps end in an error that nobody foresaw; a job that is being stopped goes on being stopped."""
        job = await self._read(job_id)
        if JobStatus.FAILED not in TRANSITIONS[job.status]:
            return
        if job.status in ON_RAY:
            await self._until_gone(f"{job.id}-{job.epoch}", grace=timedelta(0))
        async with self._writing() as tx:
            current = await self._still(tx, job)
            if job.epoch:
                await tx.update_run(job.id, job.epoch, ended_at=tx.time)
            failed, notices = failed_job(current, error, tx.time)
            await tx.apply(current, failed, notices)
        self._ended(job.id, "failed")

    # How a run ends

    async def _conclude(self, job: Job, run: Run) -> None:
        outcome = run.outcome or {}
        if outcome["kind"] == "finished":
            await self._succeed(job, run, outcome)
        elif outcome["cause"] == "infrastructure":
            await self._lost(job, run, outcome)
        else:
            await self._failed(job, run, outcome)

    async def _failed(self, job: Job, run: Run, outcome: dict[str, Any]) -> None:
        """The same again would fail again: the job has failed, unless less memory may do."""
        await self._until_gone(f"{job.id}-{run.epoch}", grace=timedelta(seconds=2))
        outcome = outcome | {"log_tail": await self._log_tail(run)}
        async with self._writing() as tx:
            current = await self._still(tx, job)
            last_saved = await tx.last_saved(job.id)
            outcome |= {"last_good_step": last_saved}
            await tx.update_run(job.id, run.epoch, ended_at=tx.time, outcome=outcome)
            changed, notices = after_failure(current, replace(run, outcome=outcome), last_saved, tx.time)
            await tx.apply(current, changed, notices)
        if changed.status is JobStatus.QUEUED:
            self._metrics.run_ended(OUT_OF_MEMORY)
        else:
            self._ended(job.id, changed.status.value)

    async def _succeed(self, job: Job, run: Run, outcome: dict[str, Any]) -> None:
        name = planned_model_name(job)
        async with self._writing() as tx:
            current = await self._still(tx, job)
            file = result_file(current, outcome["result"])
            await tx.insert_file(file)
            await tx.insert_tuned_model(name, job.project_id, job.organization_id, job.id)
            await tx.name_last_checkpoint(job.id, name)
            await tx.update_run(job.id, run.epoch, ended_at=tx.time)
            done = advance(
                current,
                JobStatus.SUCCEEDED,
                finished_at=tx.time,
                tuned_model=name,
                trained_tokens=outcome["trained_tokens"],
                result_files=(file.id,),
                lease_owner=None,
                reason="",
            )
            late = [Notice("The job finished before it could be paused")] if current.status is JobStatus.PAUSING else []
            await tx.apply(current, done, late + succeeded_notices(name, stopped_early=outcome["stopped_early"]))
        self._ended(job.id, "succeeded")
        await self._tidy(job, run.epoch)

    async def _lost(self, job: Job, run: Run, outcome: dict[str, Any]) -> None:
        """The run is over without a result; the job goes back to the queue while its budget lasts."""
        tail = await self._log_tail(run)
        await self._until_gone(f"{job.id}-{run.epoch}", grace=timedelta(0))
        backoff = self._settings.retry_backoff.total_seconds() * 2**job.infra_failures * random.uniform(0.8, 1.2)
        async with self._writing() as tx:
            current = await self._still(tx, job)
            last_saved = await tx.last_saved(job.id)
            outcome |= {"log_tail": tail, "last_good_step": last_saved}
            await tx.update_run(job.id, run.epoch, ended_at=tx.time, outcome=outcome)
            runs = await tx.list_runs(job.id)
            error = given_up(current, runs, last_saved, self._budget)
            if error is not None:
                changed, notices = failed_job(current, error, tx.time)
            else:
                changed, notices = requeued_job(current, runs[-1], last_saved, backoff, tx.time)
            await tx.apply(current, changed, notices)
        if changed.status is JobStatus.FAILED:
            self._ended(job.id, "failed")
        else:
            self._metrics.run_ended("lost")

    # Parts of steps

    async def _prepare_run(self, job: Job) -> None:
        """Write what the run is told and its token, then launch; each can be done again."""
        capacity = await self._runtime.capacity()
        given = gang_of(job, capacity)
        changes = {"cpus_per_worker": given.cpus_per_worker, "workers": given.workers}
        resources = job.spec.tunesmith.resources.model_copy(update=changes)
        spec = await self._run_spec(job, resources)
        token = await asyncio.to_thread(self._run_token, spec)
        async with self._writing() as tx:
            await self._still(tx, job)
            rows = min(spec.rows_per_replica, spec.micro_batch or spec.rows_per_replica)
            await tx.update_run(job.id, job.epoch, token_sha256=hashlib.sha256(token.encode()).hexdigest(), micro_batch=rows)
        body = spec.model_dump_json(indent=1).encode()
        await asyncio.to_thread(self._storage.put, f"{spec.run_prefix}/spec.json", body)
        await self._runtime.launch(spec)

    async def _run_spec(self, job: Job, resources: Any) -> RunSpec:
        assert job.dataset is not None
        assert job.resolved is not None
        assert job.spec.seed is not None
        async with self._store.read() as tx:
            runs = await tx.list_runs(job.id)
        return RunSpec(
            job_id=job.id,
            epoch=job.epoch,
            method=job.spec.method.type,
            seed=job.spec.seed,
            base_model=job.base_model,
            dataset=job.dataset,
            validation=job.validation,
            resolved=job.resolved,
            tunesmith=job.spec.tunesmith.model_copy(update={"resources": resources}),
            storage_url=self._settings.storage,
            report_address=self._report_address,
            tuned_model=planned_model_name(job),
            integrations=job.spec.integrations,
            micro_batch=micro_batch_limit(job, [run for run in runs if run.epoch < job.epoch]),
            log_bytes=self._settings.run_log_bytes,
            resume_from=await asyncio.to_thread(objects.checkpoint_prefixes, self._storage, job.id, job.epoch),
        )

    def _run_token(self, spec: RunSpec) -> str:
        key = f"{spec.run_prefix}/token"
        with suppress(NoSuchObject):
            return self._storage.get(key).decode()
        token = secrets.token_urlsafe(32)
        self._storage.put(key, token.encode())
        return token

    def _lost_outcome(self, run: Run, seen: Observation | None, watched: float) -> dict[str, Any] | None:
        """Why the run must be given up, None while it may go on. `watched` counts seconds."""
        lost = {"kind": "lost", "code": "worker_lost", "cause": "infrastructure"}
        if seen is not None and seen.state in ENDED:
            return lost | {"message": f"the run ended without a result ({seen.message or seen.state})"}
        silence = min(watched, self._age(run))
        if run.reported_at is None:
            limit, stuck = self._settings.start_timeout, {}
        else:  # rank 0 reports; a hang of another rank is told by rank 0 itself
            limit, stuck = self._settings.run_silence, {"code": "run_stuck", "rank": 0}
        if silence > limit.total_seconds():
            return lost | stuck | {"message": f"the run has not reported for {silence:.0f} s"}
        return None

    def _age(self, run: Run) -> float:
        """Seconds since the run last reported, or since it was made, by the database's clock at the last read."""
        return self._now - (run.reported_at or run.created_at)

    async def _until_gone(self, run_id: str, *, grace: timedelta) -> None:
        """Wait until nothing of the run lives; after `grace` it is killed. Waits as long as that takes."""
        deadline = time.monotonic() + grace.total_seconds()
        while True:
            seen = await self._observe(run_id)
            if seen is not None and not seen.alive:
                return
            if time.monotonic() >= deadline:
                with suppress(RuntimeUnavailable):
                    await self._runtime.stop(run_id)
            await asyncio.sleep(0.25)

    async def _observe(self, run_id: str) -> Observation | None:
        """What the runtime sees, None when it can't be asked."""
        try:
            return await self._runtime.observe(run_id)
        except RuntimeUnavailable as error:
            log.warning("runtime_away", run=run_id, cause=str(error))
            return None

    async def _log_tail(self, run: Run) -> list[str]:
        """The last lines of the worker that failed; of a run that was lost those of its driver, from Ray while that lives."""
        rank, kept = (run.outcome or {}).get("rank"), list[str]()
        with suppress(StorageError):
            kept = await asyncio.to_thread(run_logs.last_lines, self._storage, run.job_id, run.epoch, rank, LAST_WORDS)
        if rank is not None and kept:
            return kept
        with suppress(RuntimeUnavailable):
            redact = redactor()
            return [redact(line) for line in await self._runtime.log_tail(f"{run.job_id}-{run.epoch}", LAST_WORDS)] or kept
        return kept

    async def _tidy(self, job: Job, epoch: int) -> None:
        """The token and what earlier runs left are of no more use, but for their logs and the checkpoints that are still listed."""
        async with self._store.read() as tx:
            listed = [checkpoint.prefix for checkpoint in await tx.checkpoints(job.id)]
        await asyncio.to_thread(self._storage.delete, f"{run_prefix(job.id, epoch)}/token")
        for old in range(1, epoch):
            for prefix in (run_prefix(job.id, old), model_prefix(job.id, old)):
                await asyncio.to_thread(manifest.remove, self._storage, prefix, keep=listed, spare=is_log)

    def _ended(self, job_id: str, outcome: str) -> None:
        self._metrics.run_ended(outcome)
        self._metrics.job_ended(job_id)

    async def _read(self, job_id: str) -> Job:
        async with self._store.read() as tx:
            self._now = tx.time
            return await tx.any_job(job_id)

    async def _read_run(self, job_id: str) -> tuple[Job, Run]:
        async with self._store.read() as tx:
            self._now = tx.time
            job = await tx.any_job(job_id)
            if job.lease_owner not in (self._owner, None):
                raise LeaseLost(job_id)
            run = await tx.run(job_id, job.epoch)
        assert run is not None
        return job, run

    @asynccontextmanager
    async def _writing(self) -> AsyncGenerator[Transaction]:
        async with self._store.begin() as tx:
            yield tx

    async def _still(self, tx: Transaction, job: Job) -> Job:
        """The job as it is now, if it is still in the same state and ours; reports change its version all the time."""
        current = await tx.any_job(job.id, lock=True)
        if current.lease_owner != self._owner:
            raise LeaseLost(job.id)
        if current.status is not job.status or current.epoch != job.epoch:
            raise Stale(job.id)
        return current

    async def _glance(self) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._news.wait(), GLANCE.total_seconds())
        self._news.clear()
