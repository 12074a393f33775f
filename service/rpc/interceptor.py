"""What stands before every method, unary or streaming: key, deadline, request id, metrics, one log line, and the status of errors.

Servicers raise `TunesmithError` or `Refused` and get a `Call` in place of gRPC's context. Knows no service but by name.
Logs hold no metadata and no message, so no key can reach them.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

import grpc
import grpc.aio
import structlog
from google.protobuf.message import DecodeError

from service import names
from service.app import App
from service.errors import ErrorCode, TunesmithError
from service.metrics import Metrics
from service.rpc.call import Call, Context, Reader, metadata_of, whole
from service.rpc.status import DETAILS_KEY, Refused, code_of, rich

T = TypeVar("T")
KEYLESS = frozenset({"grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"})
"""For probes and tools; neither tells anything of a project."""
RUN_TOKEN = frozenset({"tunesmith.v1.Runs"})
"""Its use case checks the token of the run; every service that stands in neither set needs an API key."""
QUIET = KEYLESS | RUN_TOKEN
"""Called every few seconds, and say nothing while they succeed."""
CUT = frozenset({"tunesmith.v1.Jobs/EstimateJob", "tunesmith.v1.Files/ValidateDataset"})
"""May take long and change nothing: they end when their caller leaves."""
STALL = timedelta(seconds=60)
"""A stream whose client neither sends nor takes the next message within this time ends."""
MAX_STREAMS = 100
"""Streams of one key at a time; all keyless ones count as one key's."""
log: structlog.stdlib.BoundLogger = structlog.get_logger("rpc")


