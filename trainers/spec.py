"""What a job may ask for and what a worker is told. Frozen values, free of torch and of the service.

The `…Spec` classes are the sections of a job's `tunesmith` object: their bounds and descriptions are
the ones that OpenAPI shows. `RunSpec` is the whole of what one run is told; it is written beside every
checkpoint, so a checkpoint can be resumed without the database.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

AUTO: Literal["auto"] = "auto"
EngineName = Literal["torch", "zero1", "zero2", "zero3"]


class Frozen(BaseModel):
    """A value that never changes and refuses what it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, strict=True)


class Hyperparameters(Frozen):
    """OpenAI's hyperparameters. "auto" is resolved when the dataset is known, and written back to the job."""

    n_epochs: Literal["auto"] | Annotated[int, Field(ge=1, le=50)] = Field(default=AUTO, description="Passes over the training file.")
    batch_size: Literal["auto"] | Annotated[int, Field(ge=1, le=256)] = Field(
        default=AUTO, description="Rows of one optimizer step, over all workers and micro-batches."
    )
    learning_rate_multiplier: Literal["auto"] | Annotated[float, Field(gt=0, le=1000)] = Field(
        default=AUTO, description="Factor on `tunesmith.training.learning_rate`; auto is 1."
    )


class AdapterSpec(Frozen):
    """What is trained."""

    type: Literal["lora", "full"] = Field(
        default="lora",
        description="lora: a low-rank update beside the frozen model. full: every weight, without further settings.",
    )
    r: int = Field(default=16, ge=1, le=512, description="Rank of the update.")
    alpha: int = Field(default=32, ge=1, le=2048, description="Scale: the update is multiplied by alpha / r.")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="Dropout on the adapter's input.")
    target_modules: (
        Literal["all-linear"] | Annotated[list[Annotated[str, Field(min_length=1, max_length=128)]], Field(min_length=1, max_length=64)]
    ) = Field(
        default="all-linear", description='"all-linear" (all but the output head) or names of linear modules, e.g. ["q_proj", "v_proj"].'
    )

    @model_validator(mode="after")
    def _full_has_no_settings(self) -> AdapterSpec:
        settings = {name: field.default for name, field in AdapterSpec.model_fields.items() if name != "type"}
        given = [name for name, default in settings.items() if getattr(self, name) != default]
        if self.type == "full" and given:
            raise ValueError(f"is of type full, which trains every weight and has no {' or '.join(given)}")
        return self


class TrainingSpec(Frozen):
    """How the adapter is trained."""

    learning_rate: float = Field(default=2e-4, gt=0, le=1, description="Peak learning rate of AdamW, before the multiplier.")
    schedule: Literal["cosine", "linear", "constant"] = Field(
        default="cosine", description="Shape of the learning rate after warm-up; cosine and linear end at 0."
    )
    warmup_ratio: float = Field(default=0.03, ge=0, lt=1, description="Share of the steps spent in linear warm-up.")
    weight_decay: float = Field(default=0.0, ge=0, le=1, description="Decoupled weight decay of AdamW.")
    max_grad_norm: float = Field(default=1.0, gt=0, le=1e6, description="Global L2 norm that gradients are clipped to.")
    max_length: int = Field(default=1024, ge=16, le=131072, description="Longest row, in tokens.")
    overlong: Literal["truncate", "drop", "error"] = Field(
        default="truncate", description="What to do with a row above max_length: cut its end, leave it out, or fail the data check."
    )
    activation_checkpointing: bool = Field(
        default=False, description="Keep only each layer's input for the backward pass and compute the rest again: less memory, more time."
    )


class CheckpointSpec(Frozen):
    """When checkpoints are written and how many are kept."""

    every_steps: int = Field(
        default=20, ge=1, le=1_000_000, description="Optimizer steps between two checkpoints; the last step always has one."
    )
    every_seconds: int | None = Field(
        default=None, ge=1, le=604_800, description="Longest time between two checkpoints, besides every_steps; off unless given."
    )
    keep: int = Field(default=3, ge=1, le=100, description="Newest complete checkpoints that are kept.")
    keep_best: bool = Field(
        default=True, description="Keep the checkpoint of the lowest validation loss too, where the validation file was scored."
    )


class EarlyStopping(Frozen):
    """Stop when the validation loss no longer falls."""

    patience: int = Field(default=3, ge=1, le=1000, description="Evaluations without a new lowest validation loss before the run stops.")
    min_delta: float = Field(default=0.0, ge=0, description="Least fall of the validation loss that counts.")


