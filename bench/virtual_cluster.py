"""A cluster with a virtual clock, to which `service.queue.decide` or another policy gives work. No Ray, no database.

`bench/queue.py` measures with it, `tests/unit/test_queue_fairness.py` looks for starved jobs with it.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from service.gangs import Gang
from service.places import Places
from service.queue import Plan, Rules, Running, Waiting, decide
from service.quotas import Quotas
from service.runtime import Capacity
from service.shares import Held, Shares

LEAVING = 60.0
"""Seconds in which a preempted run writes its checkpoint and leaves."""
STARTING = 120.0
"""Seconds of each run until it trains: workers, base model, checkpoint."""
HALF_LIFE = 6 * 3600.0


@dataclass(slots=True)
class SimulatedJob:
    """A job with what it truly needs, which the policy does not see."""

    id: str
    project_id: str
    gang: Gang
    priority: int
    arrives: float
    work: float
    """Seconds of training, all runs together."""
    promise: float | None = None
    """Factor on what it truly needs that its estimate is; None tells none."""
    limit: float | None = None
    """Seconds it may run at most."""
    group: str = ""
    starts: list[float] = field(default_factory=list[float])
    ends: list[float] = field(default_factory=list[float])
    waits: list[float] = field(default_factory=list[float])
    left: float = 0.0
    waiting_since: float = 0.0
    leaving: bool = False
    out_of_turn: bool = False

    def waiting(self, n: int) -> Waiting:
        """As the policy sees it in the queue."""
        return Waiting(self.id, self.project_id, self.gang, self.priority, self.arrives, n, self.waiting_since, duration=self.limit)

    def running(self, now: float) -> Running:
        """As the policy sees it on its devices."""
        done_at = self.starts[-1] + STARTING + self.left
        remaining = None if self.promise is None else max(0.0, (done_at - now) * self.promise)
        told = (remaining, len(self.starts) - 1, self.leaving, self.out_of_turn)
        return Running(self.id, self.project_id, self.gang, self.priority, self.starts[-1], *told)


Policy = Callable[["VirtualCluster"], Plan]


@dataclass
class VirtualCluster:
    """Waiting and running jobs at `now`."""

    capacity: Capacity
    policy: Policy
    rules: Rules = field(default_factory=Rules)
    quotas: Mapping[str, Quotas] = field(default_factory=dict[str, Quotas])
    watch: Callable[[VirtualCluster, Plan], None] = lambda cluster, plan: None
    now: float = 0.0
    look: float = 30.0
    """Virtual seconds between two looks."""
    queue: dict[str, tuple[int, SimulatedJob]] = field(default_factory=dict[str, tuple[int, SimulatedJob]])
    busy: dict[str, SimulatedJob] = field(default_factory=dict[str, SimulatedJob])
    held: list[Held] = field(default_factory=list[Held])
    preemptions: int = 0
    reserved: str | None = None

    def run(self, jobs: Iterable[SimulatedJob]) -> None:
        """Until the last job is done, or no job can start any more."""
        events: list[tuple[float, int, str, SimulatedJob]] = []
        order = itertools.count()
        for job in jobs:
            job.left = job.work
            heapq.heappush(events, (job.arrives, next(order), "arrives", job))
        numbers = itertools.count()
        while events:
            # All that happens between two looks is seen at the second.
            self.now = max(self.now + self.look, events[0][0])
            while events and events[0][0] <= self.now:
                at, _, what, job = heapq.heappop(events)
                self._happen(at, what, job, next(numbers))
            plan = self.policy(self)
            self.watch(self, plan)
            self.reserved = plan.reserved
            for job_id in plan.start:
                started = self._start(job_id)
                started.out_of_turn = job_id == plan.out_of_turn
                heapq.heappush(events, (self.now + STARTING + started.left, next(order), f"ends{len(started.starts)}", started))
            for job_id in plan.preempt:
                leaver = self.busy[job_id]
                leaver.leaving = True
                heapq.heappush(events, (self.now + LEAVING, next(order), f"leaves{len(leaver.starts)}", leaver))

    def decide(self) -> Plan:
        """What the service would do now."""
        running = [job.running(self.now) for job in self.busy.values()]
        waiting = [job.waiting(n) for n, job in self.queue.values()]
        self.held = [held for held in self.held if held.ended_at is not None and held.ended_at > self.now - 5 * HALF_LIFE]
        now_held = [Held(job.project_id, job.gang, job.starts[-1], None) for job in self.busy.values()]
        shares = Shares([*self.held, *now_held], self.capacity, self.now, HALF_LIFE)
        places = Places(Quotas(), self.quotas, self.busy.values())
        return decide(waiting, running, self.capacity, places, shares, self.rules, self.now, self.reserved)

    def _happen(self, at: float, what: str, job: SimulatedJob, number: int) -> None:
        if what == "arrives":
            job.waiting_since = at
            self.queue[job.id] = (number, job)
        elif self.busy.get(job.id) is job and what.endswith(str(len(job.starts))):
            self._end(at, job)
            if what.startswith("leaves"):
                self.preemptions += 1
                job.left -= max(0.0, at - job.starts[-1] - STARTING)
                job.waiting_since = at
                self.queue[job.id] = (number, job)

    def _start(self, job_id: str) -> SimulatedJob:
        _, job = self.queue.pop(job_id)
        job.starts.append(self.now)
        job.waits.append(self.now - job.waiting_since)
        self.busy[job_id] = job
        return job

    def _end(self, at: float, job: SimulatedJob) -> None:
        del self.busy[job.id]
        job.ends.append(at)
        job.leaving = False
        self.held.append(Held(job.project_id, job.gang, job.starts[-1], at))
