"""Tokenised datasets on disk. Knows nothing of chat, methods, models or batches, and needs no torch.

The data check writes a dataset once per content; the training loop and evaluation read it, memory-mapped.

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
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from trainers.method import Encoded

DATASET_FORMAT = 1
"""Version of the bytes below a dataset's key. Raise it when the layout changes, or the way any method encodes a row."""
Indices = npt.NDArray[np.int64]
IDS, WEIGHTS, ROWS, META = "ids.u32", "weights.f16", "rows", "meta.json"
FILES = (IDS, WEIGHTS, ROWS)
ROW_DTYPE = np.dtype([("end", "<i8"), ("trained", "<f4")])


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
        meta = {key: int(value) for key, value in json.loads((directory / META).read_text(encoding="utf-8")).items()}
        if meta["format"] == DATASET_FORMAT:
            return {key: meta[key] for key in ("rows", "tokens", "trained_tokens", "longest")}
    except (OSError, ValueError, AttributeError, KeyError, TypeError) as error:
        raise DatasetUnreadable(f"{directory} holds no complete dataset: {error!r}") from error
    raise DatasetUnreadable(f"{directory} has dataset format {meta['format']}, this version reads {DATASET_FORMAT}")


def _map(path: Path, dtype: np.dtype[Any], count: int) -> npt.NDArray[Any]:
    expected = count * dtype.itemsize
    actual = path.stat().st_size if path.is_file() else None
    if actual != expected:
        raise DatasetUnreadable(f"{path} has {actual} bytes, {expected} expected")
    return np.memmap(path, dtype, mode="r") if count else np.empty(0, dtype)  # an empty file can't be mapped
