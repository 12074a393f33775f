"""Where runs execute, as the scheduler sees it: `Runtime`. Knows no Ray; `ray_runtime.RayRuntime` is the one that does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from trainers.spec import RunSpec


class RunState(StrEnum):
    """What the runtime knows of a run."""

    UNKNOWN = "unknown"
    PENDING = "pending"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class Observation:
    """State of a run and whether anything of it still lives (driver, controller or worker)."""

    state: RunState
    alive: bool
    message: str = ""


@dataclass(frozen=True, slots=True)
class Node:
    """What one node has in all, whether in use or not."""

    cpus: float
    gpus: float = 0
    gpu_type: str | None = None
    """As Ray names it."""
    labels: tuple[tuple[str, str], ...] = ()
    """Name and value, sorted."""
    memory_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Capacity:
    """What the cluster has in all, whether in use or not."""

    cpus: float
    gpus: float
    nodes: int
    memory_bytes: int | None = None
    """Of the node that has the least; None where it is not told."""
    gpu_types: tuple[str, ...] = ()
    """As Ray names them."""
    by_node: tuple[Node, ...] = ()
    """Empty where only the sums are known."""

    @classmethod
    def of(cls, nodes: Sequence[Node]) -> Capacity:
        """The sums of these nodes, which can hold a worker each."""
        memory = [node.memory_bytes for node in nodes if node.memory_bytes]
        return cls(
            cpus=sum(node.cpus for node in nodes),
            gpus=sum(node.gpus for node in nodes),
            nodes=len(nodes),
            memory_bytes=min(memory) if len(memory) == len(nodes) else None,
            gpu_types=tuple(sorted({node.gpu_type for node in nodes if node.gpu_type})),
            by_node=tuple(nodes),
        )

    @property
    def each(self) -> tuple[Node, ...]:
        """Node by node; where only the sums are known they are taken for alike."""
        if self.by_node:
            return self.by_node
        kind = self.gpu_types[0] if len(self.gpu_types) == 1 else None
        return (Node(self.cpus / self.nodes, self.gpus / self.nodes, kind),) * self.nodes if self.nodes else ()


class RuntimeUnavailable(Exception):
    """The cluster can't be reached now; ask again later."""


class Runtime(Protocol):
    """Runs by their id, `<job>-<epoch>`. Every method raises RuntimeUnavailable when the cluster is away."""

    async def launch(self, spec: RunSpec) -> None:
        """Start the run; without effect when a run of this id is already known."""
        ...

    async def observe(self, run_id: str) -> Observation:
        """What has become of the run."""
        ...

    async def stop(self, run_id: str) -> None:
        """End the run and all its processes; returns before they are gone, see observe."""
        ...

    async def log_tail(self, run_id: str, lines: int = 50) -> list[str]:
        """The last lines the run wrote."""
        ...

    async def capacity(self) -> Capacity:
        """What there is to give."""
        ...

    async def live_runs(self) -> list[str]:
        """The ids of runs of which anything lives; on a shared cluster also those of another gateway."""
        ...
