"""The outermost layer of every request: its id, its one log line, and the last resort for what nobody expected.

A plain ASGI middleware. Logs hold no header and no query, so no key can reach them; paths are logged
as they were sent, percent-encoded, so they cannot break a line.
"""

from __future__ import annotations

import time
from typing import Any

import structlog
from starlette.datastructures import MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service import names
from service.errors import ErrorCode, TunesmithError
from service.metrics import STREAM
from service.rest.errors import error_response

CLIENT_GONE = 499
"""Logged as the status of a request whose client left before the answer."""
log: structlog.stdlib.BoundLogger = structlog.get_logger("rest")


class Requests:
    """Gives each request an `x-request-id`, times it, and turns an unexpected exception into a 500 that tells nothing."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = scope.setdefault("state", {})["request_id"] = _request_id(scope)
        with structlog.contextvars.bound_contextvars(request_id=request_id):
            exchange = _Exchange(request_id, scope, send)
            await self._run(exchange, scope, receive)
            exchange.write_line()

    async def _run(self, exchange: _Exchange, scope: Scope, receive: Receive) -> None:
        try:
            await self._app(scope, receive, exchange.send)
        except ClientDisconnect:
            exchange.status = exchange.status or CLIENT_GONE
        except Exception:
            log.exception("request failed", path=_path(scope))
            if exchange.status:
                # The answer has begun; only cutting the connection tells the client that it is not whole.
                raise
            error = TunesmithError(ErrorCode.INTERNAL, f"The server failed; tell its operator the request id {exchange.request_id}.")
            await error_response(error)(scope, receive, exchange.send)


class _Exchange:
    """One request and its answer."""

    def __init__(self, request_id: str, scope: Scope, send: Send) -> None:
        self.request_id = request_id
        self._scope = scope
        self.status = 0
        self._send = send
        self._began = time.monotonic()

    @property
    def milliseconds(self) -> int:
        return round((time.monotonic() - self._began) * 1000)

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            headers["x-request-id"] = self.request_id
            headers["openai-processing-ms"] = str(self.milliseconds)
            if STREAM in self._scope:  # the line of the request comes when it ends, and that may be tomorrow
                log.info("stream", method=self._scope["method"], path=_path(self._scope), status=self.status)
        await self._send(message)

    def write_line(self) -> None:
        scope = self._scope
        facts: dict[str, Any] = {"method": scope["method"], "path": _path(scope), "status": self.status, "ms": self.milliseconds}
        # Probes and scrapes come every few seconds and say nothing while they succeed.
        quiet = scope["path"] in ("/healthz", "/readyz", "/metrics") and self.status < 400
        (log.debug if quiet else log.info)("request", **facts)


def _request_id(scope: Scope) -> str:
    return names.request_id(dict(scope["headers"]).get(b"x-request-id", b"").decode("latin-1"))


def _path(scope: Scope) -> str:
    raw: bytes = scope.get("raw_path") or scope["path"].encode("utf-8", "backslashreplace")
    return raw.partition(b"?")[0].decode("latin-1").encode("unicode_escape").decode("ascii")[:512]
