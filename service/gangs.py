"""What a job's gang of workers takes, and on which nodes it would fit: all workers or none. Pure bin packing.

A worker never spans nodes, so what counts is how many workers each node has room for. Where the gangs that run lie is not
known; they are packed anew, in the order given, each time. Ray decides the true placement: see docs/decisions/0023.
Called by the scheduler, the driver and estimates.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

from service.jobs import Job
from service.runtime import Capacity, Node
from trainers.spec import ResourceSpec

Placement = Literal["pack", "spread", "strict_pack", "strict_spread"]
TOO_SMALL = "the cluster is too small for this job"


@dataclass(frozen=True, slots=True)
class Gang:
    """All the workers of a run: they start together or not at all."""

    workers: int
    cpus_per_worker: int
    gpus_per_worker: int
    placement: Placement = "pack"
    accelerator_type: str | None = None
    labels: tuple[tuple[str, str], ...] = ()
    replica: int = 1
    """Workers that share rows: there are always whole replicas."""

    @property
    def cpus(self) -> int:
        """Cores of the whole gang."""
        return self.workers * self.cpus_per_worker

    @property
    def gpus(self) -> int:
        """GPUs of the whole gang."""
        return self.workers * self.gpus_per_worker

    def may_use(self, node: Node) -> bool:
        """Whether the node is of the kind that the job asks for, busy or not."""
        return self.accelerator_type in (None, node.gpu_type) and set(self.labels) <= set(node.labels)


@dataclass(frozen=True, slots=True)
class Free:
    """What one node has left. Below zero where more is promised than there is."""

    node: Node
    cpus: float
    gpus: float

    def room(self, wanted: Gang) -> int:
        """Workers of the gang that the node can take now."""
        if not wanted.may_use(self.node):
            return 0
        by_cpus = int(self.cpus // wanted.cpus_per_worker)
        return max(0, min(by_cpus, int(self.gpus // wanted.gpus_per_worker)) if wanted.gpus_per_worker else by_cpus)

    def without(self, wanted: Gang, workers: int) -> Free:
        """The node after it has taken so many workers."""
        return replace(self, cpus=self.cpus - workers * wanted.cpus_per_worker, gpus=self.gpus - workers * wanted.gpus_per_worker)


def gang(resources: ResourceSpec, capacity: Capacity) -> Gang:
    """The gang a job asks for; cores left open are the largest share of a node with which all workers fit an empty cluster.

    On the processor a worker with all cores beats two with half of them each, so one worker takes a
    whole node; beside a GPU it takes that GPU's share of the cores.
    """
    asked = Gang(
        resources.workers,
        resources.cpus_per_worker or 1,
        resources.gpus_per_worker,
        resources.placement,
        resources.accelerator_type,
        tuple(sorted(resources.labels.items())),
        resources.sequence_parallel,
    )
    return asked if resources.cpus_per_worker is not None else _with_open_cores(asked, capacity.each)


class Packing:
    """Gangs laid on the nodes of a cluster, each under a name, as Ray would lay them one after the other."""

    def __init__(self, total: Capacity) -> None:
        self._empty = tuple(_empty(total.each))
        self._left = list(self._empty)
        self._laid: dict[str, tuple[Gang, dict[int, int]]] = {}

    def copy(self) -> Packing:
        """The same gangs on the same nodes, to be changed apart from this one."""
        other = Packing.__new__(Packing)
        other._empty, other._left, other._laid = self._empty, list(self._left), dict(self._laid)
        return other

    def __len__(self) -> int:
        return len(self._laid)

    def __contains__(self, name: str) -> bool:
        return name in self._laid

    def take(self, name: str, gang: Gang) -> None:
        """Lay the gang down, also where it does not fit: more is promised then than there is."""
        self._laid[name] = gang, _pack(gang, self._left)

    def release(self, name: str) -> None:
        """The gang is gone from where it lay."""
        gang, nodes = self._laid.pop(name)
        for at, workers in nodes.items():
            self._left[at] = self._left[at].without(gang, -workers)

    def fits(self, wanted: Gang) -> bool:
        """Whether all workers of the gang have room now."""
        return _fits(wanted, self._left)

    def fits_empty(self, wanted: Gang) -> bool:
        """Whether the gang would have room, were it alone."""
        return _fits(wanted, self._empty)

    def shortage(self, wanted: Gang) -> str:
        """Why the gang can't start now, in words; empty when it can."""
        if not self.fits_empty(wanted):
            return f"{_never(wanted, self._empty)}: {TOO_SMALL}"
        if self.fits(wanted):
            return ""
        lacking = _lacks(wanted, self._left)
        return f"waiting for {lacking} free" if lacking else f"waiting for {_places(wanted, self._left)}"


