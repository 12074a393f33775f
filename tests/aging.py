"""Time passes by in a gateway's database, and its sweep comes along; then what its object store holds and ought to hold."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from service.store import tables as t
from service.sweep import Sweep
from tests.gateway import Gateway

DAY = 86_400.0
NEVER = 3600.0
"""Sweep interval of a gateway whose test sweeps itself."""


def age(gateway: Gateway, column: sa.Column[Any], seconds: float, *where: sa.ColumnElement[bool]) -> None:
    """Let time pass by for some rows: one of their times moves into the past."""

    async def move() -> None:
        async with gateway.parts.store.begin() as tx:
            await tx.connection.execute(sa.update(column.table).where(*where).values({column.name: column - seconds}))

    gateway.do(move())


def sweep(gateway: Gateway) -> None:
    """One round, now."""
    parts = gateway.parts
    gateway.do(Sweep(parts.store, parts.storage, gateway.settings, parts.metrics).once())


def objects(gateway: Gateway) -> set[str]:
    """Keys of all bytes that clients have sent."""
    return {info.key for prefix in ("files/", "uploads/") for info in gateway.parts.storage.list(prefix)}


def named(gateway: Gateway) -> set[str]:
    """Keys that rows keep."""

    async def keys() -> set[str]:
        async with gateway.parts.store.read() as tx:
            files = sa.select(t.files.c.key).where(t.files.c.deleted_at.is_(None))
            return set((await tx.connection.execute(files.union(sa.select(t.upload_parts.c.key)))).scalars())

    return gateway.do(keys())