class EvaluationSpec(Frozen):
    """When the validation file is scored."""

    every_steps: int = Field(
        default=20, ge=1, le=1_000_000, description="Optimizer steps between two evaluations; the last step always has one."
    )
    early_stopping: EarlyStopping | None = Field(default=None, description="Off unless given.")


LabelName = Annotated[str, Field(max_length=128, pattern=r"^([a-z0-9.-]+/)?[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$")]
LabelValue = Annotated[str, Field(max_length=63, pattern=r"^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$")]
"""One value, not one of Ray's conditions such as "in(a,b)"."""


Bucket = Annotated[int, Field(ge=10_000, le=10_000_000_000)]


class OffloadSpec(Frozen):
    """Where a part of a worker's state lies while it is not computed with."""

    device: Literal["cpu"] = Field(description="cpu: the host's memory.")
    pin_memory: bool = Field(default=False, description="Page-locked memory: faster copies, which cannot be swapped out.")


class StateOffloadSpec(Frozen):
    """Where optimizer state lies while it is not computed with; it is then computed with on the host's processor."""

    device: Literal["cpu", "nvme"] = Field(
        description="cpu: the host's memory. nvme: files in the directory that the operator names on each node (TUNESMITH_NVME_DIR)."
    )
    pin_memory: bool = Field(default=False, description="cpu: page-locked memory, for faster copies; it cannot be swapped out.")

    @model_validator(mode="after")
    def _files_are_not_locked(self) -> StateOffloadSpec:
        if self.device == "nvme" and self.pin_memory:
            raise ValueError("has pin_memory beside the device nvme: pages of a file that were locked would be memory")
        return self


class ZeroSpec(Frozen):
    """Settings of DeepSpeed's `zero_optimization`, under its own names; what is not given is DeepSpeed's default."""

    offload_optimizer: StateOffloadSpec | None = Field(default=None, description="Optimizer state off the device.")
    offload_param: OffloadSpec | None = Field(default=None, description="zero3: weights off the device.")
    overlap_comm: bool | None = Field(default=None, description="Reduce gradients while the backward pass goes on.")
    reduce_bucket_size: Bucket | None = Field(default=None, description="Numbers that are reduced at a time.")
    allgather_bucket_size: Bucket | None = Field(default=None, description="zero1, zero2: numbers that are gathered at a time.")
    sub_group_size: Bucket | None = Field(default=None, description="zero3: numbers that the optimizer updates at a time.")
    stage3_prefetch_bucket_size: Bucket | None = Field(default=None, description="zero3: numbers that are gathered ahead.")
    stage3_param_persistence_threshold: Annotated[int, Field(ge=0, le=10_000_000_000)] | None = Field(
        default=None, description="zero3: weights of fewer numbers stay whole."
    )
    stage3_max_live_parameters: Bucket | None = Field(default=None, description="zero3: numbers that are whole at a time.")
    stage3_max_reuse_distance: Bucket | None = Field(
        default=None, description="zero3: weights needed again within so many numbers stay whole."
    )
    zero_quantized_weights: bool | None = Field(
        default=None, description="ZeRO++ (zero3, GPUs): weights travel as int8. Changes the losses."
    )
    zero_quantized_gradients: bool | None = Field(
        default=None, description="ZeRO++ (zero3, GPUs): gradients travel as int4 between nodes. Changes the losses."
    )
    zero_hpz_partition_size: Annotated[int, Field(ge=1, le=1024)] | None = Field(
        default=None,
        description="ZeRO++ (zero3): workers that hold a second copy of the weights among them, usually those of a node, so that the "
        "backward pass gathers from them alone. Divides `workers`.",
    )
    zero_quantized_nontrainable_weights: bool | None = Field(
        default=None, description="MixZ++ (zero3, GPUs, lora): the frozen weights are kept as int8, and travel so. Changes the losses."
    )

    @model_validator(mode="after")
    def _quantized_weights_stay_on_the_device(self) -> ZeroSpec:
        if self.zero_quantized_nontrainable_weights and self.offload_param:
            raise ValueError("has zero_quantized_nontrainable_weights beside offload_param: quantized weights stay on the device")
        if self.zero_quantized_nontrainable_weights and self.zero_hpz_partition_size:
            raise ValueError("has zero_quantized_nontrainable_weights beside zero_hpz_partition_size: a second copy would not be int8")
        return self


