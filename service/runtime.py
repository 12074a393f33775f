"""Where runs execute, as the scheduler sees it: `Runtime`. Knows no Ray; `ray_runtime.RayRuntime` is the one that does."""

from __future__ import annotations

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
class Capacity:
    """What the cluster has in all, whether in use or not."""

    cpus: float
    gpus: float
    nodes: int
    memory_bytes: int | None = None
    """Of the node that has the least; None where it is not told."""
    gpu_types: tuple[str, ...] = ()
    """As Ray names them."""


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
