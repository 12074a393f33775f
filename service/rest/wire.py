"""The shapes on the wire: OpenAI's objects, and ours under the key `tunesmith`.

Every field is described here once; OpenAPI shows it. Converters are in `convert`. Knows no HTTP.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from service.jobs import JobStatus, Progress
from trainers.spec import (
    AdapterSpec,
    CheckpointSpec,
    EvaluationSpec,
    Frozen,
    Hyperparameters,
    Resolved,
    ResourceSpec,
    TrainingSpec,
    TunesmithSpec,
)

Metadata = Annotated[dict[Annotated[str, Field(min_length=1, max_length=64)], Annotated[str, Field(max_length=512)]], Field(max_length=16)]
FileId = Annotated[str, Field(min_length=1, max_length=128)]
Purpose = Literal["fine-tune"]


class ErrorObject(BaseModel):
    """What was wrong, in OpenAI's shape."""

    message: str = Field(description="What is wrong and what to do.")
    type: str = Field(description="invalid_request_error, rate_limit_error or server_error.")
    param: str | None = Field(description="The faulty field, as a dotted path, or null.")
    code: str | None = Field(description="A code for programs, or null.")


class ErrorResponse(BaseModel):
    """The body of every answer that is not a success."""

    error: ErrorObject


# Requests


class SupervisedMethod(Frozen):
    """Settings of supervised fine-tuning."""

    hyperparameters: Hyperparameters = Field(default=Hyperparameters(), description="As OpenAI has them.")


class MethodRequest(Frozen):
    """The objective. Only the block named by `type` is read; the others are ignored, as OpenAI does."""

    type: str = Field(min_length=1, max_length=64, description="Name of the method, e.g. supervised.", examples=["supervised"])
    supervised: SupervisedMethod | None = Field(default=None, description="Read when type is supervised.")
    dpo: Any = Field(default=None, description="Ignored unless type is dpo.")
    reinforcement: Any = Field(default=None, description="Ignored unless type is reinforcement.")


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
    integrations: list[Any] | None = Field(default=None, description="None is offered: null or an empty list.")
    hyperparameters: Hyperparameters | None = Field(
        default=None,
        description="Deprecated by OpenAI; the same as method.supervised.hyperparameters.",
        json_schema_extra={"deprecated": True},
    )
    method: MethodRequest | None = Field(default=None, description="The objective; supervised unless given.")
    tunesmith: TunesmithSpec = Field(default=TunesmithSpec(), description="What OpenAI has no field for; every part is optional.")


# Answers


class Answer(BaseModel):
    """An answer is built by `convert` alone."""

    model_config = ConfigDict(frozen=True)


class FileObject(Answer):
    """A file that was uploaded, or a job's result file."""

    id: str
    object: Literal["file"] = "file"
    bytes: int = Field(description="Size.")
    created_at: int = Field(description="Seconds since 1970.")
    filename: str = Field(description="The name it was sent under, without directories; it names nothing here.")
    purpose: str = Field(description="fine-tune, or fine-tune-results for a job's result file.")
    status: Literal["uploaded", "processed", "error"]
    expires_at: int | None = Field(default=None, description="Always null: files stay until they are deleted.")
    status_details: str | None = None


class FileDeleted(Answer):
    """A file is gone."""

    id: str
    object: Literal["file"] = "file"
    deleted: Literal[True] = True


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
    integrations: list[Any]
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


class TunesmithModel(Answer):
    """Where a model comes from."""

    job_id: str | None = Field(description="The job that made it; null for a base model.")
    base_model: str | None
    revision: str | None = Field(description="The pinned revision of the base model.")
    licence: str | None


class ModelObject(Answer):
    """A base model, or a tuned model of the project."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str
    tunesmith: TunesmithModel


class ModelDeleted(Answer):
    """A tuned model is gone."""

    id: str
    object: Literal["model"] = "model"
    deleted: Literal[True] = True


class ArtifactObject(Answer):
    """A published file of a succeeded job."""

    name: str = Field(description="Path below the job, e.g. adapter/adapter_model.safetensors.")
    bytes: int
    sha256: str


class List(Answer):
    """One page; the next one starts after the id of its last item."""

    object: Literal["list"] = "list"
    has_more: bool = Field(description="Whether there are older items (newer ones under order=asc).")


class CursorList(List):
    """A page that names its ends."""

    first_id: str | None
    last_id: str | None


class FileList(CursorList):
    """Files, newest first unless asked otherwise."""

    data: list[FileObject]


class JobList(List):
    """Jobs, newest first."""

    data: list[FineTuningJob]


class EventList(List):
    """Events, newest first."""

    data: list[FineTuningJobEvent]


class CheckpointList(CursorList):
    """Checkpoints, newest first."""

    data: list[FineTuningJobCheckpoint]


class ModelList(Answer):
    """Every base model that is ready, and the project's tuned models."""

    object: Literal["list"] = "list"
    data: list[ModelObject]


class ArtifactList(List):
    """Every artifact of a job."""

    data: list[ArtifactObject]


class Health(Answer):
    """The process lives."""

    status: Literal["ok"] = "ok"


class Readiness(Answer):
    """Whether the parts behind this process answer."""

    status: Literal["ok", "unavailable"]
    parts: dict[str, str] = Field(description='Each part and "ok", or what is wrong with it.')
    error: ErrorObject | None = Field(default=None, description="Null when ready.")
