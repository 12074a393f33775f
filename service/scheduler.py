"""Who looks after which job; whose turn it is turns.py finds out.

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
from service.jobs import ON_RAY, JobError, JobStatus
from service.metrics import Metrics
from service.runtime import Runtime, RuntimeUnavailable
from service.settings import Settings
from service.store import Stale, Store, StoreUnavailable
from service.turns import AT_ONCE, Turns

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
        self._turns = Turns(self.owner, store, runtime, settings, metrics)

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
        started = await self._turns.take()
        for job_id in started:
            self._drive(job_id)
        if len(started) == AT_ONCE:
            self._awake.set()
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
