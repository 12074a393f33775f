"""Long work that should be done by few at a time. In this process alone: what must hold everywhere is in the database."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from weakref import WeakValueDictionary


class Turns:
    """One at a time for each name, and so many in all."""

    def __init__(self, at_once: int) -> None:
        self._slots = asyncio.Semaphore(at_once)
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    @asynccontextmanager
    async def turn(self, name: str) -> AsyncGenerator[None]:
        """Alone with this name while the `async with` lasts."""
        lock = self._locks.setdefault(name, asyncio.Lock())
        async with lock, self._slots:
            yield
