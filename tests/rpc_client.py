"""A gRPC client for tests: stubs with the key, and what a refusal says."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2_grpc

from protos.tunesmith.v1 import files_pb2_grpc, jobs_pb2_grpc, models_pb2_grpc, runs_pb2_grpc


class _Keyed(grpc.UnaryUnaryClientInterceptor, grpc.UnaryStreamClientInterceptor, grpc.StreamUnaryClientInterceptor):
    def __init__(self, key: str) -> None:
        self._metadata = ("authorization", f"Bearer {key}")

    def _call(self, continuation: Any, details: Any, request: Any) -> Any:
        metadata = [*(details.metadata or ()), self._metadata]
        return continuation(details._replace(metadata=metadata), request)

    intercept_unary_unary = intercept_unary_stream = intercept_stream_unary = _call


@dataclass(frozen=True)
class Client:
    """The stubs of one channel."""

    channel: grpc.Channel
    keyed: grpc.Channel

    @property
    def jobs(self) -> Any:
        return jobs_pb2_grpc.JobsStub(self.keyed)

    @property
    def files(self) -> Any:
        return files_pb2_grpc.FilesStub(self.keyed)

    @property
    def models(self) -> Any:
        return models_pb2_grpc.ModelsStub(self.keyed)

    @property
    def runs(self) -> Any:
        return runs_pb2_grpc.RunsStub(self.keyed)

    @property
    def health(self) -> Any:
        return health_pb2_grpc.HealthStub(self.channel)


@contextmanager
def connected(address: str, key: str, credentials: grpc.ChannelCredentials | None = None) -> Iterator[Client]:
    """A client of the server at `address`."""
    channel = grpc.secure_channel(address, credentials) if credentials else grpc.insecure_channel(address)
    with channel:
        yield Client(channel, grpc.intercept_channel(channel, _Keyed(key)))


@dataclass(frozen=True)
class Refusal:
    """What the server said no with."""

    code: grpc.StatusCode
    message: str
    reason: str | None
    field: str | None
    retry: timedelta | None
    request_id: str


@contextmanager
def refused(code: grpc.StatusCode) -> Iterator[list[Refusal]]:
    """The block must end with this status; the list holds the refusal after it."""
    found: list[Refusal] = []
    with pytest.raises(grpc.RpcError) as caught:
        yield found
    found.append(refusal(caught.value))
    assert found[0].code is code, found


def refusal(error: Any) -> Refusal:
    """An RpcError, taken apart."""
    trailing = dict(error.trailing_metadata() or ())
    status = status_pb2.Status.FromString(trailing.get("grpc-status-details-bin", b""))
    info, request, retry = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest(), error_details_pb2.RetryInfo()
    for detail in status.details:
        assert detail.Unpack(info) or detail.Unpack(request) or detail.Unpack(retry)
    assert not status.details or (info.domain, status.code, status.message) == ("tunesmith", error.code().value[0], error.details())
    [field, *more] = [violation.field for violation in request.field_violations] or [None]
    assert not more
    delay = retry.retry_delay.ToTimedelta() if retry.HasField("retry_delay") else None
    return Refusal(error.code(), error.details(), info.reason or None, field, delay, trailing.get("x-request-id", ""))
