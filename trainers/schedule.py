"""The learning rate of each optimizer step. Pure; called by the loop."""

from __future__ import annotations

import math

from trainers.spec import TrainingSpec


def learning_rate(step: int, steps: int, peak: float, training: TrainingSpec) -> float:
    """Learning rate of optimizer step `step` of `steps`, counted from 0.

    Linear warm-up over `warmup_ratio` of the steps, its first step above 0; then constant, linear to 0, or half
    a cosine to 0 (Loshchilov & Hutter 2017, equation 5 without restarts).
    """
    warmup = math.ceil(training.warmup_ratio * steps)
    if step < warmup:
        return peak * (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    if training.schedule == "linear":
        return peak * (1 - done)
    if training.schedule == "cosine":
        return peak * 0.5 * (1 + math.cos(math.pi * done))
    return peak
