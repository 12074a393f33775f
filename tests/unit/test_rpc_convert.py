"""Messages and the values they stand for: nothing that a job may say is without its field, and nothing is lost on the way."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Iterator
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from protos.tunesmith.v1 import files_pb2, reports_pb2, types_pb2
from service.data_report import DataReport
from service.errors import TunesmithError
from service.estimate import CountedData, Estimate
from service.job_request import CheckFileRequest, CreateFineTuningJobRequest
from service.jobs import Attempt, JobError, JobSpec, JobStatus, MethodSpec, Progress
from service.records import Page, UploadStatus
from service.rpc import convert, values
from trainers.spec import Resolved, TrainingSpec

AUTO = frozenset({"auto", "all-linear"})
"""Words for the server's choice: in a message the field is absent."""
ELSEWHERE = {
    "hyperparameters": "deprecated by OpenAI; gRPC never had it",
    "dpo": "not offered",
    "reinforcement": "not offered",
    "started_at": "start_time",
    "ended_at": "end_time",
}
PAIRS: list[tuple[type, Descriptor]] = [
    (CreateFineTuningJobRequest, types_pb2.JobSpec.DESCRIPTOR),
    (JobSpec, types_pb2.JobSpec.DESCRIPTOR),
    (Progress, types_pb2.Progress.DESCRIPTOR),
    (Resolved, types_pb2.Resolved.DESCRIPTOR),
    (JobError, types_pb2.JobError.DESCRIPTOR),
    (Attempt, types_pb2.Attempt.DESCRIPTOR),
    (DataReport, reports_pb2.DataReport.DESCRIPTOR),
    (Estimate, reports_pb2.Estimate.DESCRIPTOR),
    (CountedData, reports_pb2.CountedData.DESCRIPTOR),
    (CheckFileRequest, files_pb2.ValidateDatasetRequest.DESCRIPTOR),
]


@pytest.mark.parametrize(("model", "message"), PAIRS, ids=lambda side: getattr(side, "__name__", ""))
def test_whatever_a_value_holds_has_its_field(model: type, message: Descriptor) -> None:
    assert list(missing(model, message)) == []


def test_what_is_missing_is_found() -> None:
    assert "tunesmith.v1.AdapterSpec lacks schedule" in missing(TrainingSpec, types_pb2.AdapterSpec.DESCRIPTOR)
    field = types_pb2.TrainingSpec.DESCRIPTOR.fields_by_name["schedule"]
    assert list(lacking(Literal["auto", "cosine", "stairs"], field)) == ["tunesmith.v1.Schedule lacks stairs"]


def missing(model: type, message: Descriptor) -> Iterator[str]:
    for name, annotation in fields_of(model).items():
        if name in ELSEWHERE and not (name == "hyperparameters" and name in names(message)):
            continue
        if name not in names(message):
            yield f"{message.full_name} lacks {name}"
            continue
        field = next(field for field in message.fields if field.name == name)
        for part in parts(annotation):
            yield from lacking(part, field)


def lacking(part: Any, field: FieldDescriptor) -> Iterator[str]:
    if get_origin(part) is Literal:
        words = {word for word in get_args(part) if isinstance(word, str)} - AUTO
        if field.enum_type is not None:
            yield from (f"{field.enum_type.full_name} lacks {word}" for word in words if not values.number(field.enum_type, word))
    elif is_structured(part) and part is not MethodSpec:
        yield from missing(part, field.message_type)


def fields_of(model: Any) -> dict[str, Any]:
    if issubclass(model, BaseModel):
        return {name: field.annotation for name, field in model.model_fields.items()}
    hints = get_type_hints(model)
    return {field.name: hints[field.name] for field in dataclasses.fields(model)}


def parts(annotation: Any) -> Iterator[Any]:
    """An annotation's members, unions and containers taken apart."""
    origin = get_origin(annotation)
    if origin is Literal:
        yield annotation
    elif origin in (Union, types.UnionType, list, tuple, dict) or hasattr(annotation, "__metadata__"):
        for inner in get_args(annotation) if origin is not None else (annotation.__origin__,):
            yield from parts(inner)
    else:
        yield annotation


