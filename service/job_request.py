"""What a request for a job may hold, whichever way it came, and the `JobSpec` that it becomes. Pure.

Fields have OpenAI's names and ours under `tunesmith`; OpenAPI shows the descriptions. REST validates a JSON body against
it, gRPC the fields of a message.
"""

from __future__ import annotations

from typing import Annotated, Any, cast

from pydantic import Field, model_validator

from service.data_report import Param
from service.errors import invalid
from service.estimate import CountedData
from service.jobs import JobSpec, MethodSpec
from trainers.spec import DataSpec, Frozen, Hyperparameters, IntegrationSpec, TrainingSpec, TunesmithSpec

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


class EstimateJobRequest(CreateFineTuningJobRequest):
    """A job as it would be created."""

    data: CountedData | None = Field(
        default=None, description="Counts in place of the files, which are then not looked at: for data that is not uploaded yet."
    )


class CheckFileRequest(Frozen):
    """What a file is to be checked for."""

    model: str = Field(
        min_length=1, max_length=256, description="Id of a base model: its tokenizer and template decide what a row becomes."
    )
    method: str = Field(default="supervised", min_length=1, max_length=64, description="Name of the method.")
    training: TrainingSpec = Field(default=TrainingSpec(), description="As a job has it; max_length and overlong count here.")
    data: DataSpec = Field(default=DataSpec(), description="As a job has it: format, and which columns hold what.")
    purpose: Param = Field(default="training_file", description="What it is for: a validation file may be of one row.")
    preview: int = Field(default=0, ge=0, le=5, description="Rows that the report shows as the model will see them.")


CHECK_FIELDS = {"method.type": "method", "tunesmith.training.max_length": "training.max_length"}
"""Fields of a job as the request for a check names them."""


def job_spec(request: CreateFineTuningJobRequest) -> JobSpec:
    """What the request asks for; INVALID_REQUEST where its parts contradict each other."""
    return JobSpec(
        model=request.model,
        training_file=request.training_file,
        validation_file=request.validation_file,
        suffix=request.suffix,
        seed=request.seed,
        metadata=request.metadata or {},
        integrations=request.integrations or [],
        method=_method(request),
        tunesmith=request.tunesmith,
    )


def _method(request: CreateFineTuningJobRequest) -> MethodSpec:
    method = request.method or MethodRequest(type="supervised")
    block = method.supervised if method.type == "supervised" else None
    given = block.hyperparameters if block else Hyperparameters()
    return MethodSpec(type=method.type, hyperparameters=_merged(given, request.hyperparameters or Hyperparameters()))


def _merged(given: Hyperparameters, deprecated: Hyperparameters) -> Hyperparameters:
    """Both places together: "auto" leaves the word to the other, two different numbers are an error."""
    values: dict[str, Any] = {}
    for name in Hyperparameters.model_fields:
        new, old = getattr(given, name), getattr(deprecated, name)
        if "auto" not in (new, old) and new != old:
            raise invalid(
                f"'hyperparameters.{name}' is {old} but 'method.supervised.hyperparameters.{name}' is {new}; give it once.",
                f"hyperparameters.{name}",
            )
        values[name] = old if new == "auto" else new
    return Hyperparameters(**values)
