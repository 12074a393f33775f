"""How long a run takes: floating-point operations over the rate that earlier runs or the device reach. Pure.

The operations of a token (docs/estimate.md has the sources): for a LoRA the forward pass and the backward pass through
the frozen weights, 4 for each weight, 6 for each that is trained; the head only where a label is; and attention's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from service.devices import Device
from service.estimate import Range, TimeEstimate
from service.gangs import Gang
from service.store.speeds import MeasuredRun
from trainers.model_files import Sizes
from trainers.plan import Shape
from trainers.spec import AdapterSpec, DatasetRef

FORWARD_SHARE = 0.5
"""Of the operations of a trained token, those of one that is only scored."""
SPREAD = (0.75, 1.15)
"""How far a run may be slower than the slowest and faster than the fastest of the earlier ones."""
SCALING = 0.8
"""What further workers may lose to waiting for each other."""
START_SECONDS, FINISH_SECONDS = (15.0, 45.0), (3.0, 20.0)
"""Ray's job, controller and workers; publishing and proving. What was seen on two cores, while no earlier run tells more."""
SECONDS_PER_GB = (0.3, 5.0)
"""Reading a base model into memory."""
STEP_SECONDS = (0.005, 0.1)
"""What a step costs besides arithmetic."""


@dataclass(frozen=True, slots=True)
class Work:
    """What a run has to compute."""

    flops: float
    """Of all training steps."""
    evaluation_flops: float
    steps: int
    weights_bytes: int


@dataclass(frozen=True, slots=True)
class Past:
    """An earlier run: operations a second for each core or GPU, and its two ends in seconds where they are known."""

    flops_per_unit: float
    start: float | None
    finish: float | None


def token_flops(sizes: Sizes, adapter: AdapterSpec, data: DatasetRef) -> float:
    """Floating-point operations of one trained token of this dataset."""
    shape = Shape.of(sizes.config, sizes.linear, on_cpu=False)
    body = sizes.parameters - sizes.head - sizes.looked_up
    head = sizes.head * data.trained_tokens / data.tokens
    attention = 6 * shape.layers * shape.queries * data.tokens / data.rows
    if adapter.type == "full":
        return 6 * (body + head) + attention
    return 4 * (body + head) + 6 * sizes.adapter(adapter.target_modules, adapter.r) + attention


def units(gang: Gang) -> int:
    """The devices that compute: GPUs where there are any, else cores."""
    return gang.gpus or gang.cpus


def past(run: MeasuredRun, sizes: Sizes, gang: Gang) -> Past:
    """What an earlier run of the same base model tells; `gang` is what it ran on."""
    flops = run.tokens_per_second * token_flops(sizes, run.adapter, run.dataset)
    return Past(flops / units(gang), run.start_seconds, run.finish_seconds)


def duration(work: Work, gang: Gang, earlier: Sequence[Past], device: Device) -> TimeEstimate | None:
    """From earlier runs where there are any, else from the device's rate; None when neither is known."""
    rate = _measured_rate(earlier) if earlier else device.flops
    if rate is None:
        return None
    slowest = rate.low * (SCALING if gang.workers > 1 else 1.0)
    flops_each = Range(low=1 / (rate.high * units(gang)), high=1 / (slowest * units(gang)))
    training = flops_each.times(work.flops)
    if not earlier:
        training += Range(low=STEP_SECONDS[0], high=STEP_SECONDS[1]).times(work.steps)
    evaluation = flops_each.times(work.evaluation_flops)
    start = _end([run.start for run in earlier], START_SECONDS, work.weights_bytes)
    finish = _end([run.finish for run in earlier], FINISH_SECONDS, work.weights_bytes)
    total = start + training + evaluation + finish
    return TimeEstimate(
        low=total.low,
        high=total.high,
        start=start,
        training=training,
        evaluation=evaluation,
        finish=finish,
        measured=bool(earlier),
        based_on=MEASURED if earlier else f"the operations of a token, over {device.known_by}; no earlier run of this model tells more",
    )


MEASURED = "the speed that earlier runs of this base model and method reached on this service"


def _measured_rate(earlier: Sequence[Past]) -> Range:
    rates = [run.flops_per_unit for run in earlier]
    return Range(low=min(rates) * SPREAD[0], high=max(rates) * SPREAD[1])


def _end(seen: Sequence[float | None], otherwise: tuple[float, float], weights_bytes: int) -> Range:
    known = [seconds for seconds in seen if seconds is not None]
    if known:
        return Range(low=min(known) * SPREAD[0], high=max(known) / SPREAD[0])
    low, high = (fixed + weights_bytes / 1e9 * each for fixed, each in zip(otherwise, SECONDS_PER_GB, strict=True))
    return Range(low=low, high=high)
