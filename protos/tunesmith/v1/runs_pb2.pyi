from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Directive(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DIRECTIVE_UNSPECIFIED: _ClassVar[Directive]
    DIRECTIVE_CONTINUE: _ClassVar[Directive]
    DIRECTIVE_STOP: _ClassVar[Directive]
    DIRECTIVE_CHECKPOINT_AND_STOP: _ClassVar[Directive]
    DIRECTIVE_CHECKPOINT: _ClassVar[Directive]
DIRECTIVE_UNSPECIFIED: Directive
DIRECTIVE_CONTINUE: Directive
DIRECTIVE_STOP: Directive
DIRECTIVE_CHECKPOINT_AND_STOP: Directive
DIRECTIVE_CHECKPOINT: Directive

class ReportRequest(_message.Message):
    __slots__ = ("job_id", "epoch", "reports", "stage")
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    REPORTS_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    epoch: int
    reports: _containers.RepeatedCompositeFieldContainer[RunReport]
    stage: str
    def __init__(self, job_id: _Optional[str] = ..., epoch: _Optional[int] = ..., reports: _Optional[_Iterable[_Union[RunReport, _Mapping]]] = ..., stage: _Optional[str] = ...) -> None: ...

class RunReport(_message.Message):
    __slots__ = ("seq", "started", "step", "evaluated", "checkpoint", "finished", "failed", "notice")
    SEQ_FIELD_NUMBER: _ClassVar[int]
    STARTED_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    EVALUATED_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    NOTICE_FIELD_NUMBER: _ClassVar[int]
    seq: int
    started: Started
    step: StepDone
    evaluated: Evaluated
    checkpoint: CheckpointSaved
    finished: Finished
    failed: Failed
    notice: Notice
    def __init__(self, seq: _Optional[int] = ..., started: _Optional[_Union[Started, _Mapping]] = ..., step: _Optional[_Union[StepDone, _Mapping]] = ..., evaluated: _Optional[_Union[Evaluated, _Mapping]] = ..., checkpoint: _Optional[_Union[CheckpointSaved, _Mapping]] = ..., finished: _Optional[_Union[Finished, _Mapping]] = ..., failed: _Optional[_Union[Failed, _Mapping]] = ..., notice: _Optional[_Union[Notice, _Mapping]] = ...) -> None: ...

class Started(_message.Message):
    __slots__ = ("world_size", "engine", "device", "total_steps", "resumed_step", "trainable_parameters", "micro_batch")
    WORLD_SIZE_FIELD_NUMBER: _ClassVar[int]
    ENGINE_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    TOTAL_STEPS_FIELD_NUMBER: _ClassVar[int]
    RESUMED_STEP_FIELD_NUMBER: _ClassVar[int]
    TRAINABLE_PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    MICRO_BATCH_FIELD_NUMBER: _ClassVar[int]
    world_size: int
    engine: str
    device: str
    total_steps: int
    resumed_step: int
    trainable_parameters: int
    micro_batch: int
    def __init__(self, world_size: _Optional[int] = ..., engine: _Optional[str] = ..., device: _Optional[str] = ..., total_steps: _Optional[int] = ..., resumed_step: _Optional[int] = ..., trainable_parameters: _Optional[int] = ..., micro_batch: _Optional[int] = ...) -> None: ...

class StepDone(_message.Message):
    __slots__ = ("step", "train_loss", "train_mean_token_accuracy", "learning_rate", "grad_norm", "tokens", "tokens_per_second", "eta_seconds", "trained_tokens", "step_tokens")
    STEP_FIELD_NUMBER: _ClassVar[int]
    TRAIN_LOSS_FIELD_NUMBER: _ClassVar[int]
    TRAIN_MEAN_TOKEN_ACCURACY_FIELD_NUMBER: _ClassVar[int]
    LEARNING_RATE_FIELD_NUMBER: _ClassVar[int]
    GRAD_NORM_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    ETA_SECONDS_FIELD_NUMBER: _ClassVar[int]
    TRAINED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    STEP_TOKENS_FIELD_NUMBER: _ClassVar[int]
    step: int
    train_loss: float
    train_mean_token_accuracy: float
    learning_rate: float
    grad_norm: float
    tokens: int
    tokens_per_second: float
    eta_seconds: float
    trained_tokens: int
    step_tokens: int
    def __init__(self, step: _Optional[int] = ..., train_loss: _Optional[float] = ..., train_mean_token_accuracy: _Optional[float] = ..., learning_rate: _Optional[float] = ..., grad_norm: _Optional[float] = ..., tokens: _Optional[int] = ..., tokens_per_second: _Optional[float] = ..., eta_seconds: _Optional[float] = ..., trained_tokens: _Optional[int] = ..., step_tokens: _Optional[int] = ...) -> None: ...

class Evaluated(_message.Message):
    __slots__ = ("step", "valid_loss", "valid_mean_token_accuracy", "full")
    STEP_FIELD_NUMBER: _ClassVar[int]
    VALID_LOSS_FIELD_NUMBER: _ClassVar[int]
    VALID_MEAN_TOKEN_ACCURACY_FIELD_NUMBER: _ClassVar[int]
    FULL_FIELD_NUMBER: _ClassVar[int]
    step: int
    valid_loss: float
    valid_mean_token_accuracy: float
    full: bool
    def __init__(self, step: _Optional[int] = ..., valid_loss: _Optional[float] = ..., valid_mean_token_accuracy: _Optional[float] = ..., full: _Optional[bool] = ...) -> None: ...

class CheckpointSaved(_message.Message):
    __slots__ = ("step", "prefix", "manifest_sha256", "bytes")
    STEP_FIELD_NUMBER: _ClassVar[int]
    PREFIX_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_SHA256_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    step: int
    prefix: str
    manifest_sha256: str
    bytes: int
    def __init__(self, step: _Optional[int] = ..., prefix: _Optional[str] = ..., manifest_sha256: _Optional[str] = ..., bytes: _Optional[int] = ...) -> None: ...

class Finished(_message.Message):
    __slots__ = ("last_step", "manifest_sha256", "trained_tokens", "final_train_loss", "final_valid_loss", "final_valid_mean_token_accuracy", "stopped_early")
    LAST_STEP_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_SHA256_FIELD_NUMBER: _ClassVar[int]
    TRAINED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    FINAL_TRAIN_LOSS_FIELD_NUMBER: _ClassVar[int]
    FINAL_VALID_LOSS_FIELD_NUMBER: _ClassVar[int]
    FINAL_VALID_MEAN_TOKEN_ACCURACY_FIELD_NUMBER: _ClassVar[int]
    STOPPED_EARLY_FIELD_NUMBER: _ClassVar[int]
    last_step: int
    manifest_sha256: str
    trained_tokens: int
    final_train_loss: float
    final_valid_loss: float
    final_valid_mean_token_accuracy: float
    stopped_early: bool
    def __init__(self, last_step: _Optional[int] = ..., manifest_sha256: _Optional[str] = ..., trained_tokens: _Optional[int] = ..., final_train_loss: _Optional[float] = ..., final_valid_loss: _Optional[float] = ..., final_valid_mean_token_accuracy: _Optional[float] = ..., stopped_early: _Optional[bool] = ...) -> None: ...

class Failed(_message.Message):
    __slots__ = ("code", "message", "cause", "rank", "traceback", "node", "hint", "micro_batch")
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    CAUSE_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    TRACEBACK_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    HINT_FIELD_NUMBER: _ClassVar[int]
    MICRO_BATCH_FIELD_NUMBER: _ClassVar[int]
    code: str
    message: str
    cause: str
    rank: int
    traceback: str
    node: str
    hint: str
    micro_batch: int
    def __init__(self, code: _Optional[str] = ..., message: _Optional[str] = ..., cause: _Optional[str] = ..., rank: _Optional[int] = ..., traceback: _Optional[str] = ..., node: _Optional[str] = ..., hint: _Optional[str] = ..., micro_batch: _Optional[int] = ...) -> None: ...

class Notice(_message.Message):
    __slots__ = ("level", "message", "micro_batch")
    LEVEL_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    MICRO_BATCH_FIELD_NUMBER: _ClassVar[int]
    level: str
    message: str
    micro_batch: int
    def __init__(self, level: _Optional[str] = ..., message: _Optional[str] = ..., micro_batch: _Optional[int] = ...) -> None: ...

class ReportResponse(_message.Message):
    __slots__ = ("acknowledged", "directive")
    ACKNOWLEDGED_FIELD_NUMBER: _ClassVar[int]
    DIRECTIVE_FIELD_NUMBER: _ClassVar[int]
    acknowledged: int
    directive: Directive
    def __init__(self, acknowledged: _Optional[int] = ..., directive: _Optional[_Union[Directive, str]] = ...) -> None: ...