def shortage(wanted: Gang, total: Capacity, used: Iterable[Gang]) -> str:
    """Why the gang can't start beside the `used` ones, in words; empty when it can."""
    packing = Packing(total)
    for number, each in enumerate(used):
        packing.take(str(number), each)
    return packing.shortage(wanted)


def fits_ever(wanted: Gang, total: Capacity) -> bool:
    """Whether an empty cluster could hold the gang."""
    return _fits(wanted, _empty(total.each))


def most_together(wanted: Gang, total: Capacity) -> int:
    """The most workers of the gang that may come to lie on one node; at least 1."""
    if wanted.placement == "strict_spread":
        return 1
    return max(1, min(wanted.workers, max((free.room(wanted) for free in _empty(total.each)), default=1)))


def gang_of(job: Job, capacity: Capacity) -> Gang:
    """The gang of a job's latest run: as asked for, or as many of it as there was room for."""
    asked = gang(job.spec.tunesmith.resources, capacity)
    return replace(asked, workers=job.progress.workers or asked.workers)


def granted(wanted: Gang, least: int, rows: int, packings: Sequence[Packing]) -> Gang | None:
    """The part of a gang that can start in all the packings: the whole, or at least `least` workers of it; None when not even they fit.

    The global batch of `rows` stays as it is. Of the numbers with which the busiest replica has the same rows, the smallest is taken:
    with 8 rows 7 workers are no faster than 4.
    """
    step = wanted.replica

    def fit(workers: int) -> bool:
        return all(packing.fits(replace(wanted, workers=workers)) for packing in packings)

    if fit(wanted.workers):
        return wanted
    most = next((workers for workers in range(wanted.workers - step, least - 1, -step) if fit(workers)), None)
    return None if most is None else replace(wanted, workers=max(least, step * -(-rows // -(-rows // (most // step)))))


# Cores


@lru_cache(maxsize=256)
def _with_open_cores(asked: Gang, nodes: tuple[Node, ...]) -> Gang:
    for cores in sorted(_shares(asked, nodes), reverse=True):
        wanted = replace(asked, cpus_per_worker=cores)
        if _fits(wanted, _empty(nodes)):
            return wanted
    return asked


def _shares(asked: Gang, nodes: Sequence[Node]) -> set[int]:
    """The cores that a worker can have when some node is shared evenly."""
    usable = {(node.cpus, node.gpus) for node in nodes if asked.may_use(node)}
    if asked.gpus_per_worker:
        return {max(1, int(cpus * asked.gpus_per_worker / gpus)) for cpus, gpus in usable if gpus >= asked.gpus_per_worker}
    return {int(cpus / workers) for cpus, _ in usable for workers in range(1, min(asked.workers, int(cpus)) + 1)}


# Packing


def _empty(nodes: Sequence[Node]) -> list[Free]:
    return [Free(node, node.cpus, node.gpus) for node in nodes]


def _fits(wanted: Gang, left: Sequence[Free]) -> bool:
    rooms = [free.room(wanted) for free in left]
    if wanted.placement == "strict_pack":
        return max(rooms, default=0) >= wanted.workers
    if wanted.placement == "strict_spread":
        return sum(room > 0 for room in rooms) >= wanted.workers
    return sum(rooms) >= wanted.workers


def _pack(gang: Gang, left: list[Free]) -> dict[int, int]:
    """Take the gang's part from the nodes: how many workers lie on which. Those that fit nowhere go where most is left."""
    unplaced, laid = gang.workers, dict[int, int]()
    while unplaced:
        rooms = [free.room(gang) for free in left]
        at = _next_node(gang, left, rooms, unplaced)
        if at is None:
            break
        taken = 1 if "spread" in gang.placement else max(1, min(unplaced, rooms[at]))
        left[at] = left[at].without(gang, taken)
        laid[at] = laid.get(at, 0) + taken
        unplaced -= taken
    return laid


def _next_node(gang: Gang, left: list[Free], rooms: list[int], unplaced: int) -> int | None:
    """Packed: the tightest node that holds the rest, else the roomiest; without need for GPUs, one that has none. Spread: the roomiest."""
    usable = [at for at, free in enumerate(left) if gang.may_use(free.node)]
    if not usable:
        return None

    def leaves_gpus(at: int) -> bool:
        return bool(gang.gpus_per_worker) or not left[at].node.gpus

    whole = [at for at in usable if rooms[at] >= unplaced]
    if whole and "spread" not in gang.placement:
        return min(whole, key=lambda at: (not leaves_gpus(at), rooms[at], at))
    return max(usable, key=lambda at: (rooms[at] > 0, leaves_gpus(at), rooms[at], left[at].gpus, left[at].cpus, -at))


# Words


def _never(wanted: Gang, empty: Sequence[Free]) -> str:
    if wanted.accelerator_type and not any(free.node.gpu_type == wanted.accelerator_type for free in empty):
        return f"no node has {_an(wanted.accelerator_type)}"
    if not any(wanted.may_use(free.node) for free in empty):
        return f"no node has {_kind(wanted)}"
    lacking = _lacks(wanted, empty)
    return f"waiting for {lacking} in all" if lacking else f"waiting for {_places(wanted, empty)}"


def _lacks(wanted: Gang, left: Sequence[Free]) -> str:
    """Which sum is too small, all nodes of the right kind together; empty when it is only how they lie."""
    usable = [free for free in left if wanted.may_use(free.node)]
    gpus, cpus = (int(sum(max(0.0, number) for number in numbers)) for numbers in ((f.gpus for f in usable), (f.cpus for f in usable)))
    if wanted.gpus > gpus:
        return f"{_count(wanted.gpus, wanted.accelerator_type or 'GPU')}, {gpus}"
    if wanted.cpus > cpus:
        return f"{_count(wanted.cpus, 'processor core')}, {cpus}"
    return ""


def _places(wanted: Gang, left: Sequence[Free]) -> str:
    """What no set of nodes has room for: "2 workers with 4 GPUs each: 1 node has room"."""
    rooms = [room for free in left if (room := free.room(wanted))]
    noun, number = ("GPU", wanted.gpus_per_worker) if wanted.gpus_per_worker else ("processor core", wanted.cpus_per_worker)
    each = f"{_count(wanted.workers, 'worker')} with {_count(number, noun)}{' each' if wanted.workers > 1 else ''}"
    how = {"strict_pack": " on one node", "strict_spread": " on a node of its own"}.get(wanted.placement, "")
    nodes = {0: "no node has room", 1: "1 node has room"}.get(len(rooms), f"{len(rooms)} nodes have room")
    counted = f" for {sum(rooms)}" if sum(rooms) > len(rooms) and wanted.placement != "strict_spread" else ""
    return f"{each}{how}: {nodes}{counted}"


def _kind(wanted: Gang) -> str:
    labels = ", ".join(f"{name}={value}" for name, value in wanted.labels)
    told = [_an(wanted.accelerator_type)] if wanted.accelerator_type else []
    return " and ".join([*told, f"the label{'' if len(wanted.labels) == 1 else 's'} {labels}"])


def _an(word: str) -> str:
    return f"{'an' if word[0] in 'AEFHILMNORSX8' else 'a'} {word}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
