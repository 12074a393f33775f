"""The gRPC side: translates, decides nothing. Today only the internal `Runs` service that runs report to."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import grpc.aio
import structlog

from protos.tunesmith.v1 import runs_pb2, runs_pb2_grpc
from service.app import App
from service.errors import ErrorCode, TunesmithError

log = structlog.get_logger(__name__)
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
MAX_MESSAGE_BYTES = 4 * 2**20
"""A batch of reports is a few kilobytes; anything larger is refused before it is parsed."""


class Errors(grpc.aio.ServerInterceptor):
    """Turns what the application layer raises into a status, for every method alike."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Wraps the method's handler."""
        handler: Any = await continuation(handler_call_details)
        if handler is None or handler.unary_unary is None:  # an unknown method, or one that streams
            return handler
        inner: Callable[[Any, Any], Awaitable[Any]] = handler.unary_unary

        async def call(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
            try:
                return await inner(request, context)
            except TunesmithError as error:
                await context.abort(STATUS[error.code], error.message)
            except (grpc.aio.AbortError, grpc.aio.BaseError):
                raise
            except Exception:
                log.exception("rpc_failed", method=handler_call_details.method)
                await context.abort(grpc.StatusCode.INTERNAL, "The service failed; its log says why.")

        return grpc.unary_unary_rpc_method_handler(
            call, request_deserializer=handler.request_deserializer, response_serializer=handler.response_serializer
        )


class Runs(runs_pb2_grpc.RunsServicer):
    """What runs call."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def Report(self, request: runs_pb2.ReportRequest, context: grpc.aio.ServicerContext[Any, Any]) -> runs_pb2.ReportResponse:
        """See runs.proto."""
        return await self._app.report(_bearer(context), request)


def _bearer(context: grpc.aio.ServicerContext[Any, Any]) -> str:
    metadata = dict(context.invocation_metadata() or ())
    scheme, _, token = str(metadata.get("authorization", "")).partition(" ")
    if scheme.lower() != "bearer" or not token:
        raise TunesmithError(ErrorCode.UNAUTHENTICATED, "No bearer token in the authorization metadata.")
    return token


async def serve_rpc(app: App, address: str) -> tuple[grpc.aio.Server, int]:
    """Start the gRPC server on `host:port`; gives it and the port it has. Raises OSError for a taken port."""
    options = [("grpc.max_receive_message_length", MAX_MESSAGE_BYTES), ("grpc.so_reuseport", 0)]
    server = grpc.aio.server(interceptors=[Errors()], options=options)
    runs_pb2_grpc.add_RunsServicer_to_server(Runs(app), server)  # pyright: ignore[reportUnknownMemberType]
    try:
        port = server.add_insecure_port(address)
    except RuntimeError as error:
        raise OSError(f"the gRPC address {address} can't be bound; is the port taken?") from error
    await server.start()
    return server, port