class DeepSpeedSpec(Frozen):
    """What a job may set of DeepSpeed's configuration: all that is safe to leave to a client, and nothing else."""

    zero_optimization: ZeroSpec = ZeroSpec()

    def given(self) -> dict[str, Any]:
        """The settings of `zero_optimization` that were given, as DeepSpeed takes them."""
        return self.zero_optimization.model_dump(exclude_none=True)

    @property
    def wanted(self) -> set[str]:
        """Names of the settings that were given and are not off."""
        return {name for name, value in self.given().items() if value is not False}

    @property
    def on_nvme(self) -> bool:
        """Whether optimizer state lies in files of the nodes."""
        offload = self.zero_optimization.offload_optimizer
        return offload is not None and offload.device == "nvme"

    @property
    def rounds_weights(self) -> bool:
        """Whether a pass computes with weights that were rounded to int8 on their way."""
        return bool(self.zero_optimization.zero_quantized_weights or self.zero_optimization.zero_quantized_nontrainable_weights)


QUANTIZED = {"zero_quantized_weights", "zero_quantized_gradients", "zero_quantized_nontrainable_weights"}
"""By kernels that only GPUs have."""
ZERO3_ALONE = {"offload_param", "sub_group_size", "zero_hpz_partition_size"} | QUANTIZED


class ResourceSpec(Frozen):
    """The gang of workers that the job asks for: all of them or none."""

    workers: int = Field(default=1, ge=1, le=4096, description="Workers of the run (world size).")
    sequence_parallel: int = Field(
        default=1,
        ge=1,
        le=256,
        description="Workers that share each row, a part of its tokens each (Ulysses), for rows that are too long for one. Divides workers "
        "and min_workers, and the base model's attention heads. 1 is plain data parallelism.",
    )
    gpus_per_worker: int = Field(default=0, ge=0, le=16, description="GPUs of each worker; 0 trains on the processor.")
    cpus_per_worker: int | None = Field(
        default=None,
        ge=1,
        le=1024,
        description="Processor cores of each worker; by default all cores of the node divided by the workers on it.",
    )
    engine: Literal["auto"] | EngineName = Field(
        default="auto",
        description="How a step runs on devices: torch is plain (one worker) or DDP; zero1, zero2 and zero3 are DeepSpeed's, which divide "
        "optimizer state, then gradients, then weights over the workers. auto takes torch where a device holds it all.",
    )
    deepspeed: DeepSpeedSpec | None = Field(default=None, description="Settings of DeepSpeed, for the engines zero1 to zero3.")
    min_workers: int | None = Field(
        default=None, ge=1, le=4096, description="Fewest workers to start with when not all fit; by default all of them or none."
    )
    placement: Literal["pack", "spread", "strict_pack", "strict_spread"] = Field(
        default="pack",
        description="pack: on few nodes; spread: on many; strict_pack: all on one; strict_spread: each on a node of its own.",
    )
    accelerator_type: Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9._-]+$")] | None = Field(
        default=None, description="Type of the workers' GPUs as Ray names it, e.g. H100; any unless given."
    )
    labels: Annotated[dict[LabelName, LabelValue], Field(max_length=16)] = Field(
        default={}, description='Labels that the workers\' nodes must bear, e.g. {"zone": "a"}.'
    )

    @property
    def replicas(self) -> int:
        """Groups of workers that take different rows (the data-parallel size)."""
        return self.workers // self.sequence_parallel

    @model_validator(mode="after")
    def _workers_can_be(self) -> ResourceSpec:
        if self.min_workers is not None and self.min_workers > self.workers:
            raise ValueError(f"min_workers ({self.min_workers}) must not be above workers ({self.workers})")
        if self.accelerator_type is not None and not self.gpus_per_worker:
            raise ValueError("accelerator_type names the type of GPUs, and gpus_per_worker is 0")
        for name, number in (("workers", self.workers), ("min_workers", self.min_workers)):
            if number is not None and number % self.sequence_parallel:
                raise ValueError(f"{name} ({number}) must be a multiple of sequence_parallel ({self.sequence_parallel})")
        return self

    @model_validator(mode="after")
    def _settings_fit_the_engine(self) -> ResourceSpec:
        given = self.deepspeed.wanted if self.deepspeed else set[str]()
        if self.engine == "torch" and self.deepspeed:
            words = "has settings of DeepSpeed beside the engine torch, which takes none"
        elif self.engine in ("zero1", "zero2") and given & ZERO3_ALONE:
            words = f"has {min(given & ZERO3_ALONE)} beside the engine {self.engine}; it is a setting of zero3"
        elif not self.gpus_per_worker and given & QUANTIZED:
            words = f"has {min(given & QUANTIZED)}, which needs GPUs"
        else:
            return self
        raise ValueError(words)

    @property
    def refusal(self) -> str:
        """Why no job is accepted with these, in words; empty when one is. No validator, for jobs were stored before this was asked."""
        size = (self.deepspeed and self.deepspeed.zero_optimization.zero_hpz_partition_size) or 1
        if size > 1 and self.min_workers is not None:
            return (
                "'tunesmith.resources' has zero_hpz_partition_size beside min_workers, and must divide whatever number of workers there is."
            )
        if self.workers % size:
            return f"'tunesmith.resources' has zero_hpz_partition_size {size}, which does not divide its {self.workers} workers."
        return ""


