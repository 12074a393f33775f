"""One look at the queue: read what the rules must know, ask them, and write what they say.

Called by the scheduler. A first, cheap reading says whether anything is to be done; only then it is all read and decided
again by the one who holds the queue, in one transaction, so that limits and quotas hold however many schedulers there are.
The rules themselves are in queue.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from service.conclude import failed_job, leaving_job, limit_error
from service.gangs import Gang, gang, gang_of
from service.jobs import ON_RAY, Departure, Job, JobStatus, Notice, advance
from service.metrics import Metrics
from service.places import Places
from service.queue import Plan, Rules, Running, Waiting, decide
from service.quotas import Quotas
from service.runtime import Capacity, Runtime
from service.settings import Settings
from service.shares import Held, Shares
from service.store import Stale, Store, Transaction
from service.store.queue import Holding, Queued

AT_ONCE = 20
"""Jobs that one look starts at most: its transaction stays short, and schedulers side by side share the work."""
REMEMBERED = 60.0
"""Seconds for which the runs of the past, which count in fair shares, are not read again."""
HALF_LIVES = 5
"""Age at which what a project used is forgotten: it counts a thirty-second part by then."""


@dataclass(frozen=True, slots=True)
class _View:
    """All that one look has read, and what the rules say to it."""

    queued: dict[str, Queued]
    plan: Plan
    reasons: dict[str, str]
    """Those that are new."""
    overdue: list[str]
    reserved: str | None

    @property
    def quiet(self) -> bool:
        """Whether nothing is to be done."""
        todo = self.plan.start or self.plan.preempt or self.plan.grow or self.reasons or self.overdue
        return not todo and self.plan.reserved == self.reserved


class Turns:
    """Looks at the queue for one scheduler."""

    def __init__(self, owner: str, store: Store, runtime: Runtime, settings: Settings, metrics: Metrics) -> None:
        self._owner, self._store, self._runtime, self._settings, self._metrics = owner, store, runtime, settings, metrics
        self._quotas = Quotas.of(settings)
        self._past: list[Held] = []
        self._past_read = -math.inf

    async def take(self) -> list[str]:
        """Start whose turn it is, ask those to leave that must make room, say why the others wait; the jobs that now are the owner's."""
        async with self._store.read() as tx:
            if not await tx.anything_to_decide():
                self._metrics.set_oldest_wait(0.0)
                return []
        capacity = await self._runtime.capacity()
        async with self._store.read() as tx:
            await self._remember(tx, capacity)
            view = await self._view(tx, capacity, await tx.reserved())
        if view.quiet:
            return []
        async with self._store.begin() as tx:
            view = await self._view(tx, capacity, await tx.reserved(lock=True))
            return await self._write(tx, view)

    # Reading

    async def _remember(self, tx: Transaction, capacity: Capacity) -> None:
        if tx.time - self._past_read < REMEMBERED:
            return
        ended = await tx.held_since(tx.time - HALF_LIVES * self._settings.fair_share_half_life.total_seconds())
        self._past = [Held(run.project_id, gang(run.resources, capacity), run.created_at, run.ended_at) for run in ended]
        self._past_read = tx.time

    async def _view(self, tx: Transaction, capacity: Capacity, reserved: str | None) -> _View:
        queued = {job.id: job for job in await tx.candidates()}
        busy, holdings = await tx.jobs_in(ON_RAY), await tx.holdings()
        own = await tx.quotas_of(job.project_id for job in queued.values())
        running = [_running(job, holdings[job.id], capacity, tx.time) for job in busy if job.id in holdings]
        held = [Held(run.project_id, run.gang, run.started_at, None) for run in running]
        shares = Shares([*self._past, *held], capacity, tx.time, self._settings.fair_share_half_life.total_seconds())
        waiting = [_waiting(job, capacity) for job in queued.values()]
        plan = decide(waiting, running, capacity, Places(self._quotas, own, busy), shares, self._rules(), tx.time, reserved)
        self._metrics.set_oldest_wait(max((tx.time - job.waiting_since for job in queued.values()), default=0.0))
        reasons = {job_id: reason for job_id, reason in plan.reasons.items() if reason != queued[job_id].reason}
        for job_id, (until, reason) in (await tx.postponed()).items():
            if (words := f"trying again within {_about(until - tx.time)} s: {_cause(reason)}") != reason:
                reasons[job_id] = words
        return _View(queued, plan, reasons, await tx.past_deadline(), reserved)

    def _rules(self) -> Rules:
        limit = self._settings.max_running_jobs
        return Rules(
            patience=self._settings.queue_patience.total_seconds(),
            running_jobs=math.inf if limit is None else limit,
            max_preemptions=self._settings.max_outranked,
            nearly_done=self._settings.nearly_done.total_seconds(),
            grow_after=self._settings.grow_after.total_seconds(),
        )

    # Writing

    async def _write(self, tx: Transaction, view: _View) -> list[str]:
        for job_id in view.overdue:
            await self._give_up(tx, job_id)
        started = [job_id for job_id in list(view.plan.start)[:AT_ONCE] if job_id not in view.overdue]
        for job_id in started:
            await self._start(tx, view.queued[job_id], view.plan.start[job_id], out_of_turn=job_id == view.plan.out_of_turn)
        for job_id in view.plan.preempt:
            await self._ask_to_leave(tx, job_id, Departure.OUTRANKED)
        if view.plan.grow is not None:
            await self._ask_to_leave(tx, view.plan.grow, Departure.GROWING)
        if view.plan.reserved != view.reserved:
            await tx.reserve(view.plan.reserved)
        if view.reasons:
            await tx.set_reasons(view.reasons)
        return started

    async def _start(self, tx: Transaction, queued: Queued, given: Gang, *, out_of_turn: bool) -> None:
        job = await self._still_queued(tx, queued.id)
        asked = job.spec.tunesmith.resources.workers
        claimed = advance(
            job,
            JobStatus.STARTING,
            epoch=job.epoch + 1,
            lease_owner=self._owner,
            reason="starting the workers",
            progress=job.progress.model_copy(update={"workers": given.workers if given.workers != asked else None}),
        )
        notices = [Notice(f"Starting run {claimed.epoch}")] if claimed.epoch > 1 else []
        notices += [Notice(f"Starting with {given.workers} of {asked} workers")] if given.workers != asked else []
        claimed = await tx.apply(job, claimed, notices)
        await tx.lease(claimed, self._owner, self._settings.lease_ttl)
        await tx.insert_run(job.id, claimed.epoch, token_sha256="", out_of_turn=out_of_turn)
        self._metrics.queue_waited(max(0.0, tx.time - queued.waiting_since))

    async def _ask_to_leave(self, tx: Transaction, job_id: str, why: Departure) -> None:
        """The driver of the job, whosever it is, sees the mark and looks after the rest."""
        job = await tx.any_job(job_id, lock=True)
        if job.status not in (JobStatus.STARTING, JobStatus.RUNNING):
            return
        await tx.ask_to_leave(job.id, job.epoch, why)
        await tx.apply(job, *leaving_job(job, why))

    async def _give_up(self, tx: Transaction, job_id: str) -> None:
        job = await self._still_queued(tx, job_id)
        failed, notices = failed_job(job, limit_error(Departure.DEADLINE, job, await tx.last_saved(job_id)), tx.time)
        await tx.apply(job, failed, notices)

    async def _still_queued(self, tx: Transaction, job_id: str) -> Job:
        job = await tx.any_job(job_id, lock=True)
        if job.status is not JobStatus.QUEUED:
            raise Stale(job_id)  # its owner was faster; look again
        return job


def _running(job: Job, held: Holding, capacity: Capacity, now: float) -> Running:
    whole = gang(job.spec.tunesmith.resources, capacity)
    return Running(
        job.id,
        job.project_id,
        gang_of(job, capacity),
        job.spec.tunesmith.priority,
        held.created_at,
        job.progress.eta_seconds,
        held.preemptions,
        leaving=held.leaving is not None or job.status in (JobStatus.PAUSING, JobStatus.CANCELLING),
        out_of_turn=held.out_of_turn,
        whole=whole if job.progress.workers else None,
        rows=job.resolved.batch_size if job.resolved else whole.workers,
    )


def _waiting(job: Queued, capacity: Capacity) -> Waiting:
    asked = gang(job.resources, capacity)
    return Waiting(
        job.id,
        job.project_id,
        asked,
        job.priority,
        job.queued_at,
        job.n,
        job.waiting_since,
        least=job.resources.min_workers,
        rows=job.batch_size or asked.workers,
        duration=job.max_duration,
    )


def _about(seconds: float) -> int:
    """Rounded up to tens, for each change of the words is a write."""
    return 10 * max(1, math.ceil(seconds / 10))


def _cause(reason: str) -> str:
    return reason.partition(": ")[2] or reason or "the last run was lost"