def is_structured(part: Any) -> bool:
    return isinstance(part, type) and (issubclass(part, BaseModel) or dataclasses.is_dataclass(part))


def names(message: Descriptor) -> set[str]:
    return {field.name for field in message.fields}


@pytest.mark.parametrize(
    ("words", "enum"),
    [(JobStatus, types_pb2.JobStatus.DESCRIPTOR), (get_args(UploadStatus), files_pb2.UploadStatus.DESCRIPTOR)],
    ids=["JobStatus", "UploadStatus"],
)
def test_every_word_has_its_number_and_every_number_its_word(words: Any, enum: Any) -> None:
    assert {values.number(enum, word) for word in words} == {value.number for value in enum.values} - {0}
    assert {values.word(enum, values.number(enum, word)) for word in words} == set(words)


@given(
    r=st.integers(1, 512),
    rate=st.floats(1e-9, 1),
    dropout=st.floats(0, 0.99),
    schedule=st.sampled_from(["cosine", "linear", "constant"]),
    targets=st.just("all-linear") | st.lists(st.sampled_from(["q_proj", "v_proj"]), min_size=1, max_size=2),
    epochs=st.just("auto") | st.integers(1, 50),
    priority=st.integers(-100, 100),
    patience=st.none() | st.integers(1, 1000),
    metadata=st.dictionaries(st.sampled_from(["a", "b"]), st.text("xyzäß", max_size=5)),
)
def test_a_spec_is_the_same_after_it_went_out_and_came_back(
    r: int,
    rate: float,
    dropout: float,
    schedule: str,
    targets: Any,
    epochs: Any,
    priority: int,
    patience: int | None,
    metadata: dict[str, str],
) -> None:
    spec = JobSpec.model_validate(
        {
            "model": "m",
            "training_file": "file-1",
            "seed": 3,
            "metadata": metadata,
            "method": {"type": "supervised", "hyperparameters": {"n_epochs": epochs}},
            "tunesmith": {
                "adapter": {"r": r, "dropout": dropout, "target_modules": targets},
                "training": {"learning_rate": rate, "schedule": schedule},
                "evaluation": {"early_stopping": None if patience is None else {"patience": patience}},
                "priority": priority,
            },
        }
    )
    message = types_pb2.JobSpec.FromString(convert.spec_message(spec).SerializeToString())
    assert convert.spec_of(message) == spec


def test_a_field_that_is_not_known_is_refused_wherever_it_stands() -> None:
    for path in ("", "tunesmith", "tunesmith.evaluation.early_stopping", "method.supervised"):
        message = types_pb2.JobSpec(model="m", training_file="f", method=types_pb2.Method(type="supervised"))
        place: Any = message
        for name in filter(None, path.split(".")):
            place = getattr(place, name)
        place.MergeFromString(b"\xf8\x3f\x01")  # field 1023
        with pytest.raises(TunesmithError, match="1023") as refused:
            convert.spec_of(message)
        assert refused.value.param == (path or None)


def test_a_page_ends_where_a_message_would_be_too_large() -> None:
    big = [types_pb2.File(id=f"file-{n}", filename="x" * 2**20) for n in range(5)]
    found, more = convert.page(Page(big, has_more=False), lambda file: file)
    assert (len(found), more) == (2, True)
    assert convert.page(Page(big[:2], has_more=False), lambda file: file) == (big[:2], False)
    alone = [types_pb2.File(filename="x" * 2**22)]
    assert convert.page(Page(alone, has_more=True), lambda file: file) == (alone, True)


def test_numbers_that_json_can_not_hold_are_null_in_a_struct() -> None:
    message = convert.struct({"loss": float("nan"), "deep": {"list": [float("inf"), 1, None, "x", True]}})
    assert message.fields["loss"].HasField("null_value")
    assert [value.WhichOneof("kind") for value in message["deep"]["list"].values] == [
        "null_value", "number_value", "null_value", "string_value", "bool_value"
    ]  # fmt: skip
