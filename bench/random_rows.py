"""Tokenised datasets of random rows, for benchmarks that train on lengths and not on words. Called by `memory` and `scaling_site`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trainers import manifest
from trainers.registry import DatasetWriter, Encoded
from trainers.spec import DatasetRef
from trainers.storage import Storage


def random_rows(storage: Storage, directory: Path, rows: int, weights: NDArray[np.float32], *, vocabulary: int) -> DatasetRef:
    """So many rows of random tokens with these label weights, a row's length being theirs; written when first asked for.

    `directory` is the dataset's own, and its name is that in the storage.
    """
    name, length = directory.name, len(weights)
    if not directory.is_dir():
        random = np.random.default_rng(1)
        with DatasetWriter(directory) as writer:
            for _ in range(rows):
                writer.append(Encoded(random.integers(vocabulary, size=length, dtype=np.uint32), weights))
        manifest.write(storage, f"datasets/{name}", directory, {})
    trained = rows * int(np.count_nonzero(weights))
    return DatasetRef(prefix=f"datasets/{name}", sha256=name, rows=rows, tokens=rows * length, trained_tokens=trained, longest=length)
