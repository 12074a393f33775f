"""Work of which so much is done at a time; whoever comes when all is taken is told to come again. In this process alone."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import timedelta

from service.errors import ErrorCode, TunesmithError


class Slots:
    """`count` at a time. To wait instead would hide from clients that the machine is full; app/turns.py waits."""

    def __init__(self, count: int, refusal: str, retry_after: timedelta) -> None:
        self._free, self._refusal, self._retry_after = count, refusal, retry_after

    @asynccontextmanager
    async def take(self) -> AsyncGenerator[None]:
        """Raises RATE_LIMITED with the refusal."""
        if self._free == 0:
            raise TunesmithError(ErrorCode.RATE_LIMITED, self._refusal, retry_after=self._retry_after)
        self._free -= 1
        try:
            yield
        finally:
            self._free += 1
