"""What a job would take: the values of an estimate. They travel as they are; OpenAPI shows their descriptions.

Knows no arithmetic: estimating.py fills them in.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from service.data_report import DataReport
from trainers.spec import DatasetRef, Frozen, Resolved


class DataCounts(Frozen):
    """The counts of a file that is not here, as a check elsewhere found them."""

    rows: int = Field(ge=1, le=10**10, description="Rows.")
    tokens: int = Field(ge=1, le=10**14, description="Tokens of all rows, after cutting.")
    trained_tokens: int = Field(ge=1, le=10**14, description="Tokens that carry loss.")
    longest: int = Field(ge=1, le=131072, description="Tokens of the longest row.")

    def dataset(self) -> DatasetRef:
        """A dataset of these counts that lies nowhere."""
        return DatasetRef(prefix="", sha256="", **self.model_dump())


class CountedData(Frozen):
    """Counts in place of files: nothing is looked up or checked."""

    training: DataCounts = Field(description="Of the training file.")
    validation: DataCounts | None = Field(default=None, description="Of the validation file.")


class Range(Frozen):
    """It will probably lie between these."""

    low: float
    high: float

    def __add__(self, other: Range) -> Range:
        return Range(low=self.low + other.low, high=self.high + other.high)

    def times(self, factor: float) -> Range:
        """Both ends multiplied."""
        return Range(low=self.low * factor, high=self.high * factor)


class MemoryEstimate(Frozen):
    """Bytes that one worker takes at its peak, on the device it trains on."""

    process: int = Field(description="The interpreter with its libraries, or the GPU's context.")
    weights: int = Field(description="The base model, or the worker's part of it and what is gathered at a time.")
    adapter: int = Field(description="The adapter; 0 when the whole model is trained.")
    gradients: int = Field(description="Gradients of what is trained, and those on their way to other workers.")
    optimizer: int = Field(description="AdamW's two moments; with DeepSpeed the float32 masters and their gradients too.")
    copies: int = Field(description="A checkpoint on its way to storage; 0 on a GPU, where it is the host's memory.")
    activations: int = Field(description="What a micro-batch keeps for its backward pass.")
    head: int = Field(description="Logits, a chunk at a time, and their gradients.")
    margin: int = Field(description="Fragmentation and passing copies.")
    total: int = Field(description="All of it.")
    available: int | None = Field(
        description="What a worker may take: a part of a GPU's memory, or its share of a node's once the run's own processes have theirs; "
        "null when it is not known."
    )


class PlanEstimate(Frozen):
    """How a run would be laid out, and why."""

    engine: str = Field(description="How a step runs on devices.")
    device: Literal["cpu", "gpu"] = Field(description="What it trains on.")
    workers: int = Field(description="Workers of the run.")
    cpus_per_worker: int | None = Field(description="Cores of each worker; null when the cluster can't be asked.")
    gpus_per_worker: int = Field(description="GPUs of each worker.")
    micro_batch: int | None = Field(description="Rows of one forward pass; null when the device's memory is not known.")
    micro_batches: int | None = Field(description="Forward passes of each worker in a step.")
    memory: MemoryEstimate = Field(description="Of each worker; with one row at a time where the micro-batch is not known.")
    run_memory: int = Field(
        description="Bytes of the run's own processes beside its workers, once a run, in a node's memory; on GPUs 0, for it isn't counted."
    )
    reasons: tuple[str, ...] = Field(description="Why it is so, in words.")


class Placement(Frozen):
    """Whether the cluster can hold the job."""

    fits: bool | None = Field(description="Whether the cluster, with nothing else on it, could run it; null when that is not known.")
    starts_now: bool | None = Field(description="Whether it would start at once, with all that runs and waits today.")
    reason: str = Field(description='"fits", or why not in words.')


class TimeEstimate(Frozen):
    """Seconds from a claimed job to a proven adapter; waiting in the queue is not in it."""

    low: float = Field(description="Seconds, if all goes well.")
    high: float = Field(description="Seconds, if it goes slowly.")
    start: Range = Field(description="Starting the workers and loading the base model.")
    training: Range = Field(description="The steps.")
    evaluation: Range = Field(description="Scoring the validation file.")
    finish: Range = Field(description="Publishing the adapter and proving it.")
    measured: bool = Field(description="Whether it rests on earlier runs rather than on arithmetic.")
    based_on: str = Field(description="What it rests on, in words.")


class CostEstimate(Frozen):
    """What that time costs at the operator's prices."""

    low: float
    high: float
    currency: str
    based_on: str = Field(description="The prices, in words.")


class Estimate(Frozen):
    """What a job would take. When the data is faulty there are no numbers, only the reports."""

    ok: bool = Field(description="Whether the data can be trained on.")
    training: DataReport | None = Field(description="The check of the training file; null when its counts were given.")
    validation: DataReport | None = Field(description="The check of the validation file, where there is one.")
    resolved: Resolved | None = Field(default=None, description='What every "auto" would become.')
    trained_tokens: int | None = Field(default=None, description="Labelled tokens of the whole job, all epochs.")
    plan: PlanEstimate | None = Field(default=None, description="How it would run.")
    placement: Placement | None = Field(default=None, description="Whether the cluster can hold it.")
    time: TimeEstimate | None = Field(default=None, description="How long it would take; null when nothing is known of the device.")
    cost: CostEstimate | None = Field(default=None, description="Null unless a price is set.")
    notes: tuple[str, ...] = Field(default=(), description="Why a number is missing or rests on a guess.")
