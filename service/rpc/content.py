"""Bytes on their way out, in chunks of at most 1 MiB: the next is read when the client has taken the one before.

Used by `files` and `jobs`; knows of neither.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import suppress
from typing import TypeVar

import grpc

from protos.tunesmith.v1 import types_pb2
from service.app.context import available
from service.records import Content
from service.rpc.status import Refused

R = TypeVar("R")
CHUNK = 2**20


async def download(response: Callable[..., R], content: Content, offset: int) -> AsyncGenerator[R]:
    """What `content` is, then its bytes from `offset` on, each as a `response`.

    The first piece is read before anything is sent, so that bytes which are not there are an error and not a broken
    answer. Raises OUT_OF_RANGE behind the end, UNAVAILABLE when the store is away.
    """
    if offset > content.bytes:
        raise Refused(grpc.StatusCode.OUT_OF_RANGE, f"The file has {content.bytes} bytes; it can't be read from {offset} on.")
    pieces = content.read(offset, content.bytes) if offset < content.bytes else iter(())
    try:
        piece = await _next(pieces)
        yield response(content=types_pb2.Content(filename=content.filename, bytes=content.bytes, sha256=content.sha256))
        while piece:
            for start in range(0, len(piece), CHUNK):
                data = piece[start : start + CHUNK]
                yield response(chunk=types_pb2.Chunk(offset=offset, data=data))
                offset += len(data)
            piece = await _next(pieces)
    finally:
        # While a thread still reads for a client that has left, closing is refused; the reader then ends with that thread.
        with suppress(ValueError):
            getattr(pieces, "close", lambda: None)()


async def _next(pieces: Iterator[bytes]) -> bytes:
    async with available():
        return await asyncio.to_thread(next, pieces, b"")