class Interceptor(grpc.aio.ServerInterceptor):
    """The one interceptor of a server."""

    def __init__(self, app: App, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics
        self._streams: Counter[str] = Counter()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Wraps the method's handler; an unknown method gets one that refuses."""
        handler: Any = await continuation(handler_call_details)
        if handler is None:
            return self._wrapped("unmatched", grpc.stream_stream_rpc_method_handler(_unknown))
        return self._wrapped(str(handler_call_details.method).lstrip("/"), handler)

    def _wrapped(self, method: str, handler: Any) -> Any:
        """The handler with ours around it. It is given bytes, so that a message that can't be parsed is the client's fault."""
        inner = handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream
        read: Reader = handler.request_deserializer or bytes
        take = _messages if handler.request_streaming else _message

        async def answer(received: Any, context: Context) -> Any:
            async with self._exchange(method, context) as exchange:
                call = await self._admitted(exchange)
                if handler.request_streaming:
                    self._count(exchange, call)
                    return await inner(take(read, received), call)
                work = inner(take(read, received), call)
                return await (work if method in CUT else whole(work))

        async def stream(received: Any, context: Context) -> None:
            async with self._exchange(method, context) as exchange:
                call = await self._admitted(exchange)
                self._count(exchange, call)
                async with aclosing(inner(take(read, received), call)) as responses:
                    async for response in responses:
                        await _in_time(context.write(response), "take the next message")
                        exchange.answering()

        kinds = {
            (False, False): (grpc.unary_unary_rpc_method_handler, answer),
            (False, True): (grpc.unary_stream_rpc_method_handler, stream),
            (True, False): (grpc.stream_unary_rpc_method_handler, answer),
            (True, True): (grpc.stream_stream_rpc_method_handler, stream),
        }
        make: Any
        make, behaviour = kinds[(handler.request_streaming, handler.response_streaming)]
        return make(behaviour, response_serializer=handler.response_serializer)

    @asynccontextmanager
    async def _exchange(self, method: str, context: Context) -> AsyncGenerator[_Exchange]:
        """One call from its metadata to its status."""
        request_id = names.request_id(metadata_of(context).get("x-request-id", ""))
        context.set_trailing_metadata((("x-request-id", request_id),))
        exchange = _Exchange(method, context, request_id)
        with structlog.contextvars.bound_contextvars(request_id=request_id):
            try:
                yield exchange
            except (TunesmithError, Refused) as error:
                await exchange.refuse(error)
            except asyncio.CancelledError:
                exchange.code = grpc.StatusCode.DEADLINE_EXCEEDED if _expired(context) else grpc.StatusCode.CANCELLED
                raise
            except Exception:
                log.exception("rpc_failed", method=method)
                text = f"The server failed; tell its operator the request id {request_id}."
                await exchange.refuse(TunesmithError(ErrorCode.INTERNAL, text))
            finally:
                self._uncount(exchange)
                self._metrics.rpc_answered(method, exchange.code.name, exchange.answering())
                exchange.write_line()

    async def _admitted(self, exchange: _Exchange) -> Call:
        """The call, once its deadline and its key are known to be good."""
        if _expired(exchange.context):
            raise Refused(grpc.StatusCode.DEADLINE_EXCEEDED, "The call came after its deadline.")
        if exchange.service in KEYLESS or exchange.method == "unmatched":
            return Call(exchange.context, exchange.request_id)
        bearer = _bearer(exchange.context)
        if exchange.service in RUN_TOKEN:
            return Call(exchange.context, exchange.request_id, bearer)
        return Call(
            exchange.context, exchange.request_id, known_caller=await self._app.authenticate(names.api_key(bearer), exchange.request_id)
        )

    def _count(self, exchange: _Exchange, call: Call) -> None:
        """One more stream of the caller's, until its status has been sent: that waits for a client which takes nothing."""
        key = call.known_caller.key_id if call.known_caller else ""
        if self._streams[key] >= MAX_STREAMS:
            message = f"There are {MAX_STREAMS} streams of this key already; end one."
            raise TunesmithError(ErrorCode.RATE_LIMITED, message, retry_after=timedelta(seconds=5))
        self._streams[key] += 1
        exchange.counted_for = key

    def _uncount(self, exchange: _Exchange) -> None:
        if exchange.counted_for is not None:
            self._streams -= Counter([exchange.counted_for])


@dataclass
class _Exchange:
    """One call and its answer."""

    method: str
    context: Context
    request_id: str
    code: grpc.StatusCode = grpc.StatusCode.OK
    seconds: float | None = None
    """To the answer, of a stream to its first message."""
    counted_for: str | None = None
    """The key whose stream it is."""
    _began: float = field(default_factory=time.perf_counter)

    @property
    def service(self) -> str:
        return self.method.partition("/")[0]

    def answering(self) -> float:
        """The answer begins now, unless it has begun; the seconds until then."""
        if self.seconds is None:
            self.seconds = time.perf_counter() - self._began
        return self.seconds

    async def refuse(self, error: TunesmithError | Refused) -> None:
        """End the call with the error's status. Raises AbortError, always."""
        self.code = code_of(error)
        status = rich(error)
        trailing = ((DETAILS_KEY, status.SerializeToString()), ("x-request-id", self.request_id))
        await self.context.abort(self.code, status.message, trailing)

    def write_line(self) -> None:
        quiet = self.service in QUIET and self.code is grpc.StatusCode.OK
        milliseconds = round((time.perf_counter() - self._began) * 1000)
        (log.debug if quiet else log.info)("rpc", method=self.method, code=self.code.name, ms=milliseconds)


async def _unknown(received: AsyncIterator[bytes], call: Call) -> AsyncGenerator[bytes]:
    raise Refused(grpc.StatusCode.UNIMPLEMENTED, "There is no such method; ask the server's reflection for those there are.")
    yield b""


def _message(read: Reader, received: bytes) -> Any:
    try:
        return read(received)
    except DecodeError:
        raise Refused(grpc.StatusCode.INVALID_ARGUMENT, "The message is not of the type that the method takes.") from None


async def _messages(read: Reader, received: AsyncIterator[bytes]) -> AsyncGenerator[Any]:
    while True:
        try:
            message = await _in_time(anext(received), "send the next message")
        except StopAsyncIteration:
            return
        yield _message(read, message)


async def _in_time(work: Awaitable[T], to_do: str) -> T:
    try:
        async with asyncio.timeout(STALL.total_seconds()):
            return await work
    except TimeoutError:
        raise Refused(grpc.StatusCode.ABORTED, f"The client did not {to_do} within {STALL.total_seconds():.0f} seconds.") from None


def _bearer(context: Context) -> str:
    scheme, _, token = metadata_of(context).get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not token:
        raise TunesmithError(ErrorCode.UNAUTHENTICATED, "No bearer token in the metadata: send 'authorization: Bearer …'.")
    return token


def _expired(context: Context) -> bool:
    remaining: Any = context.time_remaining()  # None without a deadline, whatever its stub says
    return remaining is not None and remaining <= 0
