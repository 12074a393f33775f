"""Optimizer state in files of the node's NVMe: float32 tensors over mapped files, and the AdamW that goes over them in pieces.

A file's space is allocated before it is mapped, so a full disk is an OSError and never a signal in the middle of a step, on
file systems that write in place (ext4 and xfs do, btrfs and zfs do not). It has no name, so nothing is left of it however the
process ends. Pages are given back as soon as they have been used, so a worker's resident memory does not grow by its state;
how much of the files the kernel keeps in memory beside that is its own choice, which it takes back when somebody needs room.
Called by `deepspeed_engine`, and by `run` for the directory; knows no DeepSpeed, model or job.
docs/decisions/0024-optimizer-state-on-nvme.md says why.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from trainers.failure import TrainingFailed
from trainers.state import MOMENTS

PIECE = 4 << 20
"""Numbers that a step has resident at a time of each tensor: few enough to be no matter, many enough for every core."""
IN_MEMORY = ("tmpfs", "ramfs")
"""File systems whose files are memory themselves."""
POPULATE_WRITE = 23
"""madvise(2)'s MADV_POPULATE_WRITE, which Python has no name for."""


def state_directory(named: Path | None) -> Path:
    """The operator's directory for state, made if need be. Raises TrainingFailed where there is none that will do."""
    if named is None:
        raise _unusable("the job keeps its optimizer state on NVMe, and TUNESMITH_NVME_DIR is not set on this node")
    try:
        named.mkdir(parents=True, exist_ok=True, mode=0o700)
        tempfile.TemporaryFile(dir=named).close()
    except OSError as error:
        raise _unusable(f"{named} can't be used for optimizer state: {error.strerror}") from error
    if named.stat().st_uid != os.getuid():
        raise _unusable(f"{named} belongs to another user")
    if (kind := file_system(named)) in IN_MEMORY:
        raise _unusable(f"{named} lies on {kind}, which is memory: optimizer state there would save nothing")
    return named


def _unusable(message: str) -> TrainingFailed:
    return TrainingFailed("nvme_unusable", message, "config")


def file_system(path: Path) -> str:
    """The kernel's name of the file system that the path lies on; empty where it lists no such device, as with subvolumes of btrfs."""
    device = path.stat().st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    for line in Path("/proc/self/mountinfo").read_text().splitlines():  # proc_pid_mountinfo(5)
        mount, _, kind = line.partition(" - ")
        if mount.split()[2] == number:
            return kind.split()[0]
    return ""


class StateFiles:
    """Tensors of one worker in files without names. A file lives as long as its tensor or this."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._maps: dict[int, mmap.mmap] = {}

    def zeros(self, numbers: int) -> Tensor:
        """[numbers] of float32. Raises OSError when the disk has no room for them."""
        size = 4 * numbers
        with tempfile.TemporaryFile(dir=self._directory, prefix="tunesmith-state-") as file:
            try:
                os.posix_fallocate(file.fileno(), 0, size)
            except OSError as error:
                raise OSError(error.errno, f"{error.strerror}: {size} bytes of optimizer state in {self._directory}") from error
            mapped = mmap.mmap(file.fileno(), size)
        tensor = torch.frombuffer(mapped, dtype=torch.float32)
        self._maps[tensor.data_ptr()] = mapped
        return tensor

    def moved(self, tensor: Tensor) -> Tensor:
        """The same numbers in a file."""
        target = self.zeros(tensor.numel())
        for here, there in zip(tensor.split(PIECE), target.split(PIECE), strict=True):
            there.copy_(here)
            self.give_back(there)
        return target

    def fetch(self, piece: Tensor) -> None:
        """All pages under a piece of one of the tensors at once, which costs half of what they cost one by one."""
        with suppress(OSError):  # Linux before 5.14 doesn't know it
            self._advise(POPULATE_WRITE, piece)

    def give_back(self, piece: Tensor) -> None:
        """The pages under a piece of one of the tensors: they leave this process, and stay in the file."""
        self._advise(mmap.MADV_DONTNEED, piece)

    def _advise(self, advice: int, piece: Tensor) -> None:
        base = piece.untyped_storage().data_ptr()
        first, end = piece.data_ptr() - base, piece.data_ptr() - base + 4 * piece.numel()
        start = first - first % mmap.PAGESIZE
        self._maps[base].madvise(advice, start, end - start)

    def give_all_back(self) -> None:
        """The pages of all tensors."""
        for mapped in self._maps.values():
            mapped.madvise(mmap.MADV_DONTNEED)

    def forget(self) -> None:
        """Each file ends with the last tensor over it, whoever still holds this."""
        self._maps.clear()


class MappedAdamW(torch.optim.AdamW):
    """torch's AdamW over flat float32 parts that lie in files, as their moments do. Pieces give the same numbers, for each is its own."""

    def __init__(self, parameters: Iterable[Tensor], *, files: StateFiles, **settings: Any) -> None:
        super().__init__(parameters, **settings)
        self.files = files

    def adopt(self, part: Tensor) -> None:
        """Move a part into a file, and give it moments of zero in two more."""
        part.data = self.files.moved(part.detach())
        self.state[part].update({name: self.files.zeros(part.numel()) for name in MOMENTS})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Update the parts that the groups name now. DeepSpeed names them one after the other, and reads each when it is updated."""
        assert closure is None
        self.files.give_all_back()
        for group in self.param_groups:
            for part in group["params"]:
                self._update(part, group)

    def _update(self, part: Tensor, group: dict[str, Any]) -> None:
        state = self.state[part]
        mapped = [part.detach(), *(state[name] for name in MOMENTS)]
        for gradient, *pieces in zip(*(tensor.split(PIECE) for tensor in (part.grad, *mapped)), strict=True):
            for piece in pieces:
                self.files.fetch(piece)
            number, average, square = pieces
            adamw(
                [number],
                [gradient],
                [average],
                [square],
                [],
                [state["step"].clone()],  # which the call counts up, piece by piece
                fused=True,
                amsgrad=False,
                beta1=group["betas"][0],
                beta2=group["betas"][1],
                lr=group["lr"],
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                maximize=False,
            )
            for piece in pieces:
                self.files.give_back(piece)
        state["step"] += 1
