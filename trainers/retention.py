"""Which checkpoints of a job are kept. Pure, and in one place: the trainer deletes by it, the service lists by it."""

from __future__ import annotations

from collections.abc import Mapping


def kept_steps(losses: Mapping[int, float | None], keep: int, *, keep_best: bool) -> set[int]:
    """Of the steps that have a checkpoint the `keep` newest, and the one of the lowest validation loss, the newest of equals.

    `losses` has every such step; None where the validation file was not scored.
    """
    kept = set(sorted(losses)[-keep:])
    scored = [(loss, -step) for step, loss in losses.items() if loss is not None]
    return kept | {-min(scored)[1]} if scored and keep_best else kept
