"""Shapes of jobs, their events and checkpoints."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from service.job_request import CreateFineTuningJobRequest as CreateFineTuningJobRequest
from service.job_request import FileId as FileId
from service.job_request import Metadata as Metadata
from service.job_request import MethodRequest as MethodRequest
from service.job_request import SupervisedMethod as SupervisedMethod
from service.jobs import JobStatus, Progress
from service.rest.wire.shared import Answer, CursorList, List
from trainers.spec import AdapterSpec, CheckpointSpec, DataSpec, EvaluationSpec, IntegrationSpec, Resolved, ResourceSpec, TrainingSpec


class HyperparametersObject(Answer):
    """Hyperparameters: "auto" until the data check resolved them."""

    n_epochs: Literal["auto"] | int
    batch_size: Literal["auto"] | int
    learning_rate_multiplier: Literal["auto"] | float


class MethodBlock(Answer):
    """Settings of the job's method."""

    hyperparameters: HyperparametersObject


class JobErrorObject(Answer):
    """Why a job failed."""

    code: str
    message: str
    param: str | None


class JobFailure(Answer):
    """What OpenAI's error object has no place for."""

    cause: str = Field(description="Whose fault it is: data, config, resource, infrastructure or service.")
    details: dict[str, Any] = Field(description="For a data fault `report`: every faulty line with field, rule and hint.")
    hint: str = Field(description="What to do, where the code alone says it.")
    rank: int | None = Field(description="The worker that failed; null where no single one did.")
    node: str = Field(description="The machine it ran on; empty where nobody knows.")
    last_good_step: int | None = Field(description="Step of the last complete checkpoint, 0 for none; null before the first run.")


class JobAttempt(Answer):
    """One run of a job."""

    epoch: int = Field(description="Its number, from 1.")
    started_at: int
    ended_at: int | None
    resumed_step: int | None = Field(description="Step it went on from, 0 for a fresh start; null until it has started.")
    last_step: int = Field(description="Last step it reported.")
    outcome: Literal["succeeded", "failed", "lost", "stopped"] | None = Field(
        description="Null while it goes on; stopped is cancelled or paused."
    )
    cause: str | None = Field(description="Whose fault it was: data, config, resource, infrastructure or service.")
    code: str | None
    message: str | None
    rank: int | None = Field(description="The worker that failed.")
    node: str | None = Field(description="The machine of that worker, where it is known.")
    hint: str | None = Field(description="What to do.")
    last_good_step: int | None = Field(description="Step of the last complete checkpoint, when it ended without a result.")
    log_tail: list[str] = Field(description="Its last log lines when it ended without a result; in the answer about one job only.")


class TunesmithJob(Answer):
    """The exact phase of a job and all that it resolved to."""

    phase: JobStatus = Field(description="The exact phase; `status` is OpenAI's coarser word for it.")
    reason: str = Field(description="Why the job is where it is, in words.")
    epoch: int = Field(description="Number of the latest run (attempt); 0 before the first.")
    infra_failures: int = Field(description="Runs lost to infrastructure.")
    queued_at: int | None
    started_at: int | None
    progress: Progress
    data: DataSpec
    queue_position: int | None = Field(description="Place among all queued jobs, 1 is next; null unless the job is queued.")
    jobs_ahead: int | None = Field(description="Queued jobs that are claimed before it.")
    attempts: list[JobAttempt] = Field(description="Every run until now, first to last.")
    adapter: AdapterSpec
    training: TrainingSpec
    checkpoints: CheckpointSpec
    evaluation: EvaluationSpec
    resources: ResourceSpec
    priority: int
    resolved: Resolved | None = Field(description="What every auto became; null until the data check is done.")
    error: JobFailure | None


class FineTuningJob(Answer):
    """A job."""

    id: str
    object: Literal["fine_tuning.job"] = "fine_tuning.job"
    created_at: int = Field(description="Seconds since 1970.")
    finished_at: int | None
    estimated_finish: int | None = Field(description="While it runs, when it will probably end.")
    status: str = Field(description="validating_files, queued, running, paused, succeeded, failed or cancelled.")
    model: str
    fine_tuned_model: str | None = Field(description="Name of the tuned model once the job succeeded.")
    organization_id: str
    training_file: str
    validation_file: str | None
    result_files: list[str] = Field(description="Id of the CSV file with one row a step.")
    trained_tokens: int | None
    seed: int
    error: JobErrorObject | None
    hyperparameters: HyperparametersObject
    method: dict[str, str | MethodBlock] = Field(description='{"type": T, T: {"hyperparameters": {…}}}')
    integrations: list[IntegrationSpec]
    metadata: dict[str, str] | None
    user_provided_suffix: str | None
    tunesmith: TunesmithJob


class FineTuningJobEvent(Answer):
    """One line of a job's history."""

    id: str
    object: Literal["fine_tuning.job.event"] = "fine_tuning.job.event"
    created_at: int
    level: Literal["info", "warn", "error"]
    message: str
    type: Literal["message", "metrics"]
    data: dict[str, Any] = Field(description="Numbers of a metrics event; empty otherwise.")


class CheckpointMetrics(Answer):
    """What was measured at a checkpoint's step."""

    step: int
    train_loss: float | None = None
    train_mean_token_accuracy: float | None = None
    valid_loss: float | None = None
    valid_mean_token_accuracy: float | None = None
    full_valid_loss: float | None = None
    full_valid_mean_token_accuracy: float | None = None


class FineTuningJobCheckpoint(Answer):
    """A complete checkpoint of a job."""

    id: str
    object: Literal["fine_tuning.job.checkpoint"] = "fine_tuning.job.checkpoint"
    created_at: int
    fine_tuned_model_checkpoint: str = Field(description="The last checkpoint has the tuned model's own name.")
    fine_tuning_job_id: str
    step_number: int
    metrics: CheckpointMetrics


class JobList(List):
    """Jobs, newest first."""

    data: list[FineTuningJob]


class EventList(List):
    """Events, newest first."""

    data: list[FineTuningJobEvent]


class CheckpointList(CursorList):
    """Checkpoints, newest first."""

    data: list[FineTuningJobCheckpoint]
