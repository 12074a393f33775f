"""Bytes of the object store that are to go, in SQL.

A database and an object store have no transaction in common. So the key of bytes that are on their way is noted here
before the first of them is stored, and struck out in the transaction that writes the row which keeps them; a row that is
deleted notes its key in the same transaction. Whoever dies in between, every object has a row or is noted here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import timedelta

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from service.store import tables as t

BEGUN = 0.0
"""`due_at` of a key that a sweep has begun with: its bytes can't be kept any more."""


class RemovalStatements:
    """Mixed into `Transaction`."""

    connection: AsyncConnection
    time: float

    async def plan_removal(self, key: str, after: timedelta) -> None:
        """The bytes that will lie under this key go in a while, unless `keep` is said before."""
        await self.connection.execute(sa.insert(t.removals).values(key=key, due_at=self.time + after.total_seconds()))

    async def keep(self, key: str) -> bool:
        """Strike the key out: the row that keeps its bytes is written in this transaction. False when it is too late."""
        c = t.removals.c
        query = sa.delete(t.removals).where(c.key == key, c.due_at > self.time).returning(c.key)
        return (await self.connection.execute(query)).scalar() is not None

    async def remove(self, keys: Sequence[str]) -> None:
        """The rows that kept these bytes are gone."""
        if keys:
            await self.connection.execute(sa.insert(t.removals), [{"key": key, "due_at": self.time} for key in keys])

    async def begin_removals(self, limit: int) -> list[str]:
        """Keys whose time has come, those that others have begun with included: removing twice does no harm."""
        c = t.removals.c
        due = sa.select(c.key).where(c.due_at <= self.time).order_by(c.due_at).limit(limit).with_for_update(skip_locked=True)
        query = sa.update(t.removals).where(c.key.in_(due)).values(due_at=BEGUN).returning(c.key)
        return list((await self.connection.execute(query)).scalars())

    async def removed(self, keys: Iterable[str]) -> None:
        """Their bytes are gone."""
        await self.connection.execute(sa.delete(t.removals).where(t.removals.c.key.in_(list(keys))))
