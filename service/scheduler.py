"""Which job runs when, and who looks after it.

One scheduler owns jobs by leases, measured by the database's clock, and has one `Driver` task for
each job that is being validated or has a run. When it falls silent, another takes its leases over and
goes on from what the database says: nothing here is kept in memory that could not be read again.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import timedelta

import structlog

from service.driver import Driver, LeaseLost
from service.gangs import Gang, fits_ever, gang, gang_of, granted, shortage, smallest
from service.jobs import ON_RAY, Job, JobError, JobStatus, Notice, advance
from service.metrics import Metrics
from service.places import Places
from service.quotas import Quotas
from service.runtime import Capacity, Runtime, RuntimeUnavailable
from service.settings import Settings
from service.store import Stale, Store, StoreUnavailable, Transaction

log = structlog.get_logger(__name__)
OWNED = ON_RAY | {JobStatus.VALIDATING}
"""States in which a job needs somebody to look after it."""
TICK = timedelta(seconds=1)
"""Longest wait between two looks at the queue; `wake` makes it shorter."""
SWEEP = timedelta(minutes=1)
"""Between two looks for runs that nobody looks after; the first comes at the start."""

MAX_SETBACKS = 5
"""Errors that nobody foresaw, in a row, after which a job is given up."""


class Scheduler:
    """Claims queued jobs and drives every job that it holds the lease of."""

    def __init__(self, store: Store, runtime: Runtime, settings: Settings, metrics: Metrics, new_driver: Callable[[str], Driver]) -> None:
        self._store, self._runtime, self._settings, self._metrics = store, runtime, settings, metrics
        self.owner = f"scheduler-{secrets.token_hex(6)}"
        self._driver = new_driver(self.owner)
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._setbacks: dict[str, int] = {}
        self._awake = asyncio.Event()
        self._quotas = Quotas.of(settings)

    def wake(self) -> None:
        """Something has changed: look now rather than at the next tick."""
        self._awake.set()
        self._driver.wake()

    async def run(self) -> None:
        """Look after jobs until cancelled, then give the leases up so that another need not wait."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._every(self._settings.heartbeat, self._renew))
                group.create_task(self._every(TICK, self._look, wakeable=True))
                group.create_task(self._every(SWEEP, self._sweep))
        finally:
            for task in self._tasks.values():
                task.cancel()
            await asyncio.gather(*self._tasks.values(), return_exceptions=True)
            with suppress(StoreUnavailable):
                async with self._store.begin() as tx:
                    await tx.drop_leases(self.owner)

    async def _every(self, pause: timedelta, action: Callable[[], Awaitable[None]], *, wakeable: bool = False) -> None:
        while True:
            try:
                await action()
            except (StoreUnavailable, RuntimeUnavailable) as error:
                log.warning("scheduler_waits", cause=str(error))
            except Stale:
                continue
            except Exception:
                # The scheduler must outlive any single bad row; the cause is in the log.
                log.exception("scheduler_error")
            if wakeable:
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._awake.wait(), pause.total_seconds())
                self._awake.clear()
            else:
                await asyncio.sleep(pause.total_seconds())

    async def _renew(self) -> None:
        async with self._store.begin() as tx:
            held = await tx.renew_leases(self.owner, self._settings.lease_ttl)
        for job_id, task in self._tasks.items():
            if job_id not in held and not task.done():
                # Either the job is through, and its driver about to return, or another scheduler has it.
                log.info("lease_gone", job=job_id)
        for job_id in held - {job_id for job_id, task in self._tasks.items() if not task.done()}:
            # Taken in a transaction whose COMMIT was not answered, or kept by one that gave it back: nobody else would see to it.
            self._drive(job_id)

    async def _look(self) -> None:
        self._tasks = {job_id: task for job_id, task in self._tasks.items() if not task.done()}
        async with self._store.begin() as tx:
            orphans = await tx.take_leases(self.owner, OWNED, self._settings.lease_ttl)
        for job in orphans:
            self._drive(job.id)
        await self._claim()
        async with self._store.read() as tx:
            self._metrics.set_jobs_by_status(await tx.count_by_status())

    async def _sweep(self) -> None:
        """Stop what still runs of jobs that have ended or gone on to another run.

        A run of a job that the database does not know is left alone: it may be another gateway's on the same cluster.
        """
        live = await self._runtime.live_runs()
        if not live:
            return
        async with self._store.read() as tx:
            current = {f"{job.id}-{job.epoch}" for job in await tx.jobs_in(ON_RAY)}
            suspects = {run_id: run_id.rpartition("-")[0] for run_id in live if run_id not in current}
            known = await tx.known_jobs(suspects.values()) if suspects else set[str]()
        for run_id in (run_id for run_id, job_id in suspects.items() if job_id in known):
            log.warning("stray_run_stopped", run=run_id)
            await self._runtime.stop(run_id)

    def _drive(self, job_id: str) -> None:
        old = self._tasks.pop(job_id, None)
        if old is not None:
            old.cancel()
        self._tasks[job_id] = asyncio.create_task(self._driven(job_id), name=job_id)

    async def _driven(self, job_id: str) -> None:
        try:
            await self._driver.drive(job_id)
        except LeaseLost:
            log.info("stepped_down", job=job_id)
        except Exception as error:
            log.exception("driver_error", job=job_id)
            await self._set_back(job_id, error)
        else:
            self._setbacks.pop(job_id, None)
        finally:
            self._awake.set()

    async def _set_back(self, job_id: str, error: Exception) -> None:
        """Let go, so that the next look takes the job up afresh after a pause; not for ever, for it may be the job's own doing."""
        self._setbacks[job_id] = self._setbacks.get(job_id, 0) + 1
        try:
            if self._setbacks[job_id] >= MAX_SETBACKS:
                message = (
                    f"the service failed {MAX_SETBACKS} times while it looked after this job ({type(error).__name__}); its log says why"
                )
                await self._driver.give_up(job_id, JobError(code="service_error", message=message))
            await asyncio.sleep(self._settings.heartbeat.total_seconds())
            async with self._store.begin() as tx:
                await tx.drop_lease(job_id, self.owner)
        except (LeaseLost, Stale, StoreUnavailable):
            log.warning("setback_not_noted", job=job_id)  # a lease that is still ours is seen by the next renewal

    async def _claim(self) -> None:
        async with self._store.read() as tx:
            queued = await tx.jobs_in([JobStatus.QUEUED])
            now = tx.time
            busy = await tx.jobs_in(ON_RAY) if queued else []
            own = await tx.quotas_of(job.project_id for job in queued) if queued else {}
        if not queued:
            return
        places = Places(self._quotas, own, busy)
        capacity = await self._runtime.capacity()
        used = [gang_of(job, capacity) for job in busy]
        reasons: dict[str, str] = {}
        waiting = [job for job in queued if not await self._claimed(job, now, capacity, used, places, reasons)]
        changed = {job.id: reasons[job.id] for job in waiting if job.id in reasons and reasons[job.id] != job.reason}
        if changed:
            async with self._store.begin() as tx:
                await tx.set_reasons(changed)

    async def _claimed(self, job: Job, now: float, capacity: Capacity, used: list[Gang], places: Places, reasons: dict[str, str]) -> bool:
        """Claim the job if it is its turn; otherwise say why not. A larger job ahead is not overtaken, unless its project runs enough."""
        wanted = gang(job.spec.tunesmith.resources, capacity)
        if job.not_before > now:
            reasons[job.id] = f"trying again in {job.not_before - now:.0f} s: {_last_cause(job)}"
            return False
        reasons[job.id] = places.shortage(job.project_id)
        if reasons[job.id]:
            return False
        part = granted(job, wanted, capacity, used) if shortage(wanted, capacity, used) else wanted
        if part is None:
            least = smallest(job, wanted)
            reasons[job.id] = shortage(least, capacity, used)
            if fits_ever(least, capacity):
                used.append(least)
            return False
        try:
            async with self._store.begin() as tx:
                reasons[job.id] = await self._quota_shortage(tx, job.project_id, places)
                if reasons[job.id]:
                    return False
                claimed = advance(
                    job,
                    JobStatus.STARTING,
                    epoch=job.epoch + 1,
                    lease_owner=self.owner,
                    reason="starting the workers",
                    progress=job.progress.model_copy(update={"workers": part.workers if part != wanted else None}),
                )
                notices = [Notice(f"Starting run {claimed.epoch}")] if claimed.epoch > 1 else []
                notices += [Notice(f"Starting with {part.workers} of {wanted.workers} workers")] if part != wanted else []
                claimed = await tx.apply(job, claimed, notices)
                await tx.lease(claimed, self.owner, self._settings.lease_ttl)
                await tx.insert_run(job.id, claimed.epoch, token_sha256="")
        except Stale:
            return True  # another scheduler was first, or the client cancelled: no longer in the queue
        used.append(part)
        places.take(job.project_id)
        self._metrics.queue_waited(max(0.0, now - (job.queued_at or now)))
        self._drive(claimed.id)
        return True

    async def _quota_shortage(self, tx: Transaction, project_id: str, places: Places) -> str:
        """As `Places.shortage`, under the lock on the project's row: two schedulers can't both give its last place away."""
        if places.limit(project_id) is None:
            return ""
        await tx.quotas_of([project_id], lock=True)
        places.running[project_id] = await tx.count_jobs(project_id, ON_RAY)
        return places.shortage(project_id)


def _last_cause(job: Job) -> str:
    return job.reason.partition(": ")[2] or job.reason or "the last run was lost"
