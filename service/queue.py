"""What to start, what to preempt, and why every other job waits. Pure: frozen values in, a `Plan` out.

It knows no database, no Ray and no clock: `turns.Turns` asks it at each look, `bench/queue.py` drives it with a virtual clock.

**Order.** By priority; within a priority the project that uses least (see shares.py), within a project by arrival. The first job
that does not fit holds a reservation, and the next look takes it first among its priority, so that a large gang does not lose
its room to whichever project is next. Who comes after it may overtake only where that does not delay its reserved start, and
it alone preempts.

**Nobody starves.** Beside this order one job at a time is out of turn: of those that have waited longer than `Rules.patience` the one
that has waited longest. It is looked at first, is not preempted, and while it runs nobody else is put out of turn, so that in a
queue where everybody is late priorities and shares still hold. Its reservation is strict: it counts on the
longest-running gangs, in the order of their starts, whatever ends anybody promises. Whoever starts after it takes no more
than these leave over, so it starts at the latest when those end that ran when its turn came; no promise is needed for that, only
that a run ends. Those that have waited longer are finitely many: nobody joins them from behind, for the wait of a preempted
job counts anew, and each job is preempted at most `Rules.max_preemptions` times. A place of the service's limit and one of the project's
quota are parts of the reserved room.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from service.gangs import Gang, Packing, fits_ever, granted
from service.places import Places
from service.runtime import Capacity
from service.shares import Shares

SPOKEN = 200
"""Waiting jobs, the first in the order, that are told why they wait; the others have their place in the queue."""
DELAYS = "waiting for a larger job ahead of it, whose start it would delay"


@dataclass(frozen=True, slots=True)
class Waiting:
    """A job that could start now, were there room."""

    id: str
    project_id: str
    gang: Gang
    priority: int = 0
    queued_at: float = 0.0
    """Its place among jobs of its priority and project; kept by a job that comes back to the queue."""
    n: int = 0
    """Tells apart what came at the same time."""
    waiting_since: float = 0.0
    """When it last came into the queue."""
    least: int | None = None
    """Fewest workers that it may start with; None is all of them."""
    rows: int = 1
    """Its global batch."""
    duration: float | None = None
    """Seconds that it can't run longer than; None where nothing says so."""

    @property
    def smallest(self) -> Gang:
        """The fewest workers that it may start with."""
        return replace(self.gang, workers=self.least or self.gang.workers)


@dataclass(frozen=True, slots=True)
class Running:
    """A gang that holds its devices."""

    id: str
    project_id: str
    gang: Gang
    priority: int = 0
    started_at: float = 0.0
    remaining: float | None = None
    """Seconds it is expected to need yet; None where that is unknown."""
    preemptions: int = 0
    """Times that it was preempted before."""
    leaving: bool = False
    """It has been told to leave, for whichever reason."""
    out_of_turn: bool = False
    """It had waited too long."""
    whole: Gang | None = None
    """All that it asked for, where it has fewer workers."""
    rows: int = 1
    """Its global batch."""


@dataclass(frozen=True, slots=True)
class Rules:
    """What the operator has set. Seconds."""

    patience: float = 86400.0
    running_jobs: float = math.inf
    """Of the whole service."""
    max_preemptions: int = 3
    """Of one job; 0 preempts nobody."""
    nearly_done: float = 600.0
    """A run that needs no longer than this is not preempted, nor grown."""
    grow_after: float = 600.0
    """How long a run with fewer workers than its job asked for lasts before it may leave to go on with more."""


