"""Curves: columns from metrics events, and which rows stay when there are too many."""

from __future__ import annotations

import numpy as np

from service.curves import Curves, thinned


def test_the_newest_word_on_a_step_counts() -> None:
    curves = Curves()
    for step in (1, 2, 3):
        curves.add({"step": step, "total_steps": 9, "train_loss": float(step), "grad_norm": None})
        curves.add({"step": step, "valid_loss": 5.0})
    curves.add({"step": 2, "train_loss": 20.0})
    curves.add({"step": 5, "train_loss": 50.0, "reward": 1.5})
    curves.add({"step": 4, "train_loss": 40.0})
    steps, columns = curves.columns()
    assert steps.tolist() == [1, 2, 3, 4, 5]
    assert columns["train_loss"].tolist() == [1.0, 20.0, 3.0, 40.0, 50.0]
    assert np.isnan(columns["valid_loss"]).tolist() == [False, True, False, True, True]
    assert np.isnan(columns["reward"]).tolist() == [True] * 4 + [False]
    assert "total_steps" not in columns


def test_thinning_keeps_ends_extremes_and_scores() -> None:
    loss = np.sin(np.arange(10_000) / 50.0)
    loss[1234], loss[4321], loss[777] = 9.0, -9.0, np.nan
    scores = np.full(10_000, np.nan)
    scores[500::500] = np.linspace(3, 1, 19)
    for most in (10, 11, 57, 400):
        rows = thinned(loss, scores, most)
        assert len(rows) <= most
        assert (rows[0], rows[-1]) == (0, 9999)
        assert {1234, 4321} <= set(rows.tolist()) or most < 57
        assert rows.tolist() == sorted(set(rows.tolist()))
    assert set(range(500, 10_000, 500)) <= set(thinned(loss, scores, 400).tolist())
    assert len(thinned(np.full(100, np.nan), np.full(100, np.nan), 10)) <= 10


def test_few_rows_stay_whole_and_a_million_are_small() -> None:
    curves = Curves()
    for step in range(1, 10_001):
        curves.add({"step": step, "train_loss": 1.0})
    assert len(curves.columns(20_000)[0]) == 10_000
    assert len(curves.columns(50)[0]) <= 50
    assert sum(column.itemsize * len(column) for column in curves._columns.values()) == 9 * 8 * 10_000
