import datetime

from google.protobuf import struct_pb2 as _struct_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class JobStatus(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    JOB_STATUS_UNSPECIFIED: _ClassVar[JobStatus]
    JOB_STATUS_VALIDATING: _ClassVar[JobStatus]
    JOB_STATUS_QUEUED: _ClassVar[JobStatus]
    JOB_STATUS_STARTING: _ClassVar[JobStatus]
    JOB_STATUS_RUNNING: _ClassVar[JobStatus]
    JOB_STATUS_PAUSING: _ClassVar[JobStatus]
    JOB_STATUS_PAUSED: _ClassVar[JobStatus]
    JOB_STATUS_CANCELLING: _ClassVar[JobStatus]
    JOB_STATUS_SUCCEEDED: _ClassVar[JobStatus]
    JOB_STATUS_FAILED: _ClassVar[JobStatus]
    JOB_STATUS_CANCELLED: _ClassVar[JobStatus]

class AdapterType(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ADAPTER_TYPE_UNSPECIFIED: _ClassVar[AdapterType]
    ADAPTER_TYPE_LORA: _ClassVar[AdapterType]
    ADAPTER_TYPE_FULL: _ClassVar[AdapterType]

class Schedule(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SCHEDULE_UNSPECIFIED: _ClassVar[Schedule]
    SCHEDULE_COSINE: _ClassVar[Schedule]
    SCHEDULE_LINEAR: _ClassVar[Schedule]
    SCHEDULE_CONSTANT: _ClassVar[Schedule]

class Overlong(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    OVERLONG_UNSPECIFIED: _ClassVar[Overlong]
    OVERLONG_TRUNCATE: _ClassVar[Overlong]
    OVERLONG_DROP: _ClassVar[Overlong]
    OVERLONG_ERROR: _ClassVar[Overlong]

class Engine(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ENGINE_UNSPECIFIED: _ClassVar[Engine]
    ENGINE_TORCH: _ClassVar[Engine]
    ENGINE_ZERO1: _ClassVar[Engine]
    ENGINE_ZERO2: _ClassVar[Engine]
    ENGINE_ZERO3: _ClassVar[Engine]

class PlacementStrategy(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PLACEMENT_STRATEGY_UNSPECIFIED: _ClassVar[PlacementStrategy]
    PLACEMENT_STRATEGY_PACK: _ClassVar[PlacementStrategy]
    PLACEMENT_STRATEGY_SPREAD: _ClassVar[PlacementStrategy]
    PLACEMENT_STRATEGY_STRICT_PACK: _ClassVar[PlacementStrategy]
    PLACEMENT_STRATEGY_STRICT_SPREAD: _ClassVar[PlacementStrategy]

class EventLevel(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    EVENT_LEVEL_UNSPECIFIED: _ClassVar[EventLevel]
    EVENT_LEVEL_INFO: _ClassVar[EventLevel]
    EVENT_LEVEL_WARN: _ClassVar[EventLevel]
    EVENT_LEVEL_ERROR: _ClassVar[EventLevel]

class EventType(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    EVENT_TYPE_UNSPECIFIED: _ClassVar[EventType]
    EVENT_TYPE_MESSAGE: _ClassVar[EventType]
    EVENT_TYPE_METRICS: _ClassVar[EventType]

class ErrorCause(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ERROR_CAUSE_UNSPECIFIED: _ClassVar[ErrorCause]
    ERROR_CAUSE_DATA: _ClassVar[ErrorCause]
    ERROR_CAUSE_CONFIG: _ClassVar[ErrorCause]
    ERROR_CAUSE_RESOURCE: _ClassVar[ErrorCause]
    ERROR_CAUSE_INFRASTRUCTURE: _ClassVar[ErrorCause]
    ERROR_CAUSE_SERVICE: _ClassVar[ErrorCause]

class OffloadDevice(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    OFFLOAD_DEVICE_UNSPECIFIED: _ClassVar[OffloadDevice]
    OFFLOAD_DEVICE_CPU: _ClassVar[OffloadDevice]
    OFFLOAD_DEVICE_NVME: _ClassVar[OffloadDevice]

class DataFormat(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DATA_FORMAT_UNSPECIFIED: _ClassVar[DataFormat]
    DATA_FORMAT_JSONL: _ClassVar[DataFormat]
    DATA_FORMAT_JSON: _ClassVar[DataFormat]
    DATA_FORMAT_CSV: _ClassVar[DataFormat]
    DATA_FORMAT_PARQUET: _ClassVar[DataFormat]

class IntegrationType(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    INTEGRATION_TYPE_UNSPECIFIED: _ClassVar[IntegrationType]
    INTEGRATION_TYPE_WANDB: _ClassVar[IntegrationType]

class AttemptOutcome(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ATTEMPT_OUTCOME_UNSPECIFIED: _ClassVar[AttemptOutcome]
    ATTEMPT_OUTCOME_SUCCEEDED: _ClassVar[AttemptOutcome]
    ATTEMPT_OUTCOME_FAILED: _ClassVar[AttemptOutcome]
    ATTEMPT_OUTCOME_LOST: _ClassVar[AttemptOutcome]
    ATTEMPT_OUTCOME_STOPPED: _ClassVar[AttemptOutcome]
JOB_STATUS_UNSPECIFIED: JobStatus
JOB_STATUS_VALIDATING: JobStatus
JOB_STATUS_QUEUED: JobStatus
JOB_STATUS_STARTING: JobStatus
JOB_STATUS_RUNNING: JobStatus
JOB_STATUS_PAUSING: JobStatus
JOB_STATUS_PAUSED: JobStatus
JOB_STATUS_CANCELLING: JobStatus
JOB_STATUS_SUCCEEDED: JobStatus
JOB_STATUS_FAILED: JobStatus
JOB_STATUS_CANCELLED: JobStatus
ADAPTER_TYPE_UNSPECIFIED: AdapterType
ADAPTER_TYPE_LORA: AdapterType
ADAPTER_TYPE_FULL: AdapterType
SCHEDULE_UNSPECIFIED: Schedule
SCHEDULE_COSINE: Schedule
SCHEDULE_LINEAR: Schedule
SCHEDULE_CONSTANT: Schedule
OVERLONG_UNSPECIFIED: Overlong
OVERLONG_TRUNCATE: Overlong
OVERLONG_DROP: Overlong
OVERLONG_ERROR: Overlong
ENGINE_UNSPECIFIED: Engine
ENGINE_TORCH: Engine
ENGINE_ZERO1: Engine
ENGINE_ZERO2: Engine
ENGINE_ZERO3: Engine
PLACEMENT_STRATEGY_UNSPECIFIED: PlacementStrategy
PLACEMENT_STRATEGY_PACK: PlacementStrategy
PLACEMENT_STRATEGY_SPREAD: PlacementStrategy
PLACEMENT_STRATEGY_STRICT_PACK: PlacementStrategy
PLACEMENT_STRATEGY_STRICT_SPREAD: PlacementStrategy
EVENT_LEVEL_UNSPECIFIED: EventLevel
EVENT_LEVEL_INFO: EventLevel
EVENT_LEVEL_WARN: EventLevel
EVENT_LEVEL_ERROR: EventLevel
EVENT_TYPE_UNSPECIFIED: EventType
EVENT_TYPE_MESSAGE: EventType
EVENT_TYPE_METRICS: EventType
ERROR_CAUSE_UNSPECIFIED: ErrorCause
ERROR_CAUSE_DATA: ErrorCause
ERROR_CAUSE_CONFIG: ErrorCause
ERROR_CAUSE_RESOURCE: ErrorCause
ERROR_CAUSE_INFRASTRUCTURE: ErrorCause
ERROR_CAUSE_SERVICE: ErrorCause
OFFLOAD_DEVICE_UNSPECIFIED: OffloadDevice
OFFLOAD_DEVICE_CPU: OffloadDevice
OFFLOAD_DEVICE_NVME: OffloadDevice
DATA_FORMAT_UNSPECIFIED: DataFormat
DATA_FORMAT_JSONL: DataFormat
DATA_FORMAT_JSON: DataFormat
DATA_FORMAT_CSV: DataFormat
DATA_FORMAT_PARQUET: DataFormat
INTEGRATION_TYPE_UNSPECIFIED: IntegrationType
INTEGRATION_TYPE_WANDB: IntegrationType
ATTEMPT_OUTCOME_UNSPECIFIED: AttemptOutcome
ATTEMPT_OUTCOME_SUCCEEDED: AttemptOutcome
ATTEMPT_OUTCOME_FAILED: AttemptOutcome
ATTEMPT_OUTCOME_LOST: AttemptOutcome
ATTEMPT_OUTCOME_STOPPED: AttemptOutcome

class Hyperparameters(_message.Message):
    __slots__ = ("n_epochs", "batch_size", "learning_rate_multiplier")
    N_EPOCHS_FIELD_NUMBER: _ClassVar[int]
    BATCH_SIZE_FIELD_NUMBER: _ClassVar[int]
    LEARNING_RATE_MULTIPLIER_FIELD_NUMBER: _ClassVar[int]
    n_epochs: int
    batch_size: int
    learning_rate_multiplier: float
    def __init__(self, n_epochs: _Optional[int] = ..., batch_size: _Optional[int] = ..., learning_rate_multiplier: _Optional[float] = ...) -> None: ...

class SupervisedMethod(_message.Message):
    __slots__ = ("hyperparameters",)
    HYPERPARAMETERS_FIELD_NUMBER: _ClassVar[int]
    hyperparameters: Hyperparameters
    def __init__(self, hyperparameters: _Optional[_Union[Hyperparameters, _Mapping]] = ...) -> None: ...

class Method(_message.Message):
    __slots__ = ("type", "supervised")
    TYPE_FIELD_NUMBER: _ClassVar[int]
    SUPERVISED_FIELD_NUMBER: _ClassVar[int]
    type: str
    supervised: SupervisedMethod
    def __init__(self, type: _Optional[str] = ..., supervised: _Optional[_Union[SupervisedMethod, _Mapping]] = ...) -> None: ...

class AdapterSpec(_message.Message):
    __slots__ = ("type", "r", "alpha", "dropout", "target_modules")
    TYPE_FIELD_NUMBER: _ClassVar[int]
    R_FIELD_NUMBER: _ClassVar[int]
    ALPHA_FIELD_NUMBER: _ClassVar[int]
    DROPOUT_FIELD_NUMBER: _ClassVar[int]
    TARGET_MODULES_FIELD_NUMBER: _ClassVar[int]
    type: AdapterType
    r: int
    alpha: int
    dropout: float
    target_modules: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, type: _Optional[_Union[AdapterType, str]] = ..., r: _Optional[int] = ..., alpha: _Optional[int] = ..., dropout: _Optional[float] = ..., target_modules: _Optional[_Iterable[str]] = ...) -> None: ...

class TrainingSpec(_message.Message):
    __slots__ = ("learning_rate", "schedule", "warmup_ratio", "weight_decay", "max_grad_norm", "max_length", "overlong", "activation_checkpointing")
    LEARNING_RATE_FIELD_NUMBER: _ClassVar[int]
    SCHEDULE_FIELD_NUMBER: _ClassVar[int]
    WARMUP_RATIO_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_DECAY_FIELD_NUMBER: _ClassVar[int]
    MAX_GRAD_NORM_FIELD_NUMBER: _ClassVar[int]
    MAX_LENGTH_FIELD_NUMBER: _ClassVar[int]
    OVERLONG_FIELD_NUMBER: _ClassVar[int]
    ACTIVATION_CHECKPOINTING_FIELD_NUMBER: _ClassVar[int]
    learning_rate: float
    schedule: Schedule
    warmup_ratio: float
    weight_decay: float
    max_grad_norm: float
    max_length: int
    overlong: Overlong
    activation_checkpointing: bool
    def __init__(self, learning_rate: _Optional[float] = ..., schedule: _Optional[_Union[Schedule, str]] = ..., warmup_ratio: _Optional[float] = ..., weight_decay: _Optional[float] = ..., max_grad_norm: _Optional[float] = ..., max_length: _Optional[int] = ..., overlong: _Optional[_Union[Overlong, str]] = ..., activation_checkpointing: _Optional[bool] = ...) -> None: ...

class CheckpointSpec(_message.Message):
    __slots__ = ("every_steps", "keep", "every_seconds", "keep_best")
    EVERY_STEPS_FIELD_NUMBER: _ClassVar[int]
    KEEP_FIELD_NUMBER: _ClassVar[int]
    EVERY_SECONDS_FIELD_NUMBER: _ClassVar[int]
    KEEP_BEST_FIELD_NUMBER: _ClassVar[int]
    every_steps: int
    keep: int
    every_seconds: int
    keep_best: bool
    def __init__(self, every_steps: _Optional[int] = ..., keep: _Optional[int] = ..., every_seconds: _Optional[int] = ..., keep_best: _Optional[bool] = ...) -> None: ...

class EarlyStopping(_message.Message):
    __slots__ = ("patience", "min_delta")
    PATIENCE_FIELD_NUMBER: _ClassVar[int]
    MIN_DELTA_FIELD_NUMBER: _ClassVar[int]
    patience: int
    min_delta: float
    def __init__(self, patience: _Optional[int] = ..., min_delta: _Optional[float] = ...) -> None: ...

class EvaluationSpec(_message.Message):
    __slots__ = ("every_steps", "early_stopping")
    EVERY_STEPS_FIELD_NUMBER: _ClassVar[int]
    EARLY_STOPPING_FIELD_NUMBER: _ClassVar[int]
    every_steps: int
    early_stopping: EarlyStopping
    def __init__(self, every_steps: _Optional[int] = ..., early_stopping: _Optional[_Union[EarlyStopping, _Mapping]] = ...) -> None: ...

class OffloadSpec(_message.Message):
    __slots__ = ("device", "pin_memory")
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    PIN_MEMORY_FIELD_NUMBER: _ClassVar[int]
    device: OffloadDevice
    pin_memory: bool
    def __init__(self, device: _Optional[_Union[OffloadDevice, str]] = ..., pin_memory: _Optional[bool] = ...) -> None: ...

class ZeroSpec(_message.Message):
    __slots__ = ("offload_optimizer", "offload_param", "overlap_comm", "reduce_bucket_size", "allgather_bucket_size", "sub_group_size", "stage3_prefetch_bucket_size", "stage3_param_persistence_threshold", "stage3_max_live_parameters", "stage3_max_reuse_distance", "zero_quantized_weights", "zero_quantized_gradients", "zero_hpz_partition_size", "zero_quantized_nontrainable_weights")
    OFFLOAD_OPTIMIZER_FIELD_NUMBER: _ClassVar[int]
    OFFLOAD_PARAM_FIELD_NUMBER: _ClassVar[int]
    OVERLAP_COMM_FIELD_NUMBER: _ClassVar[int]
    REDUCE_BUCKET_SIZE_FIELD_NUMBER: _ClassVar[int]
    ALLGATHER_BUCKET_SIZE_FIELD_NUMBER: _ClassVar[int]
    SUB_GROUP_SIZE_FIELD_NUMBER: _ClassVar[int]
    STAGE3_PREFETCH_BUCKET_SIZE_FIELD_NUMBER: _ClassVar[int]
    STAGE3_PARAM_PERSISTENCE_THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    STAGE3_MAX_LIVE_PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    STAGE3_MAX_REUSE_DISTANCE_FIELD_NUMBER: _ClassVar[int]
    ZERO_QUANTIZED_WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    ZERO_QUANTIZED_GRADIENTS_FIELD_NUMBER: _ClassVar[int]
    ZERO_HPZ_PARTITION_SIZE_FIELD_NUMBER: _ClassVar[int]
    ZERO_QUANTIZED_NONTRAINABLE_WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    offload_optimizer: OffloadSpec
    offload_param: OffloadSpec
    overlap_comm: bool
    reduce_bucket_size: int
    allgather_bucket_size: int
    sub_group_size: int
    stage3_prefetch_bucket_size: int
    stage3_param_persistence_threshold: int
    stage3_max_live_parameters: int
    stage3_max_reuse_distance: int
    zero_quantized_weights: bool
    zero_quantized_gradients: bool
    zero_hpz_partition_size: int
    zero_quantized_nontrainable_weights: bool
    def __init__(self, offload_optimizer: _Optional[_Union[OffloadSpec, _Mapping]] = ..., offload_param: _Optional[_Union[OffloadSpec, _Mapping]] = ..., overlap_comm: _Optional[bool] = ..., reduce_bucket_size: _Optional[int] = ..., allgather_bucket_size: _Optional[int] = ..., sub_group_size: _Optional[int] = ..., stage3_prefetch_bucket_size: _Optional[int] = ..., stage3_param_persistence_threshold: _Optional[int] = ..., stage3_max_live_parameters: _Optional[int] = ..., stage3_max_reuse_distance: _Optional[int] = ..., zero_quantized_weights: _Optional[bool] = ..., zero_quantized_gradients: _Optional[bool] = ..., zero_hpz_partition_size: _Optional[int] = ..., zero_quantized_nontrainable_weights: _Optional[bool] = ...) -> None: ...

class DeepSpeedSpec(_message.Message):
    __slots__ = ("zero_optimization",)
    ZERO_OPTIMIZATION_FIELD_NUMBER: _ClassVar[int]
    zero_optimization: ZeroSpec
    def __init__(self, zero_optimization: _Optional[_Union[ZeroSpec, _Mapping]] = ...) -> None: ...

class ResourceSpec(_message.Message):
    __slots__ = ("workers", "gpus_per_worker", "cpus_per_worker", "engine", "deepspeed", "min_workers", "placement", "accelerator_type", "labels", "sequence_parallel")
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    WORKERS_FIELD_NUMBER: _ClassVar[int]
    GPUS_PER_WORKER_FIELD_NUMBER: _ClassVar[int]
    CPUS_PER_WORKER_FIELD_NUMBER: _ClassVar[int]
    ENGINE_FIELD_NUMBER: _ClassVar[int]
    DEEPSPEED_FIELD_NUMBER: _ClassVar[int]
    MIN_WORKERS_FIELD_NUMBER: _ClassVar[int]
    PLACEMENT_FIELD_NUMBER: _ClassVar[int]
    ACCELERATOR_TYPE_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_PARALLEL_FIELD_NUMBER: _ClassVar[int]
    workers: int
    gpus_per_worker: int
    cpus_per_worker: int
    engine: Engine
    deepspeed: DeepSpeedSpec
    min_workers: int
    placement: PlacementStrategy
    accelerator_type: str
    labels: _containers.ScalarMap[str, str]
    sequence_parallel: int
    def __init__(self, workers: _Optional[int] = ..., gpus_per_worker: _Optional[int] = ..., cpus_per_worker: _Optional[int] = ..., engine: _Optional[_Union[Engine, str]] = ..., deepspeed: _Optional[_Union[DeepSpeedSpec, _Mapping]] = ..., min_workers: _Optional[int] = ..., placement: _Optional[_Union[PlacementStrategy, str]] = ..., accelerator_type: _Optional[str] = ..., labels: _Optional[_Mapping[str, str]] = ..., sequence_parallel: _Optional[int] = ...) -> None: ...

class MappingSpec(_message.Message):
    __slots__ = ("prompt", "completion", "system", "messages", "role", "content", "roles")
    class RolesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    COMPLETION_FIELD_NUMBER: _ClassVar[int]
    SYSTEM_FIELD_NUMBER: _ClassVar[int]
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    ROLES_FIELD_NUMBER: _ClassVar[int]
    prompt: str
    completion: str
    system: str
    messages: str
    role: str
    content: str
    roles: _containers.ScalarMap[str, str]
    def __init__(self, prompt: _Optional[str] = ..., completion: _Optional[str] = ..., system: _Optional[str] = ..., messages: _Optional[str] = ..., role: _Optional[str] = ..., content: _Optional[str] = ..., roles: _Optional[_Mapping[str, str]] = ...) -> None: ...

class DataSpec(_message.Message):
    __slots__ = ("format", "mapping")
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    MAPPING_FIELD_NUMBER: _ClassVar[int]
    format: DataFormat
    mapping: MappingSpec
    def __init__(self, format: _Optional[_Union[DataFormat, str]] = ..., mapping: _Optional[_Union[MappingSpec, _Mapping]] = ...) -> None: ...

class LimitSpec(_message.Message):
    __slots__ = ("max_duration", "deadline")
    MAX_DURATION_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_FIELD_NUMBER: _ClassVar[int]
    max_duration: int
    deadline: int
    def __init__(self, max_duration: _Optional[int] = ..., deadline: _Optional[int] = ...) -> None: ...

class TunesmithSpec(_message.Message):
    __slots__ = ("adapter", "training", "checkpoints", "evaluation", "resources", "priority", "data", "limits")
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    TRAINING_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINTS_FIELD_NUMBER: _ClassVar[int]
    EVALUATION_FIELD_NUMBER: _ClassVar[int]
    RESOURCES_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    adapter: AdapterSpec
    training: TrainingSpec
    checkpoints: CheckpointSpec
    evaluation: EvaluationSpec
    resources: ResourceSpec
    priority: int
    data: DataSpec
    limits: LimitSpec
    def __init__(self, adapter: _Optional[_Union[AdapterSpec, _Mapping]] = ..., training: _Optional[_Union[TrainingSpec, _Mapping]] = ..., checkpoints: _Optional[_Union[CheckpointSpec, _Mapping]] = ..., evaluation: _Optional[_Union[EvaluationSpec, _Mapping]] = ..., resources: _Optional[_Union[ResourceSpec, _Mapping]] = ..., priority: _Optional[int] = ..., data: _Optional[_Union[DataSpec, _Mapping]] = ..., limits: _Optional[_Union[LimitSpec, _Mapping]] = ...) -> None: ...

class WandbIntegration(_message.Message):
    __slots__ = ("project", "name", "entity", "tags")
    PROJECT_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    ENTITY_FIELD_NUMBER: _ClassVar[int]
    TAGS_FIELD_NUMBER: _ClassVar[int]
    project: str
    name: str
    entity: str
    tags: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, project: _Optional[str] = ..., name: _Optional[str] = ..., entity: _Optional[str] = ..., tags: _Optional[_Iterable[str]] = ...) -> None: ...

class Integration(_message.Message):
    __slots__ = ("type", "wandb")
    TYPE_FIELD_NUMBER: _ClassVar[int]
    WANDB_FIELD_NUMBER: _ClassVar[int]
    type: IntegrationType
    wandb: WandbIntegration
    def __init__(self, type: _Optional[_Union[IntegrationType, str]] = ..., wandb: _Optional[_Union[WandbIntegration, _Mapping]] = ...) -> None: ...

class JobSpec(_message.Message):
    __slots__ = ("model", "training_file", "validation_file", "suffix", "seed", "metadata", "method", "tunesmith", "integrations")
    class MetadataEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    MODEL_FIELD_NUMBER: _ClassVar[int]
    TRAINING_FILE_FIELD_NUMBER: _ClassVar[int]
    VALIDATION_FILE_FIELD_NUMBER: _ClassVar[int]
    SUFFIX_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    METHOD_FIELD_NUMBER: _ClassVar[int]
    TUNESMITH_FIELD_NUMBER: _ClassVar[int]
    INTEGRATIONS_FIELD_NUMBER: _ClassVar[int]
    model: str
    training_file: str
    validation_file: str
    suffix: str
    seed: int
    metadata: _containers.ScalarMap[str, str]
    method: Method
    tunesmith: TunesmithSpec
    integrations: _containers.RepeatedCompositeFieldContainer[Integration]
    def __init__(self, model: _Optional[str] = ..., training_file: _Optional[str] = ..., validation_file: _Optional[str] = ..., suffix: _Optional[str] = ..., seed: _Optional[int] = ..., metadata: _Optional[_Mapping[str, str]] = ..., method: _Optional[_Union[Method, _Mapping]] = ..., tunesmith: _Optional[_Union[TunesmithSpec, _Mapping]] = ..., integrations: _Optional[_Iterable[_Union[Integration, _Mapping]]] = ...) -> None: ...

class Progress(_message.Message):
    __slots__ = ("stage", "step", "total_steps", "loss", "learning_rate", "tokens_per_second", "eta_seconds", "workers")
    STAGE_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    TOTAL_STEPS_FIELD_NUMBER: _ClassVar[int]
    LOSS_FIELD_NUMBER: _ClassVar[int]
    LEARNING_RATE_FIELD_NUMBER: _ClassVar[int]
    TOKENS_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    ETA_SECONDS_FIELD_NUMBER: _ClassVar[int]
    WORKERS_FIELD_NUMBER: _ClassVar[int]
    stage: str
    step: int
    total_steps: int
    loss: float
    learning_rate: float
    tokens_per_second: float
    eta_seconds: float
    workers: int
    def __init__(self, stage: _Optional[str] = ..., step: _Optional[int] = ..., total_steps: _Optional[int] = ..., loss: _Optional[float] = ..., learning_rate: _Optional[float] = ..., tokens_per_second: _Optional[float] = ..., eta_seconds: _Optional[float] = ..., workers: _Optional[int] = ...) -> None: ...

class Resolved(_message.Message):
    __slots__ = ("n_epochs", "batch_size", "learning_rate_multiplier", "learning_rate", "engine", "steps")
    N_EPOCHS_FIELD_NUMBER: _ClassVar[int]
    BATCH_SIZE_FIELD_NUMBER: _ClassVar[int]
    LEARNING_RATE_MULTIPLIER_FIELD_NUMBER: _ClassVar[int]
    LEARNING_RATE_FIELD_NUMBER: _ClassVar[int]
    ENGINE_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    n_epochs: int
    batch_size: int
    learning_rate_multiplier: float
    learning_rate: float
    engine: Engine
    steps: int
    def __init__(self, n_epochs: _Optional[int] = ..., batch_size: _Optional[int] = ..., learning_rate_multiplier: _Optional[float] = ..., learning_rate: _Optional[float] = ..., engine: _Optional[_Union[Engine, str]] = ..., steps: _Optional[int] = ...) -> None: ...

class JobError(_message.Message):
    __slots__ = ("code", "message", "param", "cause", "details", "hint", "rank", "node", "last_good_step")
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    PARAM_FIELD_NUMBER: _ClassVar[int]
    CAUSE_FIELD_NUMBER: _ClassVar[int]
    DETAILS_FIELD_NUMBER: _ClassVar[int]
    HINT_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    LAST_GOOD_STEP_FIELD_NUMBER: _ClassVar[int]
    code: str
    message: str
    param: str
    cause: ErrorCause
    details: _struct_pb2.Struct
    hint: str
    rank: int
    node: str
    last_good_step: int
    def __init__(self, code: _Optional[str] = ..., message: _Optional[str] = ..., param: _Optional[str] = ..., cause: _Optional[_Union[ErrorCause, str]] = ..., details: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ..., hint: _Optional[str] = ..., rank: _Optional[int] = ..., node: _Optional[str] = ..., last_good_step: _Optional[int] = ...) -> None: ...

class Attempt(_message.Message):
    __slots__ = ("epoch", "start_time", "end_time", "resumed_step", "last_step", "outcome", "code", "message", "cause", "rank", "log_tail", "node", "hint", "last_good_step")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    START_TIME_FIELD_NUMBER: _ClassVar[int]
    END_TIME_FIELD_NUMBER: _ClassVar[int]
    RESUMED_STEP_FIELD_NUMBER: _ClassVar[int]
    LAST_STEP_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    CAUSE_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    LOG_TAIL_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    HINT_FIELD_NUMBER: _ClassVar[int]
    LAST_GOOD_STEP_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    start_time: _timestamp_pb2.Timestamp
    end_time: _timestamp_pb2.Timestamp
    resumed_step: int
    last_step: int
    outcome: AttemptOutcome
    code: str
    message: str
    cause: ErrorCause
    rank: int
    log_tail: _containers.RepeatedScalarFieldContainer[str]
    node: str
    hint: str
    last_good_step: int
    def __init__(self, epoch: _Optional[int] = ..., start_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., end_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., resumed_step: _Optional[int] = ..., last_step: _Optional[int] = ..., outcome: _Optional[_Union[AttemptOutcome, str]] = ..., code: _Optional[str] = ..., message: _Optional[str] = ..., cause: _Optional[_Union[ErrorCause, str]] = ..., rank: _Optional[int] = ..., log_tail: _Optional[_Iterable[str]] = ..., node: _Optional[str] = ..., hint: _Optional[str] = ..., last_good_step: _Optional[int] = ...) -> None: ...

class Job(_message.Message):
    __slots__ = ("id", "status", "reason", "spec", "resolved", "progress", "organization_id", "epoch", "infra_failures", "create_time", "queue_time", "start_time", "finish_time", "estimated_finish_time", "tuned_model", "result_files", "trained_tokens", "error", "attempts", "queue_position")
    ID_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    SPEC_FIELD_NUMBER: _ClassVar[int]
    RESOLVED_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    ORGANIZATION_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    INFRA_FAILURES_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    QUEUE_TIME_FIELD_NUMBER: _ClassVar[int]
    START_TIME_FIELD_NUMBER: _ClassVar[int]
    FINISH_TIME_FIELD_NUMBER: _ClassVar[int]
    ESTIMATED_FINISH_TIME_FIELD_NUMBER: _ClassVar[int]
    TUNED_MODEL_FIELD_NUMBER: _ClassVar[int]
    RESULT_FILES_FIELD_NUMBER: _ClassVar[int]
    TRAINED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    ATTEMPTS_FIELD_NUMBER: _ClassVar[int]
    QUEUE_POSITION_FIELD_NUMBER: _ClassVar[int]
    id: str
    status: JobStatus
    reason: str
    spec: JobSpec
    resolved: Resolved
    progress: Progress
    organization_id: str
    epoch: int
    infra_failures: int
    create_time: _timestamp_pb2.Timestamp
    queue_time: _timestamp_pb2.Timestamp
    start_time: _timestamp_pb2.Timestamp
    finish_time: _timestamp_pb2.Timestamp
    estimated_finish_time: _timestamp_pb2.Timestamp
    tuned_model: str
    result_files: _containers.RepeatedScalarFieldContainer[str]
    trained_tokens: int
    error: JobError
    attempts: _containers.RepeatedCompositeFieldContainer[Attempt]
    queue_position: int
    def __init__(self, id: _Optional[str] = ..., status: _Optional[_Union[JobStatus, str]] = ..., reason: _Optional[str] = ..., spec: _Optional[_Union[JobSpec, _Mapping]] = ..., resolved: _Optional[_Union[Resolved, _Mapping]] = ..., progress: _Optional[_Union[Progress, _Mapping]] = ..., organization_id: _Optional[str] = ..., epoch: _Optional[int] = ..., infra_failures: _Optional[int] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., queue_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., start_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., finish_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., estimated_finish_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., tuned_model: _Optional[str] = ..., result_files: _Optional[_Iterable[str]] = ..., trained_tokens: _Optional[int] = ..., error: _Optional[_Union[JobError, _Mapping]] = ..., attempts: _Optional[_Iterable[_Union[Attempt, _Mapping]]] = ..., queue_position: _Optional[int] = ...) -> None: ...

class Event(_message.Message):
    __slots__ = ("id", "seq", "create_time", "level", "message", "type", "data")
    ID_FIELD_NUMBER: _ClassVar[int]
    SEQ_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    LEVEL_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    id: str
    seq: int
    create_time: _timestamp_pb2.Timestamp
    level: EventLevel
    message: str
    type: EventType
    data: _struct_pb2.Struct
    def __init__(self, id: _Optional[str] = ..., seq: _Optional[int] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., level: _Optional[_Union[EventLevel, str]] = ..., message: _Optional[str] = ..., type: _Optional[_Union[EventType, str]] = ..., data: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ...) -> None: ...

class File(_message.Message):
    __slots__ = ("id", "filename", "purpose", "bytes", "sha256", "create_time", "expire_time")
    ID_FIELD_NUMBER: _ClassVar[int]
    FILENAME_FIELD_NUMBER: _ClassVar[int]
    PURPOSE_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    EXPIRE_TIME_FIELD_NUMBER: _ClassVar[int]
    id: str
    filename: str
    purpose: str
    bytes: int
    sha256: str
    create_time: _timestamp_pb2.Timestamp
    expire_time: _timestamp_pb2.Timestamp
    def __init__(self, id: _Optional[str] = ..., filename: _Optional[str] = ..., purpose: _Optional[str] = ..., bytes: _Optional[int] = ..., sha256: _Optional[str] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., expire_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class Content(_message.Message):
    __slots__ = ("filename", "bytes", "sha256")
    FILENAME_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    filename: str
    bytes: int
    sha256: str
    def __init__(self, filename: _Optional[str] = ..., bytes: _Optional[int] = ..., sha256: _Optional[str] = ...) -> None: ...

class Chunk(_message.Message):
    __slots__ = ("offset", "data")
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    offset: int
    data: bytes
    def __init__(self, offset: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...