@dataclass(frozen=True, slots=True)
class Reservation:
    """When a job that has to wait will start, and who lies where then."""

    at: float
    """By the caller's clock; infinite where an end that it needs is unknown, or may not be counted on."""
    packing: Packing

    def concerns(self, ends: float) -> bool:
        """Whether a gang that ends then must leave the reserved room alone."""
        return not ends <= self.at < math.inf


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do now."""

    start: Mapping[str, Gang] = field(default_factory=dict[str, Gang])
    """Jobs, each with the workers that it gets, in the order of their claims."""
    preempt: Mapping[str, str] = field(default_factory=dict[str, str])
    """Jobs that are to leave, each with the job that it makes room for."""
    grow: str | None = None
    """A job that is to leave because it could go on with more workers."""
    reserved: str | None = None
    """The job that is to be looked at first among its priority the next time."""
    out_of_turn: str | None = None
    """The job that has waited too long and whose turn it is."""
    reasons: Mapping[str, str] = field(default_factory=dict[str, str])
    """Why the first of those that wait do so."""


def decide(
    waiting: Sequence[Waiting],
    running: Sequence[Running],
    capacity: Capacity,
    places: Places,
    shares: Shares,
    rules: Rules,
    now: float,
    reserved: str | None = None,
) -> Plan:
    """One look at the queue. `places` and `shares` are made for this look and count what it starts; `reserved` is of the last plan."""
    look = _Look(running, capacity, places, shares, rules, now)
    late = _overdue(waiting, running, capacity, places, rules, now)
    if late is not None:
        look.consider(late, strict=True)
    shapes = {(job.gang, job.least) for job in waiting}
    for job in _in_order([job for job in waiting if job is not late], shares, reserved):
        if look.through(shapes):
            break
        look.consider(job)
    return Plan(look.start, look.preempt, look.grown(), look.holder, late.id if late else None, look.reasons)


def _overdue(
    waiting: Sequence[Waiting], running: Sequence[Running], capacity: Capacity, places: Places, rules: Rules, now: float
) -> Waiting | None:
    """The job whose turn it is because it has waited too long; None while such a job runs."""
    if any(gang.out_of_turn for gang in running):
        return None
    late = [job for job in waiting if now - job.waiting_since > rules.patience]
    able = (job for job in late if not places.shortage(job.project_id) and fits_ever(job.smallest, capacity))
    return min(able, key=lambda job: (job.waiting_since, job.n), default=None)


def _in_order(waiting: Sequence[Waiting], shares: Shares, reserved: str | None) -> Iterator[Waiting]:
    """The jobs as they are to be considered; reads `shares` anew at each step, so that what was started counts."""
    classes: dict[int, list[Waiting]] = {}
    for job in waiting:
        classes.setdefault(job.priority, []).append(job)
    for priority in sorted(classes, reverse=True):
        first = [job for job in classes[priority] if job.id == reserved]
        yield from first
        rest = [job for job in classes[priority] if job.id != reserved] if first else classes[priority]
        yield from shares.by_turns(sorted(rest, key=lambda job: (job.queued_at, job.n)))


class _Look:
    """What one look has come to so far."""

    def __init__(self, running: Sequence[Running], capacity: Capacity, places: Places, shares: Shares, rules: Rules, now: float) -> None:
        self._running, self._places, self._shares, self._rules, self._now = list(running), places, shares, rules, now
        self._packing = Packing(capacity)
        for gang in running:
            self._packing.take(gang.id, gang.gang)
        self._reservations: list[Reservation] = []
        self._unfit: set[tuple[Gang, int | None]] = set()
        """Shapes that have no room any more: it only gets less within a look."""
        self.start: dict[str, Gang] = {}
        self.preempt: dict[str, str] = {}
        self.reasons: dict[str, str] = {}
        self.holder: str | None = None

    def through(self, shapes: set[tuple[Gang, int | None]]) -> bool:
        """Whether no further job can start or be told anything."""
        full = shapes <= self._unfit or not self._has_place(self._packing)
        return full and self.holder is not None and len(self.reasons) >= SPOKEN

    def consider(self, job: Waiting, *, strict: bool = False) -> None:
        """Start the job, or say why it waits. `strict`: it is out of turn."""
        reason = self._places.shortage(job.project_id) or self._never(job)
        if not reason:
            given = self._given(job)
            if given is not None:
                return self._start(job, given)
            reason = self._shortage(job)
            if strict or self.holder is None:
                reason += self._reserve(job, strict=strict)
        if len(self.reasons) < SPOKEN:
            self.reasons[job.id] = reason

    def _given(self, job: Waiting) -> Gang | None:
        """The workers that the job can have now without delaying a reserved start."""
        shape = job.gang, job.least
        if shape in self._unfit:
            return None
        ends = self._now + job.duration if job.duration is not None else math.inf
        packings = [self._packing, *(held.packing for held in self._reservations if held.concerns(ends))]
        if not self._holds(self._packing, job.smallest):
            self._unfit.add(shape)
            return None
        if not all(self._has_place(packing) for packing in packings):
            return None
        return granted(job.gang, job.smallest.workers, job.rows, packings)

    def _start(self, job: Waiting, given: Gang) -> None:
        self.start[job.id] = given
        self._running.append(Running(job.id, job.project_id, given, job.priority, self._now, job.duration))
        ends = self._now + job.duration if job.duration is not None else math.inf
        for packing in [self._packing, *(held.packing for held in self._reservations if held.concerns(ends))]:
            packing.take(job.id, given)
        self._places.take(job.project_id)
        self._shares.take(job.project_id, given)

    def _reserve(self, job: Waiting, *, strict: bool) -> str:
        """The room is the job's, with a place of its project's quota, and whoever must go for it goes. Words that tell of that."""
        victims = self._victims(job)
        held = self._reservation(job, {gang.id for gang in victims}, strict=strict)
        if held is None:
            return ""
        self._reservations.append(held)
        self._places.take(job.project_id)
        if not strict:
            self.holder = job.id
        self.preempt |= {gang.id: job.id for gang in victims}
        count = len(victims)
        return f": {count} job{'s' if count > 1 else ''} of lower priority make{'' if count > 1 else 's'} room" if count else ""

    def _reservation(self, job: Waiting, going: set[str], *, strict: bool) -> Reservation | None:
        """The earliest start of a gang that does not fit now, beside what is reserved already; None where that can't be told."""

        def end(gang: Running) -> float:
            if gang.leaving or gang.id in going:
                return self._now
            return math.inf if gang.remaining is None or strict else self._now + gang.remaining

        packing, at = (self._reservations[-1].packing if self._reservations else self._packing).copy(), self._now
        for gang in sorted((gang for gang in self._running if gang.id in packing), key=lambda gang: (end(gang), gang.started_at)):
            if self._holds(packing, job.smallest):
                break
            packing.release(gang.id)
            at = end(gang)
        if not self._holds(packing, job.smallest):
            return None
        packing.take(job.id, job.smallest)
        return Reservation(at, packing)

    # Preemption

    def _victims(self, job: Waiting) -> list[Running]:
        """Gangs of lower priority that make room for the whole of `job`'s; none when they can't, or when room is being made already.

        Lowest priority goes first, then the latest start; none is taken that is not needed, nor one whose room is reserved.
        """
        going = [gang for gang in self._running if gang.leaving]
        if self._makes_room(job, going):
            return []
        able = sorted((gang for gang in self._running if self._may_go(gang, job)), key=lambda gang: (gang.priority, -gang.started_at))
        chosen: list[Running] = []
        for gang in able:
            chosen.append(gang)
            if self._makes_room(job, going + chosen):
                return self._needed(job, going, chosen)
        return []

    def _may_go(self, gang: Running, job: Waiting) -> bool:
        nearly_done = gang.remaining is not None and gang.remaining <= self._rules.nearly_done
        kept = gang.leaving or gang.out_of_turn or gang.id in self.start or gang.id in self.preempt or nearly_done
        reserved = any(gang.id not in held.packing for held in self._reservations)
        return not kept and not reserved and gang.priority < job.priority and gang.preemptions < self._rules.max_preemptions

    def _makes_room(self, job: Waiting, going: Sequence[Running]) -> bool:
        """Whether the job could start once these have gone, beside what is reserved."""
        return all(self._holds(self._without(packing, going), job.smallest) for packing in self._packings())

    def _packings(self) -> list[Packing]:
        return [self._packing, *(held.packing for held in self._reservations)]

    def _without(self, packing: Packing, going: Sequence[Running]) -> Packing:
        left = packing.copy()
        for gang in going:
            if gang.id in left:
                left.release(gang.id)
        return left

    def _needed(self, job: Waiting, going: list[Running], chosen: list[Running]) -> list[Running]:
        """Without those that turn out not to be needed; the highest in priority and longest running are spared first."""
        for gang in reversed(list(chosen)):
            rest = [other for other in chosen if other is not gang]
            if self._makes_room(job, going + rest):
                chosen = rest
        return chosen

    # Growth

    def grown(self) -> str | None:
        """The first run that could have more workers, when nobody waits for the room."""
        if self._reservations or self.start:
            return None
        return next((gang.id for gang in self._running if gang.whole is not None and self._could_grow(gang, gang.whole)), None)

    def _could_grow(self, gang: Running, whole: Gang) -> bool:
        nearly_done = gang.remaining is not None and gang.remaining <= self._rules.nearly_done
        if gang.leaving or nearly_done or self._now - gang.started_at < self._rules.grow_after:
            return False
        given = granted(whole, gang.gang.workers, gang.rows, [self._without(self._packing, [gang])])
        return given is not None and given.workers > gang.gang.workers

    # Room

    def _has_place(self, packing: Packing) -> bool:
        return len(packing) < self._rules.running_jobs

    def _holds(self, packing: Packing, gang: Gang) -> bool:
        return self._has_place(packing) and packing.fits(gang)

    def _never(self, job: Waiting) -> str:
        return "" if self._packing.fits_empty(job.smallest) else self._packing.shortage(job.smallest)

    def _shortage(self, job: Waiting) -> str:
        if not self._has_place(self._packing):
            return f"the service runs {len(self._packing)} of {self._rules.running_jobs:.0f} jobs"
        return self._packing.shortage(job.smallest) or DELAYS
