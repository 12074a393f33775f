from protos.tunesmith.v1 import types_pb2 as _types_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class DatasetPurpose(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DATASET_PURPOSE_UNSPECIFIED: _ClassVar[DatasetPurpose]
    DATASET_PURPOSE_TRAINING_FILE: _ClassVar[DatasetPurpose]
    DATASET_PURPOSE_VALIDATION_FILE: _ClassVar[DatasetPurpose]

class CheckFailure(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CHECK_FAILURE_UNSPECIFIED: _ClassVar[CheckFailure]
    CHECK_FAILURE_MEMORY: _ClassVar[CheckFailure]
    CHECK_FAILURE_TIME: _ClassVar[CheckFailure]
    CHECK_FAILURE_SIZE: _ClassVar[CheckFailure]
    CHECK_FAILURE_CRASH: _ClassVar[CheckFailure]
    CHECK_FAILURE_STORAGE: _ClassVar[CheckFailure]
DATASET_PURPOSE_UNSPECIFIED: DatasetPurpose
DATASET_PURPOSE_TRAINING_FILE: DatasetPurpose
DATASET_PURPOSE_VALIDATION_FILE: DatasetPurpose
CHECK_FAILURE_UNSPECIFIED: CheckFailure
CHECK_FAILURE_MEMORY: CheckFailure
CHECK_FAILURE_TIME: CheckFailure
CHECK_FAILURE_SIZE: CheckFailure
CHECK_FAILURE_CRASH: CheckFailure
CHECK_FAILURE_STORAGE: CheckFailure

class DataReport(_message.Message):
    __slots__ = ("ok", "summary", "param", "sha256", "examples", "rows", "tokens", "trained_tokens", "longest", "longest_uncut", "truncated_rows", "dropped_rows", "rows_without_trained_tokens", "faults", "fault_count", "faulty_lines", "faults_by_rule", "preview", "complete", "failure", "format")
    class FaultsByRuleEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    OK_FIELD_NUMBER: _ClassVar[int]
    SUMMARY_FIELD_NUMBER: _ClassVar[int]
    PARAM_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    TRAINED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    LONGEST_FIELD_NUMBER: _ClassVar[int]
    LONGEST_UNCUT_FIELD_NUMBER: _ClassVar[int]
    TRUNCATED_ROWS_FIELD_NUMBER: _ClassVar[int]
    DROPPED_ROWS_FIELD_NUMBER: _ClassVar[int]
    ROWS_WITHOUT_TRAINED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    FAULTS_FIELD_NUMBER: _ClassVar[int]
    FAULT_COUNT_FIELD_NUMBER: _ClassVar[int]
    FAULTY_LINES_FIELD_NUMBER: _ClassVar[int]
    FAULTS_BY_RULE_FIELD_NUMBER: _ClassVar[int]
    PREVIEW_FIELD_NUMBER: _ClassVar[int]
    COMPLETE_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    ok: bool
    summary: str
    param: DatasetPurpose
    sha256: str
    examples: int
    rows: int
    tokens: int
    trained_tokens: int
    longest: int
    longest_uncut: int
    truncated_rows: int
    dropped_rows: int
    rows_without_trained_tokens: int
    faults: _containers.RepeatedCompositeFieldContainer[LineFault]
    fault_count: int
    faulty_lines: int
    faults_by_rule: _containers.ScalarMap[str, int]
    preview: _containers.RepeatedCompositeFieldContainer[PreviewRow]
    complete: bool
    failure: CheckFailure
    format: _types_pb2.DataFormat
    def __init__(self, ok: _Optional[bool] = ..., summary: _Optional[str] = ..., param: _Optional[_Union[DatasetPurpose, str]] = ..., sha256: _Optional[str] = ..., examples: _Optional[int] = ..., rows: _Optional[int] = ..., tokens: _Optional[int] = ..., trained_tokens: _Optional[int] = ..., longest: _Optional[int] = ..., longest_uncut: _Optional[int] = ..., truncated_rows: _Optional[int] = ..., dropped_rows: _Optional[int] = ..., rows_without_trained_tokens: _Optional[int] = ..., faults: _Optional[_Iterable[_Union[LineFault, _Mapping]]] = ..., fault_count: _Optional[int] = ..., faulty_lines: _Optional[int] = ..., faults_by_rule: _Optional[_Mapping[str, int]] = ..., preview: _Optional[_Iterable[_Union[PreviewRow, _Mapping]]] = ..., complete: _Optional[bool] = ..., failure: _Optional[_Union[CheckFailure, str]] = ..., format: _Optional[_Union[_types_pb2.DataFormat, str]] = ...) -> None: ...

class LineFault(_message.Message):
    __slots__ = ("line", "path", "rule", "message", "hint")
    LINE_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    RULE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    HINT_FIELD_NUMBER: _ClassVar[int]
    line: int
    path: str
    rule: str
    message: str
    hint: str
    def __init__(self, line: _Optional[int] = ..., path: _Optional[str] = ..., rule: _Optional[str] = ..., message: _Optional[str] = ..., hint: _Optional[str] = ...) -> None: ...

class PreviewRow(_message.Message):
    __slots__ = ("line", "tokens", "tokens_uncut", "trained_tokens", "truncated", "parts", "shortened")
    LINE_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_UNCUT_FIELD_NUMBER: _ClassVar[int]
    TRAINED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TRUNCATED_FIELD_NUMBER: _ClassVar[int]
    PARTS_FIELD_NUMBER: _ClassVar[int]
    SHORTENED_FIELD_NUMBER: _ClassVar[int]
    line: int
    tokens: int
    tokens_uncut: int
    trained_tokens: int
    truncated: bool
    parts: _containers.RepeatedCompositeFieldContainer[TextPart]
    shortened: bool
    def __init__(self, line: _Optional[int] = ..., tokens: _Optional[int] = ..., tokens_uncut: _Optional[int] = ..., trained_tokens: _Optional[int] = ..., truncated: _Optional[bool] = ..., parts: _Optional[_Iterable[_Union[TextPart, _Mapping]]] = ..., shortened: _Optional[bool] = ...) -> None: ...

class TextPart(_message.Message):
    __slots__ = ("text", "trained")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    TRAINED_FIELD_NUMBER: _ClassVar[int]
    text: str
    trained: bool
    def __init__(self, text: _Optional[str] = ..., trained: _Optional[bool] = ...) -> None: ...

class DataCounts(_message.Message):
    __slots__ = ("rows", "tokens", "trained_tokens", "longest")
    ROWS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    TRAINED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    LONGEST_FIELD_NUMBER: _ClassVar[int]
    rows: int
    tokens: int
    trained_tokens: int
    longest: int
    def __init__(self, rows: _Optional[int] = ..., tokens: _Optional[int] = ..., trained_tokens: _Optional[int] = ..., longest: _Optional[int] = ...) -> None: ...

class CountedData(_message.Message):
    __slots__ = ("training", "validation")
    TRAINING_FIELD_NUMBER: _ClassVar[int]
    VALIDATION_FIELD_NUMBER: _ClassVar[int]
    training: DataCounts
    validation: DataCounts
    def __init__(self, training: _Optional[_Union[DataCounts, _Mapping]] = ..., validation: _Optional[_Union[DataCounts, _Mapping]] = ...) -> None: ...

class Estimate(_message.Message):
    __slots__ = ("ok", "training", "validation", "resolved", "trained_tokens", "plan", "placement", "time", "cost", "notes")
    OK_FIELD_NUMBER: _ClassVar[int]
    TRAINING_FIELD_NUMBER: _ClassVar[int]
    VALIDATION_FIELD_NUMBER: _ClassVar[int]
    RESOLVED_FIELD_NUMBER: _ClassVar[int]
    TRAINED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PLAN_FIELD_NUMBER: _ClassVar[int]
    PLACEMENT_FIELD_NUMBER: _ClassVar[int]
    TIME_FIELD_NUMBER: _ClassVar[int]
    COST_FIELD_NUMBER: _ClassVar[int]
    NOTES_FIELD_NUMBER: _ClassVar[int]
    ok: bool
    training: DataReport
    validation: DataReport
    resolved: _types_pb2.Resolved
    trained_tokens: int
    plan: PlanEstimate
    placement: Placement
    time: TimeEstimate
    cost: CostEstimate
    notes: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, ok: _Optional[bool] = ..., training: _Optional[_Union[DataReport, _Mapping]] = ..., validation: _Optional[_Union[DataReport, _Mapping]] = ..., resolved: _Optional[_Union[_types_pb2.Resolved, _Mapping]] = ..., trained_tokens: _Optional[int] = ..., plan: _Optional[_Union[PlanEstimate, _Mapping]] = ..., placement: _Optional[_Union[Placement, _Mapping]] = ..., time: _Optional[_Union[TimeEstimate, _Mapping]] = ..., cost: _Optional[_Union[CostEstimate, _Mapping]] = ..., notes: _Optional[_Iterable[str]] = ...) -> None: ...

class PlanEstimate(_message.Message):
    __slots__ = ("engine", "device", "workers", "cpus_per_worker", "gpus_per_worker", "micro_batch", "micro_batches", "memory", "reasons", "run_memory")
    ENGINE_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    WORKERS_FIELD_NUMBER: _ClassVar[int]
    CPUS_PER_WORKER_FIELD_NUMBER: _ClassVar[int]
    GPUS_PER_WORKER_FIELD_NUMBER: _ClassVar[int]
    MICRO_BATCH_FIELD_NUMBER: _ClassVar[int]
    MICRO_BATCHES_FIELD_NUMBER: _ClassVar[int]
    MEMORY_FIELD_NUMBER: _ClassVar[int]
    REASONS_FIELD_NUMBER: _ClassVar[int]
    RUN_MEMORY_FIELD_NUMBER: _ClassVar[int]
    engine: str
    device: str
    workers: int
    cpus_per_worker: int
    gpus_per_worker: int
    micro_batch: int
    micro_batches: int
    memory: MemoryEstimate
    reasons: _containers.RepeatedScalarFieldContainer[str]
    run_memory: int
    def __init__(self, engine: _Optional[str] = ..., device: _Optional[str] = ..., workers: _Optional[int] = ..., cpus_per_worker: _Optional[int] = ..., gpus_per_worker: _Optional[int] = ..., micro_batch: _Optional[int] = ..., micro_batches: _Optional[int] = ..., memory: _Optional[_Union[MemoryEstimate, _Mapping]] = ..., reasons: _Optional[_Iterable[str]] = ..., run_memory: _Optional[int] = ...) -> None: ...

class MemoryEstimate(_message.Message):
    __slots__ = ("process", "weights", "adapter", "gradients", "optimizer", "copies", "activations", "head", "margin", "total", "available")
    PROCESS_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    GRADIENTS_FIELD_NUMBER: _ClassVar[int]
    OPTIMIZER_FIELD_NUMBER: _ClassVar[int]
    COPIES_FIELD_NUMBER: _ClassVar[int]
    ACTIVATIONS_FIELD_NUMBER: _ClassVar[int]
    HEAD_FIELD_NUMBER: _ClassVar[int]
    MARGIN_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    AVAILABLE_FIELD_NUMBER: _ClassVar[int]
    process: int
    weights: int
    adapter: int
    gradients: int
    optimizer: int
    copies: int
    activations: int
    head: int
    margin: int
    total: int
    available: int
    def __init__(self, process: _Optional[int] = ..., weights: _Optional[int] = ..., adapter: _Optional[int] = ..., gradients: _Optional[int] = ..., optimizer: _Optional[int] = ..., copies: _Optional[int] = ..., activations: _Optional[int] = ..., head: _Optional[int] = ..., margin: _Optional[int] = ..., total: _Optional[int] = ..., available: _Optional[int] = ...) -> None: ...

class Placement(_message.Message):
    __slots__ = ("fits", "starts_now", "reason")
    FITS_FIELD_NUMBER: _ClassVar[int]
    STARTS_NOW_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    fits: bool
    starts_now: bool
    reason: str
    def __init__(self, fits: _Optional[bool] = ..., starts_now: _Optional[bool] = ..., reason: _Optional[str] = ...) -> None: ...

class Range(_message.Message):
    __slots__ = ("low", "high")
    LOW_FIELD_NUMBER: _ClassVar[int]
    HIGH_FIELD_NUMBER: _ClassVar[int]
    low: float
    high: float
    def __init__(self, low: _Optional[float] = ..., high: _Optional[float] = ...) -> None: ...

class TimeEstimate(_message.Message):
    __slots__ = ("low", "high", "start", "training", "evaluation", "finish", "measured", "based_on")
    LOW_FIELD_NUMBER: _ClassVar[int]
    HIGH_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    TRAINING_FIELD_NUMBER: _ClassVar[int]
    EVALUATION_FIELD_NUMBER: _ClassVar[int]
    FINISH_FIELD_NUMBER: _ClassVar[int]
    MEASURED_FIELD_NUMBER: _ClassVar[int]
    BASED_ON_FIELD_NUMBER: _ClassVar[int]
    low: float
    high: float
    start: Range
    training: Range
    evaluation: Range
    finish: Range
    measured: bool
    based_on: str
    def __init__(self, low: _Optional[float] = ..., high: _Optional[float] = ..., start: _Optional[_Union[Range, _Mapping]] = ..., training: _Optional[_Union[Range, _Mapping]] = ..., evaluation: _Optional[_Union[Range, _Mapping]] = ..., finish: _Optional[_Union[Range, _Mapping]] = ..., measured: _Optional[bool] = ..., based_on: _Optional[str] = ...) -> None: ...

class CostEstimate(_message.Message):
    __slots__ = ("low", "high", "currency", "based_on")
    LOW_FIELD_NUMBER: _ClassVar[int]
    HIGH_FIELD_NUMBER: _ClassVar[int]
    CURRENCY_FIELD_NUMBER: _ClassVar[int]
    BASED_ON_FIELD_NUMBER: _ClassVar[int]
    low: float
    high: float
    currency: str
    based_on: str
    def __init__(self, low: _Optional[float] = ..., high: _Optional[float] = ..., currency: _Optional[str] = ..., based_on: _Optional[str] = ...) -> None: ...
