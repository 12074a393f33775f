"""Connections, transactions and the database's clock.

SQLite: write-ahead log, every commit flushed, and transactions that take the write lock at their
begin (a deferred one that upgrades later fails under load instead of waiting).
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncGenerator, Awaitable, Callable, Set
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiosqlite
import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

from service.store.audit import AuditStatements
from service.store.jobs import JobStatements, Stale
from service.store.keys import KeyStatements
from service.store.permissions import PermissionStatements
from service.store.progress import ProgressStatements
from service.store.projects import ProjectStatements
from service.store.runs import RunStatements
from service.store.speeds import SpeedStatements
from service.store.uploads import UploadStatements
from service.store.usage import UsageStatements
from service.store.webhooks import WebhookStatements

__all__ = ["Stale", "Store", "StoreUnavailable", "Transaction", "now"]


_READ_ONLY = "tunesmith_read_only"


class StoreUnavailable(Exception):
    """The database did not answer; nothing is known to have been written."""


class now(FunctionElement[float]):
    """Seconds since 1970 by the database's clock, the only clock that leases are measured by."""

    type = sa.Float(53)
    inherit_cache = True


@compiles(now, "sqlite")
def _now_sqlite(element: Any, compiler: Any, **kw: Any) -> str:
    return "((julianday('now') - 2440587.5) * 86400.0)"


@compiles(now, "postgresql")
def _now_postgresql(element: Any, compiler: Any, **kw: Any) -> str:
    return "extract(epoch from clock_timestamp())::float8"


class Transaction(
    JobStatements,
    RunStatements,
    UploadStatements,
    KeyStatements,
    ProjectStatements,
    PermissionStatements,
    UsageStatements,
    AuditStatements,
    WebhookStatements,
    SpeedStatements,
    ProgressStatements,
):
    """The statements of one open transaction."""

    def __init__(self, connection: AsyncConnection, time: float) -> None:
        self.connection = connection
        self.time = time
        self.touched = set[str]()


class Store:
    """The database, behind transactions."""

    def __init__(self, url: str) -> None:
        self._engine = _engine(url)
        self._listeners: list[Callable[[Set[str]], None]] = []
        self.url = url

    def listen(self, listener: Callable[[Set[str]], None]) -> None:
        """Call `listener` after each commit of this process that changed jobs, with their ids."""
        self._listeners.append(listener)

    @asynccontextmanager
    async def begin(self) -> AsyncGenerator[Transaction]:
        """One transaction. Raises StoreUnavailable when the database can't be reached or stays locked."""
        async with self._transaction(read_only=False) as transaction:
            yield transaction

    @asynccontextmanager
    async def _transaction(self, *, read_only: bool) -> AsyncGenerator[Transaction]:
        engine = self._engine.execution_options(**{_READ_ONLY: read_only})
        try:
            async with engine.begin() as connection:
                time = (await connection.execute(sa.select(now()))).scalar_one()
                transaction = Transaction(connection, float(time))
                yield transaction
        except (OperationalError, InterfaceError, PoolTimeout) as error:
            raise StoreUnavailable(str(error)) from error
        except DBAPIError as error:
            if error.connection_invalidated:
                raise StoreUnavailable(str(error)) from error
            raise
        if transaction.touched:
            for listener in self._listeners:
                listener(transaction.touched)

    @asynccontextmanager
    async def read(self) -> AsyncGenerator[Transaction]:
        """As begin, for statements that only read: on SQLite they do not wait for a writer."""
        async with self._transaction(read_only=True) as transaction:
            yield transaction

    async def ping(self) -> None:
        """Raises StoreUnavailable unless the database answers."""
        async with self.read():
            pass

    async def migrate(self) -> None:
        """Bring the schema up to date; can be run again after it was killed midway."""
        async with self._engine.begin() as connection:
            await connection.run_sync(_upgrade)

    async def close(self) -> None:
        """Give every connection back."""
        await self._engine.dispose()


def _engine(url: str) -> AsyncEngine:
    if not url.startswith("sqlite"):
        return create_async_engine(url, pool_pre_ping=True, pool_size=10, max_overflow=10, pool_timeout=10)
    engine = create_async_engine(url, pool_size=4, max_overflow=0, connect_args={"timeout": 10})
    event.listen(engine.sync_engine, "connect", _sqlite_connected)
    event.listen(engine.sync_engine, "begin", _sqlite_begin)
    event.listen(engine.sync_engine, "invalidate", _sqlite_given_up)
    return engine


def _sqlite_connected(connection: Any, record: Any) -> None:
    # The driver's own transaction control is off: it would begin late, and deferred.
    connection.isolation_level = None
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _sqlite_begin(connection: sa.Connection) -> None:
    read_only = connection.get_execution_options().get(_READ_ONLY, False)
    connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")


def _sqlite_given_up(connection: Any, record: Any, error: BaseException | None) -> None:
    """End the transaction of a connection that is about to be thrown away because its task was cancelled.

    Closing it would not: SQLite keeps a closed connection, and its lock, for as long as a statement of it lives,
    which here means until the cancelled task's traceback is collected.
    """
    with suppress(sqlite3.Error, ValueError):  # nothing to end, or closed already
        connection.run_async(_rolled_back)


def _rolled_back(connection: aiosqlite.Connection) -> Awaitable[None]:
    # A second cancellation must not end this half done.
    return asyncio.shield(connection.rollback())


def _upgrade(connection: sa.Connection) -> None:
    from alembic import command
    from alembic.config import Config

    if connection.dialect.name == "postgresql":
        # Two gateways may start at once: the second waits here until the first has migrated.
        connection.execute(sa.text("SELECT pg_advisory_xact_lock(7305791)"))
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
