"""From messages to a `JobSpec` and from jobs, files and models to messages. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from google.protobuf.message import Message
from google.protobuf.struct_pb2 import Struct
from pydantic import BaseModel

from protos.tunesmith.v1 import files_pb2, jobs_pb2, models_pb2, reports_pb2, types_pb2
from service.data_report import DataReport
from service.errors import invalid
from service.estimate import CountedData, Estimate
from service.job_request import CheckFileRequest, CreateFineTuningJobRequest, EstimateJobRequest, job_spec
from service.jobs import Attempt, Event, Job, JobSpec, JobStatus
from service.records import Artifact, Checkpoint, File, Model, Page
from service.rpc.values import fill, number, timestamp, values
from service.strict import check_strings, finite, validated

T = TypeVar("T")
M = TypeVar("M", bound=Message)
R = TypeVar("R", bound=BaseModel)
MAX_PAGE_BYTES = 3 * 2**20
"""Clients take messages of 4 MiB unless told otherwise."""


def spec_of(message: types_pb2.JobSpec) -> JobSpec:
    """What a request asks for, by the rules of REST: the same is refused with the same words and field paths."""
    return job_spec(_checked(CreateFineTuningJobRequest, values(message)))


def estimate_of(request: jobs_pb2.EstimateJobRequest) -> tuple[JobSpec, CountedData | None]:
    """What is to be estimated, and the counts that stand in for files."""
    data = {"data": values(request.data, ("data",))} if request.HasField("data") else {}
    asked = _checked(EstimateJobRequest, values(request.spec) | data)
    return job_spec(asked), asked.data


def check_of(request: files_pb2.ValidateDatasetRequest) -> CheckFileRequest:
    """What a file is to be checked for."""
    given = values(request)
    given.pop("file_id", None)
    return _checked(CheckFileRequest, given)


def _checked(model: type[R], given: dict[str, Any]) -> R:
    check_strings(given)
    return validated(model, given)


def limit_of(request: Any, *, default: int, most: int) -> int:
    """Items of one page that a list request asks for."""
    if not request.HasField("limit"):
        return default
    if not 1 <= request.limit <= most:
        raise invalid(f"'limit' must be an integer from 1 to {most}, not {request.limit}.", "limit")
    return request.limit


def is_ascending(order: files_pb2.FileOrder) -> bool:
    """Whether a list begins with the oldest; INVALID_REQUEST for an order that there is not."""
    if order not in files_pb2.FileOrder.values():
        raise invalid(f"'order' must be ascending or descending, not {order}.", "order")
    return order == files_pb2.FILE_ORDER_ASCENDING


def page(found: Page[T], convert: Callable[[T], M]) -> tuple[list[M], bool]:
    """Messages of a page, as many as one message can carry, and whether there are more."""
    messages: list[M] = []
    room = MAX_PAGE_BYTES
    for item in found.items:
        message = convert(item)
        room -= message.ByteSize()
        if room < 0 and messages:
            return messages, True
        messages.append(message)
    return messages, found.has_more


def job_message(job: Job, now: float) -> types_pb2.Job:
    """A job. `now` (seconds since 1970) dates the estimate of its end."""
    message = types_pb2.Job(
        id=job.id,
        status=number(types_pb2.JobStatus.DESCRIPTOR, job.status),
        reason=job.reason,
        spec=spec_message(job.spec),
        progress=fill(types_pb2.Progress(), job.progress),
        resolved=fill(types_pb2.Resolved(), job.resolved) if job.resolved else None,
        organization_id=job.organization_id,
        epoch=job.epoch,
        infra_failures=job.infra_failures,
        create_time=timestamp(job.created_at),
        queue_time=timestamp(job.queued_at),
        start_time=timestamp(job.started_at),
        finish_time=timestamp(job.finished_at),
        estimated_finish_time=timestamp(_estimated_finish(job, now)),
        tuned_model=job.tuned_model if job.status is JobStatus.SUCCEEDED else None,
        result_files=job.result_files,
        trained_tokens=job.trained_tokens,
        attempts=[_attempt_message(attempt) for attempt in job.attempts],
        queue_position=job.queue_position,
    )
    if job.error is not None:
        fill(message.error, job.error.model_copy(update={"details": None}))
        if job.error.details:
            message.error.details.CopyFrom(struct(job.error.details))
    return message


def _attempt_message(attempt: Attempt) -> types_pb2.Attempt:
    message = types_pb2.Attempt(start_time=timestamp(attempt.started_at), end_time=timestamp(attempt.ended_at))
    return fill(message, attempt)


def spec_message(spec: JobSpec) -> types_pb2.JobSpec:
    """What was asked for, defaults included."""
    message = fill(types_pb2.JobSpec(), spec)
    if spec.method.type in message.method.DESCRIPTOR.fields_by_name:
        block = getattr(message.method, spec.method.type)
        block.hyperparameters.SetInParent()
        fill(block.hyperparameters, spec.method.hyperparameters)
    return message


def _estimated_finish(job: Job, now: float) -> float | None:
    eta = job.progress.eta_seconds
    return now + eta if job.status is JobStatus.RUNNING and eta is not None else None


def event_message(event: Event) -> types_pb2.Event:
    """One line of a job's history."""
    return types_pb2.Event(
        id=event.id,
        seq=event.seq,
        create_time=timestamp(event.created_at),
        level=number(types_pb2.EventLevel.DESCRIPTOR, event.level),
        message=event.message,
        type=number(types_pb2.EventType.DESCRIPTOR, event.type),
        data=struct(event.data) if event.data else None,
    )


def checkpoint_message(checkpoint: Checkpoint) -> jobs_pb2.Checkpoint:
    """A checkpoint and what was measured there."""
    return jobs_pb2.Checkpoint(
        id=checkpoint.id,
        job_id=checkpoint.job_id,
        model=checkpoint.model_name,
        step=checkpoint.step,
        create_time=timestamp(checkpoint.created_at),
        metrics=checkpoint.metrics,
    )


def artifact_messages(artifacts: Iterable[Artifact]) -> list[jobs_pb2.Artifact]:
    """Published files' facts."""
    return [fill(jobs_pb2.Artifact(), artifact) for artifact in artifacts]


def file_message(file: File) -> types_pb2.File:
    """A file's facts."""
    return types_pb2.File(
        id=file.id,
        filename=file.filename,
        purpose=file.purpose,
        bytes=file.bytes,
        sha256=file.sha256,
        create_time=timestamp(file.created_at),
        expire_time=timestamp(file.expires_at),
    )


def model_message(model: Model) -> models_pb2.Model:
    """A base or tuned model."""
    base = model.base
    return models_pb2.Model(
        id=model.id,
        create_time=timestamp(model.created_at or None),
        owned_by=model.owned_by,
        job_id=model.job_id,
        base_model=base.id if base else None,
        revision=base.revision if base else None,
        licence=base.licence if base else None,
    )


def report_message(report: DataReport) -> reports_pb2.DataReport:
    """What the data check found."""
    return fill(reports_pb2.DataReport(), report)


def estimate_message(estimate: Estimate) -> reports_pb2.Estimate:
    """What a job would take."""
    return fill(reports_pb2.Estimate(), estimate)


def struct(data: dict[str, Any]) -> Struct:
    """Any values as JSON would hold them."""
    message = Struct()
    message.update(finite(data))
    return message
