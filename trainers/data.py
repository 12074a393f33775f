"""Tokenised datasets on disk, the order in which rows are seen, and batches.

Torch is needed by `collate` only. Knows nothing of chat, methods or models. The data check writes a
dataset once per content; the training loop and evaluation read it, memory-mapped.

On disk, little-endian, in one directory:
    ids.u32       [tokens] uint32       token ids of all rows, end to end
    weights.f16   [tokens] float16      weight of predicting each token; the first of each row is 0
    rows          [rows]   (int64 end, float32 trained)   where each row ends, and the sum of its weights
    meta.json     counts and the format's version; written last, so that it means completeness
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from trainers.method import Encoded

if TYPE_CHECKING:
    import torch

DATASET_FORMAT = 1
"""Version of the layout; part of the cache key, so a change here makes every dataset anew."""
Indices = npt.NDArray[np.int64]
IDS, WEIGHTS, ROWS, META = "ids.u32", "weights.f16", "rows", "meta.json"
FILES = (IDS, WEIGHTS, ROWS)
ROW_DTYPE = np.dtype([("end", "<i8"), ("trained", "<f4")])
MEGA_BATCH = 64
"""Batches whose rows are sorted by length together: long enough for near-equal lengths, short enough to stay shuffled."""


class DatasetUnreadable(ValueError):
    """The directory holds no complete dataset of this format."""


class DatasetWriter:
    """Appends rows to a new dataset in constant memory. Use it as a context; leaving it by an error leaves no meta.json."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        (directory / META).unlink(missing_ok=True)
        self.directory = directory
        self._ids, self._weights, self._rows = (open(directory / name, "wb") for name in FILES)  # noqa: SIM115  (closed in __exit__)
        self._end, self._longest, self._count, self._trained = 0, 0, 0, 0
        self._discarded = False

    def append(self, row: Encoded) -> None:
        """Add one row of at least one token."""
        assert len(row) > 0, "a row has tokens"
        weights = row.weights.astype("<f2")
        self._end += len(row)
        self._count += 1
        self._longest = max(self._longest, len(row))
        self._trained += int(np.count_nonzero(weights))
        self._ids.write(row.input_ids.astype("<u4").tobytes())
        self._weights.write(weights.tobytes())
        self._rows.write(struct.pack("<qf", self._end, weights.sum(dtype=np.float32)))

    def discard(self) -> None:
        """Give up: close and remove what was written. Leaving the context afterwards does nothing more."""
        self._discarded = True
        for file, name in zip((self._ids, self._weights, self._rows), FILES, strict=True):
            _close(file, durable=False)
            (self.directory / name).unlink()

    def __enter__(self) -> DatasetWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._discarded:
            return
        for file in (self._ids, self._weights, self._rows):
            _close(file, durable=kind is None)
        if kind is None:
            self._write_meta()

    def _write_meta(self) -> None:
        meta = {
            "format": DATASET_FORMAT,
            "rows": self._count,
            "tokens": self._end,
            "trained_tokens": self._trained,
            "longest": self._longest,
        }
        with open(self.directory / META, "w", encoding="utf-8") as file:
            json.dump(meta, file)
            _close(file, durable=True)


def _close(file: IO[Any], *, durable: bool) -> None:
    with file:
        file.flush()
        if durable:
            os.fsync(file.fileno())


@dataclass(frozen=True, slots=True)
class TokenisedDataset:
    """A dataset as memory maps: nothing is read before it is asked for."""

    ids: npt.NDArray[np.uint32]
    """[tokens]"""
    weights: npt.NDArray[np.float16]
    """[tokens]"""
    ends: Indices
    """[rows] position after each row's last token."""
    trained: npt.NDArray[np.float32]
    """[rows] sum of the row's weights."""
    trained_tokens: int
    """Tokens with a weight above 0."""

    @classmethod
    def open(cls, directory: Path) -> TokenisedDataset:
        """The dataset in `directory`. Raises DatasetUnreadable when it is incomplete, damaged in size or of another format."""
        meta = _read_meta(directory)
        rows = _map(directory / ROWS, ROW_DTYPE, meta["rows"])
        ids = _map(directory / IDS, np.dtype("<u4"), meta["tokens"])
        weights = _map(directory / WEIGHTS, np.dtype("<f2"), meta["tokens"])
        if len(rows) and int(rows["end"][-1]) != meta["tokens"]:
            raise DatasetUnreadable(f"{directory / ROWS} does not end where the tokens end")
        return cls(ids, weights, rows["end"], rows["trained"], meta["trained_tokens"])

    def __len__(self) -> int:
        return len(self.ends)

    @property
    def lengths(self) -> Indices:
        """[rows] tokens of each row."""
        return np.diff(self.ends, prepend=0)

    def row(self, index: int) -> Encoded:
        """One row."""
        start, end = (int(self.ends[index - 1]) if index else 0), int(self.ends[index])
        return Encoded(self.ids[start:end], self.weights[start:end].astype(np.float32))


