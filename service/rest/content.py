"""Bytes on their way out: ranges, ETag, checksum header, or a redirect to where the store serves them itself.

Used by `files` and `artifacts`; knows of neither.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterator
from urllib.parse import quote

from fastapi import Request, Response
from fastapi.responses import RedirectResponse, StreamingResponse
from starlette.concurrency import run_in_threadpool

from service.app.context import available
from service.records import Content
from service.rest.errors import status_response

_RANGE = re.compile(r"bytes=\s*([0-9]{0,18})\s*-\s*([0-9]{0,18})\s*", re.ASCII)
Span = tuple[int, int]


class Unsatisfiable(ValueError):
    """The range lies behind the last byte."""


async def content_response(request: Request, content: Content) -> Response:
    """The bytes of `content`: whole, the one range asked for (206), or a redirect (307) to a presigned address.

    The first piece is read before the answer starts, so that bytes which are not there are an error
    and not a broken answer.
    """
    headers = _headers(content)
    if request.headers.get("if-none-match") == headers["etag"]:
        return Response(status_code=304, headers=headers)
    if content.url is not None and request.method == "GET":
        return RedirectResponse(content.url, status_code=307, headers={"x-checksum-sha256": content.sha256, "cache-control": "no-store"})
    try:
        span = _requested(request, content)
    except Unsatisfiable:
        return status_response(416, f"The file has {content.bytes} bytes.", {"content-range": f"bytes */{content.bytes}"})
    start, end = span or (0, content.bytes)
    headers["content-length"] = str(end - start)
    if span is not None:
        headers["content-range"] = f"bytes {start}-{end - 1}/{content.bytes}"
    status = 200 if span is None else 206
    if request.method == "HEAD" or start == end:
        return Response(status_code=status, headers=headers)
    pieces = content.read(start, end)
    async with available():  # it may have been deleted, or the store gone, since its facts were read
        first = await run_in_threadpool(next, pieces, b"")
    return StreamingResponse(_stream(first, pieces), status_code=status, headers=headers)


def _headers(content: Content) -> dict[str, str]:
    return {
        "content-type": "application/octet-stream",
        "content-disposition": f"attachment; filename*=UTF-8''{quote(content.filename, safe='')}",
        "accept-ranges": "bytes",
        "etag": f'"{content.sha256}"',
        "x-checksum-sha256": content.sha256,
        "x-content-type-options": "nosniff",
    }


def _requested(request: Request, content: Content) -> Span | None:
    """The one range asked for as [start, end), None for the whole; a server may ignore what it does not understand."""
    asked = _RANGE.fullmatch(request.headers.get("range", ""))
    condition = request.headers.get("if-range")
    if asked is None or (condition is not None and condition != f'"{content.sha256}"'):
        return None
    return _span(asked[1], asked[2], content.bytes)


def _span(first: str, last: str, size: int) -> Span | None:
    if not first and not last:
        return None
    if not first:
        start, end = max(0, size - int(last)), size
    else:
        start, end = int(first), min(size, int(last) + 1) if last else size
        if last and int(last) < int(first):
            return None
    if start >= size:
        raise Unsatisfiable
    return start, end


async def _stream(first: bytes, pieces: Iterator[bytes]) -> AsyncIterator[bytes]:
    try:
        yield first
        while piece := await run_in_threadpool(next, pieces, b""):
            yield piece
    finally:
        close = getattr(pieces, "close", None)
        if close is not None:
            close()
