"""One worker of a measured run, as a process of its own: the run that Ray would start, on cores (or a GPU) that are this worker's alone.

Started by `scaling`, which reads what each rank leaves in its answer. What a step is, is the service's own: `trainers.run.execute`.
"""

from __future__ import annotations

import gc
import json
import os
import time
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.distributed as dist

from bench.memory_rank import resident
from bench.wire import Waiting, sent_by_this_process
from protos.tunesmith.v1 import runs_pb2 as pb
from trainers import plan
from trainers.report import Silent
from trainers.run import Place, execute
from trainers.spec import RunSpec
from trainers.storage import open_storage


@dataclass(frozen=True)
class Order:
    """What every rank of one run is told."""

    spec: RunSpec
    tokens: int
    """Most tokens of a micro-batch."""
    cores: tuple[tuple[int, ...], ...]
    """Of each rank; on a GPU machine too, for its host's part."""
    port: int
    on_gpus: bool
    directory: Path
    """Where the ranks leave their answers, and keep what they fetch."""


@dataclass(frozen=True)
class Tick:
    """What a rank had used up at the end of a step."""

    seconds: float
    cpu_seconds: float
    waiting: float
    """Seconds in collectives."""
    calls: int
    """Collectives."""
    sent: int
    """Bytes."""


class Ticks(Silent):
    """Listens to the loop's reports, and looks at the clocks at the end of each step."""

    def __init__(self, waiting: Waiting) -> None:
        super().__init__()
        self.taken: list[Tick] = []
        self.peak = 0
        """Bytes that the run had taken at the most by the end of the last step, before it publishes."""
        self._waiting, self._start = waiting, resident("VmRSS")

    def tell(self, report: pb.RunReport) -> None:
        """A step is done."""
        if report.WhichOneof("body") == "step":
            waited = self._waiting.seconds()
            self.taken.append(Tick(time.perf_counter(), time.process_time(), waited, self._waiting.calls, sent_by_this_process()))
            on_gpu = torch.cuda.is_initialized()
            self.peak = torch.cuda.max_memory_allocated() if on_gpu else resident("VmHWM") - self._start


def work(order: Order, rank: int) -> None:
    """The whole run on this rank; leaves rank-<n>.json."""
    warnings.simplefilter("ignore")
    cores = order.cores[rank]
    os.sched_setaffinity(0, cores)  # before any thread is started, for those inherit it
    torch.set_num_threads(len(cores))
    plan.CPU_TOKENS = order.tokens  # what the plan takes for a micro-batch where memory suffices
    world_size = order.spec.tunesmith.resources.workers
    device = torch.device("cuda", rank) if order.on_gpus else torch.device("cpu")
    _meet(order, rank, world_size)
    gc.collect()
    ticks = Ticks(Waiting.watch(device))
    execute(order.spec, open_storage(order.spec.storage_url), ticks, Place(rank, world_size, device, order.directory / "cache"))
    if world_size > 1:
        dist.barrier()
    if dist.is_initialized():
        dist.destroy_process_group()
    answer = {"ticks": [asdict(tick) for tick in ticks.taken], "peak_bytes": ticks.peak}
    (order.directory / f"rank-{rank}.json").write_text(json.dumps(answer))


def _meet(order: Order, rank: int, world_size: int) -> None:
    """As Ray Train does it: one worker makes no group."""
    if order.on_gpus:
        torch.cuda.set_device(rank)
    if world_size > 1:
        where = f"tcp://127.0.0.1:{order.port}"
        dist.init_process_group("nccl" if order.on_gpus else "gloo", init_method=where, rank=rank, world_size=world_size)
