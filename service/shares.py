"""How much of the cluster each project uses, and whose turn it is. Pure; made for one look of the scheduler.

A project's use is the share of the cluster that it holds now, plus its share on average over the recent past, in
which what is one half-life older counts half. A gang's share is that of the resource it takes most of
(dominant resource fairness, Ghodsi et al. 2011). All projects weigh the same.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from service.gangs import Gang
from service.runtime import Capacity


class Owned(Protocol):
    """What belongs to a project."""

    @property
    def project_id(self) -> str:
        """Whose it is."""
        ...


T = TypeVar("T", bound=Owned)


@dataclass(frozen=True, slots=True)
class Held:
    """Devices that a project's run held, or holds: `ended_at` is None."""

    project_id: str
    gang: Gang
    started_at: float
    ended_at: float | None


class Shares:
    """Use by project. `take` counts what is being started."""

    def __init__(self, held: Iterable[Held], capacity: Capacity, now: float, half_life: float) -> None:
        self._capacity = capacity
        self.used: dict[str, float] = {}
        for one in held:
            weight = _recent(one, now, half_life / math.log(2)) + (one.ended_at is None)
            self._add(one.project_id, self._share(one.gang) * weight)

    def take(self, project_id: str, gang: Gang) -> None:
        """One more gang of the project runs."""
        self._add(project_id, self._share(gang))

    def by_turns(self, jobs: Sequence[T]) -> Iterator[T]:
        """The jobs, each project's in the order given; next is always the project that uses least just then."""
        lines: dict[str, deque[T]] = {}
        for job in jobs:
            lines.setdefault(job.project_id, deque()).append(job)
        turns = [(self.used.get(project, 0.0), number, project) for number, project in enumerate(lines)]
        heapq.heapify(turns)
        while turns:
            used, number, project = turns[0]
            if used != self.used.get(project, 0.0):
                heapq.heapreplace(turns, (self.used[project], number, project))
                continue
            yield lines[project].popleft()
            if not lines[project]:
                heapq.heappop(turns)

    def _add(self, project_id: str, share: float) -> None:
        self.used[project_id] = self.used.get(project_id, 0.0) + share

    def _share(self, gang: Gang) -> float:
        return max(gang.cpus / max(1.0, self._capacity.cpus), gang.gpus / max(1.0, self._capacity.gpus))


def _recent(held: Held, now: float, scale: float) -> float:
    """The part of an exponential average over the past that falls into the time of the run; at most 1."""
    ended = min(now, held.ended_at if held.ended_at is not None else now)
    return math.exp((ended - now) / scale) - math.exp((min(held.started_at, ended) - now) / scale)
