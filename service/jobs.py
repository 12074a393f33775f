"""A job, its states and the only rules by which it changes. Pure: no clock, no database, no transport.

`TRANSITIONS` is the table, `advance` the one function that walks it; `store.apply` writes its result.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, Literal

from pydantic import Field

from trainers.spec import BaseModelRef, DatasetRef, Frozen, Hyperparameters, IntegrationSpec, Resolved, TunesmithSpec


class JobStatus(StrEnum):
    """Where a job is in its life."""

    VALIDATING = "validating"
    QUEUED = "queued"
    STARTING = "starting"
    RUNNING = "running"
    PAUSING = "pausing"
    PAUSED = "paused"
    CANCELLING = "cancelling"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


S = JobStatus
TRANSITIONS: dict[JobStatus, frozenset[JobStatus]] = {
    S.VALIDATING: frozenset({S.QUEUED, S.FAILED, S.CANCELLED}),
    S.QUEUED: frozenset({S.STARTING, S.PAUSED, S.FAILED, S.CANCELLED}),
    S.STARTING: frozenset({S.RUNNING, S.QUEUED, S.FAILED, S.PAUSING, S.CANCELLING}),
    S.RUNNING: frozenset({S.SUCCEEDED, S.FAILED, S.QUEUED, S.PAUSING, S.CANCELLING}),
    S.PAUSING: frozenset({S.PAUSED, S.QUEUED, S.SUCCEEDED, S.FAILED, S.CANCELLING}),
    S.PAUSED: frozenset({S.QUEUED, S.CANCELLED}),
    S.CANCELLING: frozenset({S.CANCELLED}),
    S.SUCCEEDED: frozenset(),
    S.FAILED: frozenset(),
    S.CANCELLED: frozenset(),
}
CHECKPOINT_MARK = ":ckpt-step-"
"""What tells a checkpoint's name from a tuned model's."""
FINAL = frozenset(status for status, onward in TRANSITIONS.items() if not onward)
"""States that nothing leaves."""
ON_RAY = frozenset({S.STARTING, S.RUNNING, S.PAUSING, S.CANCELLING})
"""States in which a run may have processes, so a scheduler must hold the job's lease."""


class Departure(StrEnum):
    """Why the service asks a run to write a checkpoint and leave; the code of what it ends with."""

    OUTRANKED = "outranked"
    """A job of higher priority needs the devices."""
    GROWING = "growing"
    """There is room for more of the job's workers."""
    MAX_DURATION = "max_duration_exceeded"
    DEADLINE = "deadline_exceeded"


class MethodSpec(Frozen):
    """The objective and its hyperparameters as the client gave them."""

    type: str
    hyperparameters: Hyperparameters = Hyperparameters()


class JobSpec(Frozen):
    """One request to fine-tune, as accepted. Never changes; what "auto" became is in `Job.resolved`."""

    model: str
    training_file: str
    validation_file: str | None = None
    suffix: str | None = None
    seed: int | None = None
    """Drawn when the job is accepted, unless given."""
    metadata: dict[str, str] = Field(default={})
    integrations: list[IntegrationSpec] = Field(default=[])
    method: MethodSpec
    tunesmith: TunesmithSpec = TunesmithSpec()


class JobError(Frozen):
    """Why a job failed. `cause` says whose fault it is, and so whether a retry could help."""

    code: str
    message: str
    param: str | None = None
    cause: Literal["data", "config", "resource", "infrastructure", "service"] = "service"
    details: dict[str, Any] = Field(default={}, description="For data faults: `report`, see data_report.DataReport.")
    hint: str = ""
    rank: int | None = None
    """The worker that failed."""
    node: str = ""
    last_good_step: int | None = None
    """Of the last complete checkpoint, 0 when there is none; None for faults before the first run."""


class Progress(Frozen):
    """How far the current run is. Seconds and tokens; None where not yet known."""

    stage: str = Field(default="", description="In words: loading the base model, training, evaluating, verifying, …")
    step: int = 0
    total_steps: int | None = None
    loss: float | None = None
    learning_rate: float | None = None
    tokens_per_second: float | None = Field(default=None, description="Non-padding tokens, all workers together.")
    eta_seconds: float | None = None
    workers: int | None = Field(default=None, description="Workers of the latest run, where fewer than asked for; null otherwise.")


