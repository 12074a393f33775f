"""How every refusal looks over HTTP: OpenAI's error object, and one table from `ErrorCode` to a status.

Knows no use case. The application factory installs the three handlers; the middlewares, which stand
outside FastAPI, call `error_response` themselves.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from service.errors import ErrorCode, TunesmithError


@dataclass(frozen=True, slots=True)
class Reply:
    """HTTP status and OpenAI error type of an ErrorCode. `retry` overrides the official client's own rule on retries."""

    status: int
    type: str
    retry: bool | None = None
    retry_after: timedelta | None = None


REQUEST, SERVER = "invalid_request_error", "server_error"
TABLE: dict[ErrorCode, Reply] = {
    ErrorCode.INVALID_REQUEST: Reply(400, REQUEST),
    ErrorCode.UNAUTHENTICATED: Reply(401, REQUEST),
    ErrorCode.PERMISSION_DENIED: Reply(403, REQUEST),
    ErrorCode.NOT_FOUND: Reply(404, REQUEST),
    # The official client retries 409 by itself, and a state conflict does not pass: 400.
    ErrorCode.CONFLICT: Reply(400, REQUEST),
    ErrorCode.TOO_LARGE: Reply(413, REQUEST),
    ErrorCode.UNSUPPORTED_MEDIA_TYPE: Reply(415, REQUEST),
    ErrorCode.RATE_LIMITED: Reply(429, "rate_limit_error", retry_after=timedelta(seconds=1)),
    # What is used up does not come back within the seconds for which a client waits by itself.
    ErrorCode.QUOTA_EXCEEDED: Reply(429, "rate_limit_error", retry=False, retry_after=timedelta(minutes=1)),
    ErrorCode.STALE: Reply(409, REQUEST, retry=False),
    # A client that sends the same gigabytes again does not empty the disk.
    ErrorCode.STORAGE_FULL: Reply(507, SERVER, retry=False),
    ErrorCode.UNAVAILABLE: Reply(503, SERVER, retry_after=timedelta(seconds=2)),
    ErrorCode.INTERNAL: Reply(500, SERVER),
}


class AsciiJSONResponse(JSONResponse):
    """JSON that can carry whatever a client sent, lone surrogates included."""

    def render(self, content: Any) -> bytes:
        return json.dumps(content, ensure_ascii=True, separators=(",", ":")).encode("ascii")


def error_body(message: str, *, type: str, param: str | None, code: str | None) -> dict[str, dict[str, str | None]]:
    """OpenAI's error object, always with its four keys."""
    return {"error": {"message": message, "type": type, "param": param, "code": code}}


def error_response(error: TunesmithError) -> JSONResponse:
    """The answer that a TunesmithError is turned into."""
    reply = TABLE[error.code]
    body = error_body(error.message, type=reply.type, param=error.param, code=error.wire_code or error.code.value)
    return AsciiJSONResponse(body, status_code=reply.status, headers=_headers(error, reply))


def _headers(error: TunesmithError, reply: Reply) -> dict[str, str]:
    headers: dict[str, str] = {}
    wait = error.retry_after or reply.retry_after
    if wait is not None:
        headers["retry-after"] = str(max(1, math.ceil(wait.total_seconds())))
    if reply.retry is not None:
        headers["x-should-retry"] = "true" if reply.retry else "false"
    if error.code is ErrorCode.UNAUTHENTICATED:
        headers["www-authenticate"] = "Bearer"
    return headers


def status_response(status: int, message: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """An answer for a status that no ErrorCode stands for (405, 416, 431): its code is the phrase in snake case."""
    kind = SERVER if status >= 500 else REQUEST
    code = HTTPStatus(status).phrase.lower().replace(" ", "_").replace("-", "_")
    return AsciiJSONResponse(error_body(message, type=kind, param=None, code=code), status_code=status, headers=headers)


def install(api: FastAPI) -> None:
    """Make every error of `api` answer in OpenAI's shape."""
    api.add_exception_handler(TunesmithError, _on_tunesmith_error)
    api.add_exception_handler(HTTPException, _on_http_exception)
    api.add_exception_handler(RequestValidationError, _on_validation_error)


async def _on_tunesmith_error(request: Request, exc: Exception) -> JSONResponse:
    assert isinstance(exc, TunesmithError)
    return error_response(exc)


async def _on_http_exception(request: Request, exc: Exception) -> JSONResponse:
    assert isinstance(exc, HTTPException)
    url = f"{request.method} {request.scope['path']}"
    messages = {404: f"Unknown request URL: {url}. See /docs for the routes there are.", 405: f"Method not allowed: {url}."}
    return status_response(exc.status_code, messages.get(exc.status_code, exc.detail), exc.headers)


async def _on_validation_error(request: Request, exc: Exception) -> JSONResponse:
    """Only query parameters and headers get here: bodies are parsed by `bodies`, ids checked by `dependencies`."""
    assert isinstance(exc, RequestValidationError)
    first: dict[str, Any] = exc.errors()[0]
    param = str(first["loc"][-1])
    return error_response(TunesmithError(ErrorCode.INVALID_REQUEST, f"Invalid '{param}': {first['msg']}.", param=param))
