"""The curves of a job: what was measured at each step, in columns. Pure; filled from metrics events, read by `rest`.

A run that was resumed repeats steps, and what the newest run says of a step counts. Numbers are kept as 8 bytes each: a
million steps must not become a million objects.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Mapping
from math import nan
from typing import Any

import numpy as np
from numpy.typing import NDArray

TRAINING = ("train_loss", "train_mean_token_accuracy", "learning_rate", "grad_norm", "tokens_per_second")
VALIDATION = ("valid_loss", "valid_mean_token_accuracy", "full_valid_loss", "full_valid_mean_token_accuracy")
NOT_CURVES = ("step", "total_steps")
Floats = NDArray[np.float64]
Rows = NDArray[np.intp]


class Curves:
    """Steps in order, and a column for each number that was measured; NaN where it was not."""

    def __init__(self) -> None:
        self.steps = array("q")
        self._columns = {name: array("d") for name in (*TRAINING, *VALIDATION)}

    def __len__(self) -> int:
        return len(self.steps)

    def add(self, data: Mapping[str, Any]) -> None:
        """What one metrics event says. A step's training loss comes first and begins its row anew; scores are added to it."""
        row = self._row(int(data["step"]), anew="train_loss" in data)
        for name, value in data.items():
            if name not in NOT_CURVES and isinstance(value, int | float) and not isinstance(value, bool):
                self._column(name)[row] = value

    def columns(self, most: int | None = None) -> tuple[NDArray[np.int64], dict[str, Floats]]:
        """Steps and columns; of more than `most` rows those that `thinned` keeps."""
        steps = np.array(self.steps, dtype=np.int64)
        columns = {name: np.array(column, dtype=np.float64) for name, column in self._columns.items()}
        if most is None or len(steps) <= most:
            return steps, columns
        rows = thinned(columns["train_loss"], columns["valid_loss"], most)
        return steps[rows], {name: column[rows] for name, column in columns.items()}

    def _row(self, step: int, *, anew: bool) -> int:
        row = len(self.steps) if not self.steps or step > self.steps[-1] else bisect_left(self.steps, step)
        if row == len(self.steps) or self.steps[row] != step:
            self.steps.insert(row, step)
            for column in self._columns.values():
                column.insert(row, nan)
        elif anew:
            for column in self._columns.values():
                column[row] = nan
        return row

    def _column(self, name: str) -> array[float]:
        if name not in self._columns:
            self._columns[name] = array("d", [nan]) * len(self.steps)
        return self._columns[name]


def thinned(train_loss: Floats, valid_loss: Floats, most: int) -> Rows:
    """Rows to keep, at most `most` (10 or more): first, last, and the least and the greatest of each of equal stretches.

    Steps with a validation score are thinned among themselves, by that score and to at most half of the rows, so that
    the many steps without one do not push them out.
    """
    inner = np.arange(1, len(train_loss) - 1)
    scored = ~np.isnan(valid_loss[inner])
    room = most - 2
    for_scored = min(int(scored.sum()), room // 2)
    kept = [_extremes(inner[scored], valid_loss, for_scored), _extremes(inner[~scored], train_loss, room - for_scored)]
    return np.unique(np.concatenate([[0, len(train_loss) - 1], *kept])).astype(np.intp)


def _extremes(rows: Rows, values: Floats, most: int) -> Rows:
    if len(rows) <= most:
        return rows
    kept: list[int] = []
    for stretch in np.array_split(rows, max(1, most // 2)):
        unknown = np.isnan(values[stretch])
        least = np.where(unknown, np.inf, values[stretch]).argmin()
        greatest = np.where(unknown, -np.inf, values[stretch]).argmax()
        kept += [int(stretch[least]), int(stretch[greatest])]
    return np.array(kept, dtype=np.intp)
