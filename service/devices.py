"""How fast a core or a GPU is and how much memory a GPU has: from settings, from its type, or measured once.

Knows no job. Called by estimating.py through the application layer.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache

import numpy as np

from service.estimate import Range
from service.runtime import Capacity
from service.settings import Settings
from trainers.plan import host_memory_bytes, worker_memory
from trainers.spec import ResourceSpec

GPUS: dict[str, tuple[float, float]] = {
    "A10G": (70, 22),
    "L4": (121, 22),
    "L40S": (362, 44),
    "A100": (312, 39),
    "A100-40G": (312, 39),
    "A100-80G": (312, 79),
    "H20": (148, 94),
    "H100": (989, 78),
    "H200": (989, 139),
    "B200": (2250, 178),
}
"""Dense bfloat16 TFLOP/s as their maker tells them and usable GiB, by Ray's name of the type; the least of those that share a name."""
CPU_USE, GPU_USE = (0.3, 1.6), (0.15, 0.6)
"""Share of the device's rate that training reaches; on a processor the trainer's products may be faster than those measured here, and
rows that share a prefix are computed once, so it may pass 1."""
MATRIX, TRIES = 768, 5
LASTS = timedelta(minutes=10)
"""How long a measurement counts."""


@dataclass(frozen=True, slots=True)
class Device:
    """One core or one GPU. None where nothing is known."""

    flops: Range | None
    """Floating-point operations a second that training reaches."""
    memory_bytes: int | None
    """Of a GPU; a core has none of its own."""
    known_by: str
    """Where the rate comes from, in words."""


def processor(settings: Settings) -> Device:
    """A core in float32. Blocks for a fraction of a second the first time, unless the rate is set."""
    if settings.cpu_gflops is not None:
        return Device(_reached(settings.cpu_gflops * 1e9, CPU_USE), None, f"{settings.cpu_gflops:g} GFLOP/s a core (setting cpu_gflops)")
    rate = core_flops()
    here = "" if settings.ray_address is None else ", taking the cluster's cores to be like the gateway's (or set cpu_gflops)"
    return Device(_reached(rate, CPU_USE), None, f"{rate / 1e9:.0f} GFLOP/s a core, measured on the gateway's machine{here}")


def node_memory(settings: Settings, capacity: Capacity | None) -> int | None:
    """Bytes of the node that has the least; None when the cluster can't be asked."""
    if settings.ray_address is None:
        return host_memory_bytes()
    return capacity.memory_bytes if capacity else None


def worker_bytes(settings: Settings, resources: ResourceSpec, capacity: Capacity | None) -> int | None:
    """What one worker may take, see trainers.plan.worker_memory; None where it is not known."""
    if resources.gpus_per_worker:
        return worker_memory(gpu(settings, capacity.gpu_types if capacity else ()).memory_bytes, resources)
    return worker_memory(node_memory(settings, capacity), resources)


def gpu(settings: Settings, types: tuple[str, ...]) -> Device:
    """A GPU in bfloat16; `types` as Ray names those of the cluster, of which the weakest counts."""
    known = [GPUS[name] for name in types if name in GPUS]
    complete = bool(known) and len(known) == len(types)
    memory = settings.gpu_memory_bytes or (int(min(gib for _, gib in known) * 2**30) if complete else None)
    if settings.gpu_tflops is not None:
        return Device(_reached(settings.gpu_tflops * 1e12, GPU_USE), memory, f"{settings.gpu_tflops:g} TFLOP/s a GPU (setting gpu_tflops)")
    if not complete:
        return Device(None, memory, "")
    rate = min(tflops for tflops, _ in known)
    return Device(_reached(rate * 1e12, GPU_USE), memory, f"{rate:g} TFLOP/s of a {' or '.join(types)}")


def _reached(rate: float, share: tuple[float, float]) -> Range:
    return Range(low=rate * share[0], high=rate * share[1])


def core_flops() -> float:
    """Float32 operations a second of one core of this machine, measured anew from time to time: it may have been busy."""
    return _measured(int(time.monotonic() / LASTS.total_seconds()))


@lru_cache(maxsize=1)
def _measured(_: int) -> float:
    """The best of a few matrix products on all cores."""
    matrix = np.ones((MATRIX, MATRIX), np.float32)
    seconds: list[float] = []
    for _ in range(TRIES):
        began = time.perf_counter()
        np.matmul(matrix, matrix)
        seconds.append(time.perf_counter() - began)
    return 2 * MATRIX**3 / min(seconds) / len(os.sched_getaffinity(0))
