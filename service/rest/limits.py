"""Limits that hold before anything is parsed: bytes of a body, declared or chunked, its pace, and the headers.

A plain ASGI middleware inside `Requests`, outside FastAPI. It knows two paths, those of files and of their parts, whose
limits are others.
"""

from __future__ import annotations

import asyncio
import re
from datetime import timedelta
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import ErrorCode, TunesmithError
from service.rest.connections import PunctualProtocol
from service.rest.errors import error_response, status_response

MAX_HEADERS = 100
MAX_HEADER_BYTES = 32 * 1024
STALL = timedelta(seconds=60)
"""A body of which nothing more comes for so long is given up."""
FILE_PATH, PART_PATH = "/v1/files", re.compile(r"/v1/uploads/[^/]+/parts")

SERVER_OPTIONS: dict[str, Any] = {
    # Room above MAX_HEADER_BYTES, so that it is Limits that answers, in OpenAI's shape.
    "h11_max_incomplete_event_size": 4 * MAX_HEADER_BYTES,
    "http": PunctualProtocol,
    "server_header": False,
    # `Requests` writes one line a request; uvicorn's own would repeat it without the request id.
    "access_log": False,
}
"""What uvicorn must be started with for these limits to hold."""


class Limits:
    """Refuses with 413 what is longer than its limit, and with 431 a header bomb."""

    def __init__(self, app: ASGIApp, *, max_body_bytes: int, max_upload_bytes: int, max_part_bytes: int) -> None:
        self._app = app
        self._max_body, self._max_upload, self._max_part = max_body_bytes, max_upload_bytes, max_part_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers: list[tuple[bytes, bytes]] = scope["headers"]
        if len(headers) > MAX_HEADERS or sum(len(name) + len(value) for name, value in headers) > MAX_HEADER_BYTES:
            message = f"The request has more than {MAX_HEADERS} headers or {MAX_HEADER_BYTES} bytes of them."
            await status_response(431, message)(scope, receive, send)
            return
        limit = self._limit(scope["path"])
        declared = dict(headers).get(b"content-length", b"0")
        if declared.isdigit() and int(declared[:20]) > limit:
            await error_response(_too_large(limit))(scope, receive, send)
            return
        await self._app(scope, _counted(receive, limit), send)

    def _limit(self, path: str) -> int:
        if path == FILE_PATH:
            return self._max_upload
        return self._max_part if PART_PATH.fullmatch(path) else self._max_body


def _counted(receive: Receive, limit: int) -> Receive:
    """`receive` that raises once more than `limit` bytes came, for a chunked body declares no length, and when none come any more."""
    received, more = 0, True

    async def counted() -> Message:
        nonlocal received, more
        try:
            async with asyncio.timeout(STALL.total_seconds() if more else None):
                message = await receive()
        except TimeoutError:
            raise TunesmithError(ErrorCode.INVALID_REQUEST, f"Nothing of the body came for {STALL.total_seconds():.0f} seconds.") from None
        more = message.get("more_body", False)
        received += len(message.get("body", b""))
        if received > limit:
            raise _too_large(limit)
        return message

    return counted


def _too_large(limit: int) -> TunesmithError:
    return TunesmithError(ErrorCode.TOO_LARGE, f"The request body is larger than {limit} bytes.")