@dataclass(frozen=True, slots=True)
class Attempt:
    """One run of a job as its owner sees it. Times are seconds since 1970; None where not yet known."""

    epoch: int
    started_at: float
    ended_at: float | None
    resumed_step: int | None
    """Step it went on from; 0 is a fresh start, None until it has started."""
    last_step: int
    outcome: Literal["succeeded", "failed", "lost", "stopped"] | None
    """None while it goes on; stopped is cancelled or paused."""
    code: str | None = None
    message: str | None = None
    cause: str | None = None
    rank: int | None = None
    """The worker that failed."""
    node: str | None = None
    hint: str | None = None
    last_good_step: int | None = None
    """Of the last complete checkpoint, when it ended without a result."""
    log_tail: tuple[str, ...] = ()
    """Last lines of its log when it ended without a result; left out of lists."""


@dataclass(frozen=True, slots=True)
class Job:
    """A job as the database holds it. Times are seconds since 1970, by the database's clock."""

    id: str
    project_id: str
    organization_id: str
    spec: JobSpec
    status: JobStatus
    version: int
    created_at: float
    base_model: BaseModelRef
    epoch: int = 0
    """Number of the latest run; 0 before the first."""
    infra_failures: int = 0
    """Runs lost to infrastructure; bounded by the retry budget."""
    not_before: float = 0.0
    """A queued job is not claimed before this time (retry backoff)."""
    reason: str = ""
    """Why the job is where it is, in words."""
    dataset: DatasetRef | None = None
    validation: DatasetRef | None = None
    resolved: Resolved | None = None
    progress: Progress = field(default_factory=Progress)
    queued_at: float | None = None
    started_at: float | None = None
    finished_at: float | None = None
    trained_tokens: int | None = None
    tuned_model: str | None = None
    """Set when the job succeeded."""
    result_files: tuple[str, ...] = ()
    error: JobError | None = None
    lease_owner: str | None = None
    attempts: tuple[Attempt, ...] = ()
    """First to last. Told to callers only, as is `queue_position`: see store.progress."""
    queue_position: int | None = None
    """1 is claimed next; None unless the job is QUEUED."""


@dataclass(frozen=True, slots=True)
class Event:
    """One line of a job's history. `seq` counts from 1 within the job; `data` is empty on message events."""

    id: str
    job_id: str
    seq: int
    created_at: float
    level: Literal["info", "warn", "error"]
    message: str
    type: Literal["message", "metrics"] = "message"
    data: dict[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True, slots=True)
class JobUpdate:
    """What somebody who watches a job hears: one more event, or the job as it now is."""

    event: Event | None
    job: Job | None


@dataclass(frozen=True, slots=True)
class Notice:
    """An event before the store gave it an id, a number and a time."""

    message: str
    level: Literal["info", "warn", "error"] = "info"
    type: Literal["message", "metrics"] = "message"
    data: dict[str, Any] = field(default_factory=dict[str, Any])


class IllegalTransition(ValueError):
    """The table has no such edge."""

    def __init__(self, job_id: str, old: JobStatus, new: JobStatus) -> None:
        super().__init__(job_id, old, new)
        self.old, self.new = old, new

    def __str__(self) -> str:
        return f"a job cannot go from {self.old} to {self.new}"


def advance(job: Job, to: JobStatus, **changes: Any) -> Job:
    """The job in its next state, with `changes` to its other fields.

    Raises IllegalTransition when the table has no edge from the job's state to `to`.
    """
    if to not in TRANSITIONS[job.status]:
        raise IllegalTransition(job.id, job.status, to)
    return replace(job, status=to, **changes)


def tuned_model_name(base_model: str, organization: str, suffix: str | None, job_id: str) -> str:
    """OpenAI's form `ft:{model}:{organization}:{suffix}:{id}`; an absent suffix leaves its place empty."""
    return f"ft:{base_model}:{organization}:{suffix or ''}:{job_id.removeprefix('ftjob-')}"


def checkpoint_model_name(tuned_model: str, step: int, last_step: int) -> str:
    """Name of a checkpoint's model; the last checkpoint is the tuned model itself."""
    return tuned_model if step == last_step else f"{tuned_model}{CHECKPOINT_MARK}{step}"