Column = Annotated[str, Field(min_length=1, max_length=256)]
Role = Literal["system", "developer", "user", "assistant", "tool", "function"]


class MappingSpec(Frozen):
    """Which columns of the files hold what: either `prompt` and `completion`, or `messages`.

    A column is named by its key, nested fields by a dotted path (`answer.text`, `turns.0.value`).
    """

    prompt: Column | None = Field(default=None, description="Column of what the user says.")
    completion: Column | None = Field(default=None, description="Column of what the assistant answers, which is learned.")
    system: Column | None = Field(default=None, description="Beside prompt: column of the system message; rows without a value have none.")
    messages: Column | None = Field(default=None, description="Column of a whole conversation, as a list of messages or as JSON text.")
    role: Column | None = Field(default=None, description='Beside messages: key of a message\'s role; "role" unless given.')
    content: Column | None = Field(default=None, description='Beside messages: key of a message\'s text; "content" unless given.')
    roles: Annotated[dict[Annotated[str, Field(min_length=1, max_length=64)], Role], Field(max_length=32)] | None = Field(
        default=None, description='Beside messages: the role that each other name stands for, e.g. {"human": "user", "gpt": "assistant"}.'
    )

    @model_validator(mode="after")
    def _is_one_form(self) -> MappingSpec:
        given = {name for name in MappingSpec.model_fields if getattr(self, name) is not None}
        pair, conversation = given & {"prompt", "completion", "system"}, given & {"messages", "role", "content", "roles"}
        if pair and conversation:
            words = f"names {' and '.join(sorted(pair))} beside {' and '.join(sorted(conversation))}; only one of the two forms can be"
        elif pair and not {"prompt", "completion"} <= pair:
            words = f"names {' and '.join(sorted(pair))} alone: prompt and completion are needed"
        elif "messages" not in given and not pair:
            words = "must name prompt and completion, or messages"
        else:
            return self
        raise ValueError(words)


class DataSpec(Frozen):
    """How the training and the validation file are read."""

    format: Literal["auto", "jsonl", "json", "csv", "parquet"] = Field(
        default="auto",
        description="JSON Lines, a JSON array, CSV or Parquet; auto tells them apart by their content. Each may be packed by gzip or zstd.",
    )
    mapping: MappingSpec | None = Field(default=None, description="Which columns hold what; rows are taken as they are unless given.")


class LimitSpec(Frozen):
    """When the job is given up. What it has saved until then is kept."""

    max_duration: int | None = Field(
        default=None,
        ge=1,
        le=10**9,
        description="Seconds that all runs of the job may hold their workers, taken together; no limit unless given.",
    )
    deadline: int | None = Field(
        default=None, ge=1, le=10**9, description="Seconds after the job's creation by which it must have succeeded; no limit unless given."
    )


class TunesmithSpec(Frozen):
    """Tunesmith's own part of a job, under the key `tunesmith`."""

    data: DataSpec = DataSpec()
    adapter: AdapterSpec = AdapterSpec()
    training: TrainingSpec = TrainingSpec()
    checkpoints: CheckpointSpec = CheckpointSpec()
    evaluation: EvaluationSpec = EvaluationSpec()
    resources: ResourceSpec = ResourceSpec()
    priority: int = Field(default=0, ge=-100, le=100, description="Higher is claimed first; among equal ones the projects take turns.")
    limits: LimitSpec = LimitSpec()

    @model_validator(mode="after")
    def _what_is_trained_is_not_frozen(self) -> TunesmithSpec:
        settings = self.resources.deepspeed
        if self.adapter.type == "full" and settings and settings.zero_optimization.zero_quantized_nontrainable_weights:
            raise ValueError("has zero_quantized_nontrainable_weights beside an adapter of type full, which leaves no weight untrained")
        return self


