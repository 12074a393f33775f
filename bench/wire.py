"""What the collectives of this process cost: how many, how long the computation waits in them, and the bytes they send.

Looks at the process group from below, so it sees torch's own collectives and DeepSpeed's alike. Bytes are those that the
kernel says this process's TCP connections have sent and the peer has acknowledged. Called by `scaling_rank`.
"""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

COLLECTIVES = ("allreduce", "all_gather", "allgather", "_allgather", "reduce", "reduce_scatter", "_reduce_scatter", "broadcast")
COLLECTIVES += ("alltoall", "all_to_all")
BYTES_ACKED = 120
"""Offset of tcpi_bytes_acked in struct tcp_info (linux/tcp.h)."""
Span = tuple[torch.cuda.Event, torch.cuda.Event]


class Waiting:
    """How long this process's computation was held by collectives, from `watch` on."""

    def __init__(self, device: torch.device) -> None:
        self.calls = 0
        self._on_gpu, self._seconds = device.type == "cuda", 0.0
        self._spans: list[Span] = []

    @classmethod
    def watch(cls, device: torch.device) -> Waiting:
        """Put a clock on every collective of this process, and on every wait for one."""
        clock = cls(device)
        for name in dir(dist.ProcessGroup):
            if name.startswith(COLLECTIVES):
                setattr(dist.ProcessGroup, name, clock._timed(getattr(dist.ProcessGroup, name), counts=True))
        dist.Work.wait = clock._timed(dist.Work.wait, counts=False)
        return clock

    def seconds(self) -> float:
        """Until now; on a GPU the device's own time, which this waits for."""
        if self._spans:
            torch.cuda.synchronize()
            self._seconds += sum(began.elapsed_time(ended) for began, ended in self._spans) / 1000
            self._spans.clear()
        return self._seconds

    def _timed(self, call: Callable[..., Any], *, counts: bool) -> Callable[..., Any]:
        def timed(*arguments: Any, **named: Any) -> Any:
            self.calls += counts
            began = self._now()
            try:
                return call(*arguments, **named)
            finally:
                self._add(began, self._now())

        return timed

    def _now(self) -> Any:
        """A collective of NCCL returns at once: what it holds up is the stream."""
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _add(self, began: Any, ended: Any) -> None:
        if self._on_gpu:
            self._spans.append((began, ended))
        else:
            self._seconds += ended - began


def sent_by_this_process() -> int:
    """Bytes over all TCP connections that are open now; Linux alone knows."""
    total = 0
    for name in os.listdir("/proc/self/fd"):
        try:
            if os.readlink(f"/proc/self/fd/{name}").startswith("socket:"):
                total += _acknowledged(int(name))
        except OSError:
            continue  # closed since, or no connection of TCP's
    return total


def _acknowledged(descriptor: int) -> int:
    with socket.socket(fileno=os.dup(descriptor)) as copy:
        if copy.family not in (socket.AF_INET, socket.AF_INET6) or copy.type != socket.SOCK_STREAM:
            return 0
        return struct.unpack_from("Q", copy.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256), BYTES_ACKED)[0]