def _read_meta(directory: Path) -> dict[str, int]:
    try:
        meta = json.loads((directory / META).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DatasetUnreadable(f"{directory} holds no complete dataset: {error}") from error
    if meta.get("format") != DATASET_FORMAT:
        raise DatasetUnreadable(f"{directory} has dataset format {meta.get('format')}, this version reads {DATASET_FORMAT}")
    return meta


def _map(path: Path, dtype: np.dtype[Any], count: int) -> npt.NDArray[Any]:
    expected = count * dtype.itemsize
    actual = path.stat().st_size if path.is_file() else None
    if actual != expected:
        raise DatasetUnreadable(f"{path} has {actual} bytes, {expected} expected")
    return np.memmap(path, dtype, mode="r") if count else np.empty(0, dtype)  # an empty file can't be mapped


class Sampler:
    """Which rows each optimizer step sees: a pure function of (lengths, batch_size, seed, step).

    Within an epoch rows are shuffled, sorted by length inside mega-batches of 64 batches (ties in random
    order), cut into batches, and the batches shuffled: rows of a batch have near-equal lengths, and every
    row comes once an epoch. Resuming needs the step and nothing else; the world size plays no part.
    """

    def __init__(self, lengths: Indices, batch_size: int, seed: int, n_epochs: int) -> None:
        """`lengths` [rows] in tokens; at least one row."""
        if len(lengths) == 0 or batch_size < 1 or n_epochs < 1:
            raise ValueError("a sampler needs at least one row, one row a batch and one epoch")
        self._lengths = np.asarray(lengths)
        self._batch_size, self._seed = batch_size, seed
        self.steps_per_epoch = -(-len(lengths) // batch_size)
        self.steps = self.steps_per_epoch * n_epochs
        self._epoch: tuple[int, Indices, Indices] | None = None

    def batch(self, step: int) -> Indices:
        """[rows of the batch] row indices of optimizer step `step`, counted from 0. The last batch of an epoch's cut may be smaller."""
        if not 0 <= step < self.steps:
            raise IndexError(f"step {step} is outside 0…{self.steps - 1}")
        epoch, place = divmod(step, self.steps_per_epoch)
        if self._epoch is None or self._epoch[0] != epoch:
            self._epoch = (epoch, *self._order(epoch))
        _, rows, batches = self._epoch
        start = int(batches[place]) * self._batch_size
        return rows[start : start + self._batch_size]

    def _order(self, epoch: int) -> tuple[Indices, Indices]:
        """[rows] row indices in the order they are cut into batches, and [batches] the order of the batches."""
        # Raw bits sorted, not Generator.permutation: NumPy promises the bit stream, not the methods on top of it.
        bits = np.random.PCG64(np.random.SeedSequence([self._seed, epoch]))
        shuffled = np.argsort(bits.random_raw(len(self._lengths)), kind="stable")
        mega_batch = np.arange(len(shuffled)) // (MEGA_BATCH * self._batch_size)
        by_length = np.lexsort((self._lengths[shuffled], mega_batch))  # stable, so ties stay shuffled
        return shuffled[by_length], np.argsort(bits.random_raw(self.steps_per_epoch), kind="stable")


def micro_batches(indices: Indices, lengths: Indices, rank: int, world_size: int, micro_batch: int) -> list[Indices]:
    """This rank's share of a global batch, in pieces of at most `micro_batch` rows of near-equal length.

    `indices` [rows of the batch], `lengths` [rows of the dataset]. Every rank gets the same number of
    pieces, so that ranks meet at every collective; a batch too small for all leaves empty pieces, for
    which `collate` makes a row without weight. Ranks are balanced by tokens; longest pieces first.
    """
    rounds = max(1, -(-len(indices) // (world_size * micro_batch)))
    longest_first = indices[np.argsort(-lengths[indices], kind="stable")]
    pieces = np.array_split(longest_first, rounds * world_size)
    shares: list[list[Indices]] = [[] for _ in range(world_size)]
    tokens = [0] * world_size
    for piece in pieces:
        least = min((r for r in range(world_size) if len(shares[r]) < rounds), key=lambda r: (tokens[r], r))
        shares[least].append(piece)
        tokens[least] += int(lengths[piece].sum())
    return shares[rank]


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows as tensors, padded on the right with id 0; causal attention keeps padding out of the rows."""

    input_ids: torch.Tensor
    """[rows, length] int64"""
    lengths: torch.Tensor
    """[rows] int64: tokens of each row, 0 for the row that stands in for an empty batch."""
    weights: torch.Tensor
    """[rows, length] float32: weight of predicting each token from those before it; 0 on padding and first tokens."""
    tokens: int
    """Tokens without padding."""
    weight_sum: float


def collate(dataset: TokenisedDataset, indices: Sequence[int] | Indices) -> Batch:
    """The rows as one batch. No rows give a single row of padding without weight, so that every rank has a step to run."""
    import torch

    rows = [dataset.row(int(index)) for index in indices]
    lengths = [len(row) for row in rows] or [0]
    ids = np.zeros((len(lengths), max(2, *lengths) if rows else 2), dtype=np.int64)
    weights = np.zeros(ids.shape, dtype=np.float32)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row.input_ids
        weights[i, : len(row)] = row.weights
    return Batch(
        input_ids=torch.from_numpy(ids),
        lengths=torch.tensor(lengths, dtype=torch.int64),
        weights=torch.from_numpy(weights),
        tokens=sum(lengths),
        weight_sum=float(weights.sum(dtype=np.float64)),
    )
