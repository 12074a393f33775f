"""The learning rate rises, falls and ends as it says."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainers.schedule import learning_rate
from trainers.spec import TrainingSpec


def curve(steps: int, **settings: object) -> list[float]:
    training = TrainingSpec.model_validate(settings)
    return [learning_rate(step, steps, 1.0, training) for step in range(steps)]


def test_warm_up_is_linear_and_starts_above_zero() -> None:
    assert curve(100, warmup_ratio=0.04)[:5] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])


def test_cosine_is_half_at_half_way() -> None:
    assert curve(100, warmup_ratio=0.0)[50] == pytest.approx(0.5)


def test_linear_falls_evenly() -> None:
    assert curve(4, schedule="linear", warmup_ratio=0.0) == pytest.approx([1.0, 0.75, 0.5, 0.25])


def test_constant_stays() -> None:
    assert set(curve(10, schedule="constant", warmup_ratio=0.0)) == {1.0}


@given(st.integers(1, 300), st.sampled_from(["cosine", "linear", "constant"]), st.floats(0, 0.99))
def test_it_is_never_zero_nor_above_the_peak(steps: int, schedule: str, warmup: float) -> None:
    rates = curve(steps, schedule=schedule, warmup_ratio=warmup)
    assert all(0 < rate <= 1 for rate in rates)
    peak = rates.index(max(rates))
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
