"""The order in which a dataset's rows are seen, and batches of them.

Torch is needed by `collate` only. Knows nothing of chat, methods or models. Called by the training loop
and by evaluation; the files themselves are tokenised.py's business.
"""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from trainers import manifest
from trainers.spec import DatasetRef
from trainers.storage import Storage
from trainers.tokenised import DatasetUnreadable, Indices, TokenisedDataset

if TYPE_CHECKING:
    import torch

    from trainers.method import Encoded

__all__ = [
    "Batch",
    "DatasetUnreadable",
    "Indices",
    "Layout",
    "Sampler",
    "TokenisedDataset",
    "collate",
    "fetch_dataset",
    "micro_batches",
    "pad",
]

MEGA_BATCH = 64
"""Batches whose rows are sorted by length together: long enough for near-equal lengths, short enough to stay shuffled."""


def fetch_dataset(ref: DatasetRef, storage: Storage, cache: Path) -> TokenisedDataset:
    """The dataset, read in place on local storage, otherwise copied below `cache` once.

    Every file is checked against the manifest first. Raises ManifestBroken naming what differs.
    """
    listed = manifest.read(storage, ref.prefix)
    directory = storage.local_path(ref.prefix)
    if directory is None:
        directory = cache / ref.prefix
        directory.parent.mkdir(parents=True, exist_ok=True)
        with open(f"{directory}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # of the workers of one machine one copies, the others wait
            if _spoiled(directory, listed):
                _copy(listed, ref, storage, directory)
    elif spoiled := _spoiled(directory, listed):
        raise manifest.ManifestBroken(f"{ref.prefix}/{spoiled[0]} is not what the manifest says")
    return TokenisedDataset.open(directory)


def _spoiled(directory: Path, listed: manifest.Manifest) -> list[str]:
    """Names of the listed files that are missing or changed."""
    return sorted(entry.name for entry in set(listed.files) - set(manifest.describe(directory)))


def _copy(listed: manifest.Manifest, ref: DatasetRef, storage: Storage, directory: Path) -> None:
    """Copy whole or not at all. The name of what is being copied is always the same, so a killed copy is cleared by the next."""
    partial = directory.with_name(f".{directory.name}")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        manifest.fetch(storage, ref.prefix, listed.files, partial)
        shutil.rmtree(directory, ignore_errors=True)
        partial.rename(directory)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


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


@dataclass(frozen=True, slots=True)
class Layout:
    """Which rows a rank computes, and which of their tokens.

    Replicas take different rows. The ranks of a replica, which lie side by side, take the same rows, a part of the tokens each.
    """

    rank: int
    world_size: int
    sequence_parallel: int = 1
    """Ranks of a replica; divides the world size."""

    @property
    def replica(self) -> int:
        """Which one this rank belongs to."""
        return self.rank // self.sequence_parallel

    @property
    def replicas(self) -> int:
        """How many there are (the data-parallel size)."""
        return self.world_size // self.sequence_parallel

    def part(self, batch: Batch) -> Batch:
        """This rank's part of its replica's rows: all of them where nobody shares them."""
        return batch if self.sequence_parallel == 1 else _part(batch, self.rank % self.sequence_parallel, self.sequence_parallel)


def micro_batches(indices: Indices, lengths: Indices, replica: int, replicas: int, micro_batch: int) -> list[Indices]:
    """This replica's share of a global batch, in pieces of at most `micro_batch` rows of near-equal length.

    `indices` [rows of the batch], `lengths` [rows of the dataset]. Every replica gets the same number of
    pieces, so that ranks meet at every collective; a batch too small for all leaves empty pieces, for
    which `collate` makes a row without weight. Replicas are balanced by tokens; longest pieces first.
    """
    rounds = max(1, -(-len(indices) // (replicas * micro_batch)))
    longest_first = indices[np.argsort(-lengths[indices], kind="stable")]
    pieces = np.array_split(longest_first, rounds * replicas)
    shares: list[list[Indices]] = [[] for _ in range(replicas)]
    tokens = [0] * replicas
    for piece in pieces:
        least = min((r for r in range(replicas) if len(shares[r]) < rounds), key=lambda r: (tokens[r], r))
        shares[least].append(piece)
        tokens[least] += int(lengths[piece].sum())
    return shares[replica]


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
    positions: torch.Tensor | None = None
    """[length - 1] int64: where these are parts of longer rows, the positions of their tokens but the last, which is a label only."""


def _part(batch: Batch, number: int, of: int) -> Batch:
    """The `number`th of equal parts of every row, counted from 0, with one token more, which its last one predicts.

    A row's last token predicts nothing, so the others are what is divided. `tokens` and `weight_sum` of the parts add up to the batch's.
    """
    import torch
    from torch.nn.functional import pad as padded

    length = batch.input_ids.shape[1]
    share = -(-(length - 1) // of)
    first, missing = number * share, of * share + 1 - length
    ids, weights = (padded(x, (0, missing))[:, first : first + share + 1].contiguous() for x in (batch.input_ids, batch.weights))
    weights[:, 0] = 0  # the part before predicts it
    lengths = (batch.lengths - first - 1).clamp(0, share) + (batch.lengths > 0) * (number == 0)
    positions = torch.arange(first, first + share).clamp(max=length - 2)  # a model may know no positions beyond
    return Batch(ids, lengths, weights, int(lengths.sum()), float(weights.double().sum()), positions)


def collate(dataset: TokenisedDataset, indices: Sequence[int] | Indices) -> Batch:
    """The rows of a dataset as one batch."""
    return pad([dataset.row(int(index)) for index in indices])


def pad(rows: Sequence[Encoded]) -> Batch:
    """The rows as one batch. No rows give a single row of padding without weight, so that every rank has a step to run."""
    import torch

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
