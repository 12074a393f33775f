"""What a connection may ask for before its request is here: clients that are slow, silent or too many end, and others get their turn.

The protocol that uvicorn speaks, by way of `limits.SERVER_OPTIONS`. Knows no route; bodies are `Limits`' business.
"""

from __future__ import annotations

import asyncio
import resource
from datetime import timedelta
from typing import Any

import h11
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from service.errors import ErrorCode, TunesmithError
from service.rest.errors import error_response

HEAD = timedelta(seconds=20)
"""What the head of a request may take from its first byte, and the first byte of a new connection."""
RESERVED = 128
"""File descriptors that connections leave to everything else: database, storage, spool, gRPC, data checks."""
TOLD = 32
"""Connections beyond the limit that are still answered; any more are closed without a word."""


class PunctualProtocol(H11Protocol):
    """HTTP/1.1 with a deadline for the head, and an answer for those who find no room."""

    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Count it in, or out."""
        super().connection_made(transport)
        too_many = len(self.connections) - _room()
        if too_many > TOLD:
            transport.abort()
            return
        if too_many > 0:
            self.app: Any = _no_room
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """It owes nothing any more."""
        self._head_is_here()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parts of a head do not prolong its time."""
        super().data_received(data)
        if self.conn.their_state is h11.IDLE:
            self._expect_head()
        else:
            self._head_is_here()

    def _expect_head(self) -> None:
        if self._deadline is None:
            self._deadline = self.loop.call_later(HEAD.total_seconds(), self.transport.close)

    def _head_is_here(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


def _room() -> int:
    """Connections that the process has descriptors for."""
    return max(1, resource.getrlimit(resource.RLIMIT_NOFILE)[0] - RESERVED)


async def _no_room(scope: Scope, receive: Receive, send: Send) -> None:
    message = "This gateway has as many connections as it can serve; ask again."
    error = TunesmithError(ErrorCode.UNAVAILABLE, message, wire_code="too_many_connections", retry_after=timedelta(seconds=5))
    response = error_response(error)
    response.headers["connection"] = "close"
    await response(scope, receive, send)
