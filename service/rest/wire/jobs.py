"""Shapes of jobs, their events and checkpoints."""

from __future__ import annotations

from typing import Annotated, Any, Literal, cast

from pydantic import Field, model_validator

from service.jobs import JobStatus, Progress
from service.rest.wire.shared import Answer, CursorList, List
from trainers.spec import (
    AdapterSpec,
    CheckpointSpec,
    DataSpec,
    EvaluationSpec,
    Frozen,
    Hyperparameters,
    IntegrationSpec,
    Resolved,
    ResourceSpec,
    TrainingSpec,
    TunesmithSpec,
)

Metadata = Annotated[dict[Annotated[str, Field(min_length=1, max_length=64)], Annotated[str, Field(max_length=512)]], Field(max_length=16)]
BLOCKS = frozenset({"supervised", "dpo", "reinforcement"})
"""Fields of `method` that hold the settings of one type each."""
FileId = Annotated[str, Field(min_length=1, max_length=128)]


class SupervisedMethod(Frozen):
    """Settings of supervised fine-tuning."""

    hyperparameters: Hyperparameters = Field(default=Hyperparameters(), description="As OpenAI has them.")


class MethodRequest(Frozen):
    """The objective. Only the block named by `type` is read; the others are ignored, as OpenAI does."""

    type: str = Field(min_length=1, max_length=64, description="Name of the method, e.g. supervised.", examples=["supervised"])
    supervised: SupervisedMethod | None = Field(default=None, description="Read when type is supervised.")
    dpo: Any = Field(default=None, description="Ignored unless type is dpo.")
    reinforcement: Any = Field(default=None, description="Ignored unless type is reinforcement.")

    @model_validator(mode="before")
    @classmethod
    def _only_the_named_block(cls, value: Any) -> Any:
        """OpenAI's client may send all three blocks; those that `type` does not name are not even looked at."""
        if not isinstance(value, dict):
            return value
        given = cast("dict[str, Any]", value)
        return {name: block for name, block in given.items() if name not in BLOCKS or name == given.get("type")}


class CreateFineTuningJobRequest(Frozen):
    """What to fine-tune, on what, and how. Fields that are not listed are refused."""

    model: str = Field(min_length=1, max_length=256, description="Id of a base model, see GET /v1/models.")
    training_file: FileId = Field(description="Id of an uploaded file of purpose fine-tune.")
    validation_file: FileId | None = Field(default=None, description="Id of an uploaded file; it is scored, never trained on.")
    suffix: Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] | None = Field(
        default=None, description="Part of the tuned model's name."
    )
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = Field(default=None, description="Same seed, same job; drawn unless given.")
    metadata: Metadata | None = Field(default=None, description="Up to 16 pairs to find the job by.")
    integrations: Annotated[list[IntegrationSpec], Field(max_length=5)] | None = Field(
        default=None, description="Other services that the job's numbers are sent to while it runs."
    )
    hyperparameters: Hyperparameters | None = Field(
        default=None,
        description="Deprecated by OpenAI; the same as method.supervised.hyperparameters.",
        json_schema_extra={"deprecated": True},
    )
    method: MethodRequest | None = Field(default=None, description="The objective; supervised unless given.")
    tunesmith: TunesmithSpec = Field(default=TunesmithSpec(), description="What OpenAI has no field for; every part is optional.")


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
