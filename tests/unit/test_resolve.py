"""Every "auto" becomes a number, and what was asked for stays."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.jobs import JobSpec, MethodSpec
from service.resolve import auto_batch_size, auto_epochs, resolve
from trainers.data import Sampler
from trainers.spec import DatasetRef, Hyperparameters, TrainingSpec, TunesmithSpec


def data(rows: int) -> DatasetRef:
    return DatasetRef(prefix="p", sha256="s", rows=rows, tokens=rows, trained_tokens=rows, longest=1)


def spec(**asked: object) -> JobSpec:
    training = TrainingSpec(learning_rate=1e-4)
    method = MethodSpec(type="supervised", hyperparameters=Hyperparameters.model_validate(asked))
    return JobSpec(model="m", training_file="f", method=method, tunesmith=TunesmithSpec(training=training))


@pytest.mark.parametrize(("rows", "epochs", "batch"), [(1, 3, 1), (10, 3, 8), (400, 3, 8), (2_000, 2, 8), (10_000, 1, 32), (10**7, 1, 64)])
def test_auto_follows_the_rows(rows: int, epochs: int, batch: int) -> None:
    assert (auto_epochs(rows), auto_batch_size(rows)) == (epochs, batch)


def test_what_was_asked_for_stays() -> None:
    found = resolve(spec(n_epochs=2, batch_size=7, learning_rate_multiplier=0.5), data(100), "zero2")
    assert (found.n_epochs, found.batch_size, found.learning_rate, found.steps, found.engine) == (2, 7, 5e-5, 30, "zero2")


@settings(deadline=None)
@given(st.integers(1, 5_000))
def test_the_steps_are_those_of_the_sampler(rows: int) -> None:
    found = resolve(spec(), data(rows), "torch")
    assert found.steps == Sampler(np.ones(rows, dtype=np.int64), found.batch_size, 0, found.n_epochs).steps
    assert found.learning_rate == 1e-4