class WandbSpec(Frozen):
    """Where a job's numbers go at Weights & Biases."""

    project: str = Field(min_length=1, max_length=128, pattern=r"^[^/\\#?%:]+$", description="Project that the run is made in.")
    name: Annotated[str, Field(min_length=1, max_length=128)] | None = Field(
        default=None, description="Name the run is shown under; the job's id unless given."
    )
    entity: Annotated[str, Field(min_length=1, max_length=128)] | None = Field(
        default=None, description="Team or user; the API key's own unless given."
    )
    tags: Annotated[list[Annotated[str, Field(min_length=1, max_length=64)]], Field(max_length=64)] | None = Field(
        default=None, description="Tags of the run, beside those that say which job and base model it is."
    )


class IntegrationSpec(Frozen):
    """Another service that a job's numbers are sent to."""

    type: Literal["wandb"] = Field(description="wandb: Weights & Biases.")
    wandb: WandbSpec = Field(description="Settings of the integration.")


class Resolved(Frozen):
    """Every "auto" of a job, decided once when its dataset is known."""

    n_epochs: int
    batch_size: int
    learning_rate_multiplier: float
    learning_rate: float = Field(description="Peak learning rate: training.learning_rate times the multiplier.")
    engine: EngineName
    steps: int = Field(description="Optimizer steps of the whole job.")


class BaseModelRef(Frozen):
    """Where the weights of a base model lie: `base/<id>/<revision>/` in storage, hashes in its manifest."""

    id: str
    revision: str
    prefix: str
    licence: str


class DatasetRef(Frozen):
    """A tokenised dataset: `datasets/<sha256>/` in storage. Counts are of rows and tokens kept."""

    prefix: str
    sha256: str
    rows: int
    tokens: int
    trained_tokens: int = Field(description="Tokens of one epoch that carry a label.")
    longest: int = Field(description="Tokens of the longest row.")


class RunSpec(Frozen):
    """All that the workers of one run are told. Holds no secret: the run's token lies in its own object."""

    job_id: str
    epoch: int = Field(ge=1, description="Number of the run (attempt) of this job.")
    method: str
    seed: int
    base_model: BaseModelRef
    dataset: DatasetRef
    validation: DatasetRef | None
    resolved: Resolved
    tunesmith: TunesmithSpec
    storage_url: str = Field(description="file:///… or s3://bucket/prefix; credentials come from the node's environment.")
    report_address: str = Field(description="host:port of the gateway's Runs service.")
    tuned_model: str = Field(description="Name the finished adapter will be found under.")
    integrations: list[IntegrationSpec] = Field(default=[], description="Other services that rank 0 sends its numbers to.")
    resume_from: list[str] = Field(
        default=[], description="Prefixes of checkpoints of earlier runs, newest first; the first that verifies is taken."
    )
    micro_batch: int | None = Field(default=None, ge=1, description="Most rows of one forward pass; the plan's own choice unless given.")
    log_bytes: int = Field(default=8 * 2**20, ge=2**20, description="Bytes kept of each process's log; of a longer one the middle goes.")

    @property
    def run_id(self) -> str:
        """The Ray submission id: submitting it twice cannot start two."""
        return f"{self.job_id}-{self.epoch}"

    @property
    def rows_per_replica(self) -> int:
        """Most rows of a step that fall to one replica."""
        return -(-self.resolved.batch_size // self.tunesmith.resources.replicas)

    @property
    def run_prefix(self) -> str:
        """Storage prefix of everything this run writes before it publishes."""
        return run_prefix(self.job_id, self.epoch)

    @property
    def model_prefix(self) -> str:
        """Storage prefix of what this run publishes."""
        return model_prefix(self.job_id, self.epoch)


def run_prefix(job_id: str, epoch: int) -> str:
    """Storage prefix of one run: `spec.json`, `token`, `checkpoints/step-<n>/`, `logs/`."""
    return f"runs/{job_id}/{epoch}"


def logs_prefix(job_id: str, epoch: int) -> str:
    """Storage prefix of one run's logs; they stay when the rest of the run goes, until the job is deleted."""
    return f"{run_prefix(job_id, epoch)}/logs"


def is_log(key: str) -> bool:
    """Whether the object lies below some run's `logs_prefix`."""
    parts = key.split("/")
    return len(parts) > 4 and parts[0] == "runs" and parts[3] == "logs"


def published_prefix(job_id: str) -> str:
    """Storage prefix of all that runs of the job published."""
    return f"models/{job_id}"


def model_prefix(job_id: str, epoch: int) -> str:
    """Storage prefix of what one run publishes; `manifest.json` there means complete.

    The job's row names the run that counts, so a run that was given up can never write into what another published.
    """
    return f"{published_prefix(job_id)}/{epoch}"
