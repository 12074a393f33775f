"""How every refusal looks over gRPC: one table from `ErrorCode` to a status, and google.rpc's rich details beside it.

Knows no use case. The interceptor is the only one that sends what is made here.
"""

from __future__ import annotations

from datetime import timedelta

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2  # pyright: ignore[reportMissingTypeStubs]

from service.errors import ErrorCode, TunesmithError

DOMAIN = "tunesmith"
"""Of the reasons in google.rpc.ErrorInfo."""
MAX_MESSAGE_BYTES = 1000
"""A message travels twice in the trailing metadata, of which clients take 8 KiB."""
DETAILS_KEY = "grpc-status-details-bin"
STATUS: dict[ErrorCode, grpc.StatusCode] = {
    ErrorCode.INVALID_REQUEST: grpc.StatusCode.INVALID_ARGUMENT,
    ErrorCode.UNAUTHENTICATED: grpc.StatusCode.UNAUTHENTICATED,
    ErrorCode.PERMISSION_DENIED: grpc.StatusCode.PERMISSION_DENIED,
    ErrorCode.NOT_FOUND: grpc.StatusCode.NOT_FOUND,
    ErrorCode.CONFLICT: grpc.StatusCode.ABORTED,
    ErrorCode.TOO_LARGE: grpc.StatusCode.RESOURCE_EXHAUSTED,
    ErrorCode.UNSUPPORTED_MEDIA_TYPE: grpc.StatusCode.INVALID_ARGUMENT,
    ErrorCode.RATE_LIMITED: grpc.StatusCode.RESOURCE_EXHAUSTED,
    ErrorCode.QUOTA_EXCEEDED: grpc.StatusCode.RESOURCE_EXHAUSTED,
    ErrorCode.STALE: grpc.StatusCode.FAILED_PRECONDITION,
    ErrorCode.STORAGE_FULL: grpc.StatusCode.RESOURCE_EXHAUSTED,
    ErrorCode.UNAVAILABLE: grpc.StatusCode.UNAVAILABLE,
    ErrorCode.INTERNAL: grpc.StatusCode.INTERNAL,
}
RETRY_AFTER = {
    ErrorCode.RATE_LIMITED: timedelta(seconds=1),
    ErrorCode.QUOTA_EXCEEDED: timedelta(minutes=1),
    ErrorCode.UNAVAILABLE: timedelta(seconds=2),
}
"""Where an error does not say it itself."""
FIELDS = {"fine_tuning_job_id": "job_id", "Idempotency-Key": "idempotency_key"}
"""Fields that have another name in messages than in REST."""


class Refused(Exception):
    """A refusal by a status that no ErrorCode stands for, as OUT_OF_RANGE."""

    def __init__(self, code: grpc.StatusCode, message: str) -> None:
        super().__init__(code, message)
        self.code, self.message = code, message


def code_of(error: TunesmithError | Refused) -> grpc.StatusCode:
    """The status that a refusal is answered with."""
    return error.code if isinstance(error, Refused) else STATUS[error.code]


def rich(error: TunesmithError | Refused) -> status_pb2.Status:
    """The refusal with its details: ErrorInfo always, BadRequest where a field is named, RetryInfo where asking again may help."""
    message = fit(error.message)
    if isinstance(error, Refused):
        details: list[Message] = [error_details_pb2.ErrorInfo(reason=error.code.name.lower(), domain=DOMAIN)]
    else:
        details = list(_details(error, message))
    status = status_pb2.Status(code=code_of(error).value[0], message=message)
    for detail in details:
        packed = any_pb2.Any()
        packed.Pack(detail)
        status.details.append(packed)
    return status


def _details(error: TunesmithError, message: str) -> list[Message]:
    details: list[Message] = [error_details_pb2.ErrorInfo(reason=error.wire_code or error.code.value, domain=DOMAIN)]
    if error.param is not None:
        field = fit(FIELDS.get(error.param, error.param))
        violation = error_details_pb2.BadRequest.FieldViolation(field=field, description=message)
        details.append(error_details_pb2.BadRequest(field_violations=[violation]))
    wait = error.retry_after or RETRY_AFTER.get(error.code)
    if wait is not None:
        delay = duration_pb2.Duration()
        delay.FromTimedelta(wait)
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    return details


def fit(message: str) -> str:
    """A text that a message can carry, lone surrogates escaped, and short enough for the metadata."""
    data = message.encode("utf-8", "backslashreplace")
    if len(data) > MAX_MESSAGE_BYTES:
        return data[: MAX_MESSAGE_BYTES - 3].decode("utf-8", "ignore") + "…"
    return data.decode()
