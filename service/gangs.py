"""How many cores and GPUs a job's gang of workers takes, and whether they are free. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from service.runtime import Capacity
from trainers.spec import ResourceSpec


@dataclass(frozen=True, slots=True)
class Gang:
    """All the workers of a run: they start together or not at all."""

    workers: int
    cpus_per_worker: int
    gpus_per_worker: int

    @property
    def cpus(self) -> int:
        """Cores of the whole gang."""
        return self.workers * self.cpus_per_worker

    @property
    def gpus(self) -> int:
        """GPUs of the whole gang."""
        return self.workers * self.gpus_per_worker


def gang(resources: ResourceSpec, capacity: Capacity) -> Gang:
    """The gang a job asks for; cores left open are the node's, shared evenly.

    On the processor a worker with all cores beats two with half of them each, so one worker takes a
    whole node; beside a GPU it takes that GPU's share of the cores.
    """
    cpus = resources.cpus_per_worker
    if cpus is None:
        per_node = capacity.cpus / max(1, capacity.nodes)
        if resources.gpus_per_worker:
            gpus_per_node = max(1.0, capacity.gpus / max(1, capacity.nodes))
            cpus = int(per_node * resources.gpus_per_worker / gpus_per_node)
        else:
            workers_per_node = -(-resources.workers // max(1, capacity.nodes))
            cpus = int(per_node / workers_per_node)
    return Gang(resources.workers, max(1, cpus), resources.gpus_per_worker)


def shortage(wanted: Gang, total: Capacity, used: list[Gang]) -> str:
    """Why the gang can't start now, in words; empty when it can."""
    never = _lacks(wanted, total.cpus, total.gpus)
    if never:
        return f"waiting for {never} in all: the cluster is too small for this job"
    now = _lacks(wanted, total.cpus - sum(g.cpus for g in used), total.gpus - sum(g.gpus for g in used))
    return f"waiting for {now} free" if now else ""


def fits_ever(wanted: Gang, total: Capacity) -> bool:
    """Whether an empty cluster could hold the gang."""
    return not _lacks(wanted, total.cpus, total.gpus)


def _lacks(wanted: Gang, cpus: float, gpus: float) -> str:
    if wanted.gpus > gpus:
        return f"{_count(wanted.gpus, 'GPU')}, {max(0, int(gpus))}"
    if wanted.cpus > cpus:
        return f"{_count(wanted.cpus, 'processor core')}, {max(0, int(cpus))}"
    return ""


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
