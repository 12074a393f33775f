"""Optimizer state in files: the same numbers as torch's own AdamW, no memory kept, nothing left behind, clear words where it can't be."""

from __future__ import annotations

import errno
import gc
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from bench.memory_rank import CLEAR, resident
from tests.on_disk import directory_on_disk
from tests.small_disk import small_disk_at
from trainers import mapped
from trainers.engine import adamw
from trainers.failure import TrainingFailed, classify
from trainers.mapped import MappedAdamW, StateFiles, file_system, state_directory
from trainers.state import MOMENTS


@pytest.fixture
def disk() -> Iterator[Path]:
    with directory_on_disk() as directory:
        yield directory


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapped, "PIECE", 1 << 14)


def resident_pages(tensor: torch.Tensor) -> int:
    """Bytes of the tensor's mapping that are resident in this process."""
    lines = iter(Path("/proc/self/smaps").read_text().splitlines())
    next(line for line in lines if line.startswith(f"{tensor.data_ptr():x}-"))
    return 1024 * int(next(line for line in lines if line.startswith("Rss:")).split()[1])


def optimizer(part: nn.Parameter, files: StateFiles | None) -> torch.optim.AdamW:
    made = adamw([part], 0.1, torch.optim.AdamW if files is None else partial(MappedAdamW, files=files))
    made.state[part]["step"] = torch.tensor(0.0)
    if isinstance(made, MappedAdamW):
        made.adopt(part)
    else:
        made.state[part].update({name: torch.zeros_like(part) for name in MOMENTS})
    return made


def test_a_step_in_pieces_is_torchs_own(disk: Path, small_pieces: None) -> None:
    torch.manual_seed(0)
    plain, kept = (nn.Parameter(start) for start in torch.randn(100_003).repeat(2, 1).unbind())
    both = ((plain, optimizer(plain, None)), (kept, optimizer(kept, StateFiles(disk))))
    for step in range(3):
        gradient = torch.randn(100_003)
        for part, stepped in both:
            part.grad = gradient.clone()
            stepped.param_groups[0]["lr"] = 1e-2 / (1 + step)
            stepped.step()
    assert torch.equal(plain, kept)
    for name in ("step", *MOMENTS):
        assert torch.equal(*(stepped.state[part][name] for part, stepped in both)), name


def test_a_step_leaves_no_page_and_peaks_at_a_few_pieces(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapped, "PIECE", 1 << 20)
    numbers = 12 << 20  # 144 MiB of state, 12 MiB of it at a time
    part = nn.Parameter(torch.ones(numbers))
    stepped = optimizer(part, StateFiles(disk))
    part.grad = torch.ones(numbers)
    CLEAR.write_text("5")  # the high-water mark begins anew
    before = resident()
    stepped.step()
    assert resident() - before < 36 << 20
    assert [resident_pages(tensor) for tensor in (part, *(stepped.state[part][name] for name in MOMENTS))] == [0, 0, 0]
    assert torch.allclose(stepped.state[part]["exp_avg"], torch.tensor(0.1)), "the file has what the memory had"
    assert resident_pages(stepped.state[part]["exp_avg"]) == 4 * numbers
    stepped.step()
    assert resident_pages(stepped.state[part]["exp_avg"]) == 0, "what was looked at between two steps goes too"


def test_a_piece_that_begins_within_a_page_is_given_back(disk: Path) -> None:
    files = StateFiles(disk)
    tensor = files.moved(torch.arange(5000.0))
    piece = tensor[1500:3500]
    assert float(piece.sum()) == sum(range(1500, 3500))
    files.give_back(piece)
    assert resident_pages(tensor) <= 8192
    assert torch.equal(tensor, torch.arange(5000.0))


def test_files_have_no_name_and_end_with_what_refers_to_them(disk: Path) -> None:
    files = StateFiles(disk)
    tensor = files.zeros(4096)
    tensor.fill_(1.0)
    assert list(disk.iterdir()) == []
    assert str(disk) in Path("/proc/self/maps").read_text()
    files.forget()
    gc.collect()
    assert float(tensor.sum()) == 4096, "a tensor keeps its own file"
    del tensor
    gc.collect()
    assert str(disk) not in Path("/proc/self/maps").read_text()


def test_a_disk_without_room_is_told_before_anything_is_mapped(tmp_path: Path) -> None:
    with small_disk_at(tmp_path / "small", 1) as disk:
        free = os.statvfs(disk).f_bfree
        files = StateFiles(disk)
        with pytest.raises(OSError, match=r"No space left on device: 4194304 bytes of optimizer state") as full:
            files.zeros(1 << 20)
        assert full.value.errno == errno.ENOSPC
        failed = classify(full.value)
        assert (failed.code, failed.cause) == ("storage_full", "resource")
        assert os.statvfs(disk).f_bfree == free


def test_a_directory_in_memory_is_refused(tmp_path: Path) -> None:
    with small_disk_at(tmp_path / "memory", 1) as memory:
        assert file_system(memory) == "tmpfs"
        with pytest.raises(TrainingFailed, match="tmpfs, which is memory") as failure:
            state_directory(memory / "state")
    assert (failure.value.code, failure.value.cause) == ("nvme_unusable", "config")
    assert "TUNESMITH_NVME_DIR" in failure.value.hint


def test_the_directory_is_made_for_its_owner_alone(disk: Path) -> None:
    assert state_directory(disk / "a" / "b") == disk / "a" / "b"
    assert (disk / "a" / "b").stat().st_mode & 0o777 == 0o700


def test_a_directory_that_will_not_do_is_told_why(disk: Path) -> None:
    with pytest.raises(TrainingFailed, match="TUNESMITH_NVME_DIR is not set"):
        state_directory(None)
    (disk / "file").touch()
    with pytest.raises(TrainingFailed, match="can't be used for optimizer state"):
        state_directory(disk / "file")
    if os.getuid() == 0:
        (disk / "others").mkdir()
        os.chown(disk / "others", 12345, 12345)
    with pytest.raises(TrainingFailed, match="belongs to another user"):
        state_directory(disk / "others" if os.getuid() == 0 else Path("/"))
