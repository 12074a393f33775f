"""Connections, transactions and the database's clock.

SQLite: write-ahead log, every commit flushed, and transactions that take the write lock at their
begin (a deferred one that upgrades later fails under load instead of waiting).
PostgreSQL: a process that is stopped within a transaction loses it, and with it the rows it has locked.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Set
from contextlib import asynccontextmanager, contextmanager, suppress
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
from service.store.queue import QueueStatements
from service.store.runs import RunStatements
from service.store.speeds import SpeedStatements
from service.store.uploads import UploadStatements
from service.store.usage import UsageStatements
from service.store.webhooks import WebhookStatements

__all__ = ["Conflict", "Stale", "Store", "StoreDamaged", "StoreUnavailable", "Transaction", "now"]


_READ_ONLY = "tunesmith_read_only"
WAIT_SECONDS = 10
"""For a connection of the pool, for PostgreSQL to take one, and for SQLite's write lock."""
IDLE_SECONDS = 10
"""What a writing transaction may be left alone by its process before PostgreSQL ends it."""
_UNDONE = frozenset({"40001", "40P01"})
"""SQLSTATE of a serialization failure and of a deadlock."""
_DAMAGED = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
_POSTGRESQL: dict[str, int] = {
    "connect_timeout": WAIT_SECONDS,
    # A server that is gone without a word is noticed within half a minute.
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,
}


class StoreUnavailable(Exception):
    """The database did not answer; nothing is known to have been written."""


class Conflict(StoreUnavailable):
    """The database undid the transaction for the sake of another: it may be tried again at once."""


class StoreDamaged(StoreUnavailable):
    """The database's file is not what it was written as."""


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
    QueueStatements,
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
        with _told():
            async with engine.begin() as connection:
                time = (await connection.execute(_begun(connection, read_only))).scalar_one()
                transaction = Transaction(connection, float(time))
                yield transaction
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
        """Bring the schema up to date; can be run again after it was killed midway. Raises StoreUnavailable, StoreDamaged."""
        with _told():
            async with self._engine.begin() as connection:
                await connection.run_sync(_whole)
                await connection.run_sync(_upgrade)

    async def close(self) -> None:
        """Give every connection back."""
        await self._engine.dispose()


@contextmanager
def _told() -> Generator[None]:
    """Turns what the driver says of a database that can't be used into our errors, in one line and without the statement."""
    try:
        yield
    except PoolTimeout as error:
        raise StoreUnavailable("every connection is in use") from error
    except DBAPIError as error:
        cause = next(iter(str(error.orig).strip().splitlines()), type(error.orig).__name__)
        if getattr(error.orig, "sqlstate", None) in _UNDONE:
            raise Conflict(cause) from error
        if getattr(error.orig, "sqlite_errorcode", None) in _DAMAGED:
            raise StoreDamaged(cause) from error
        if isinstance(error, OperationalError | InterfaceError) or error.connection_invalidated:
            raise StoreUnavailable(cause) from error
        raise


def _begun(connection: AsyncConnection, read_only: bool) -> sa.Select[*tuple[Any, ...]]:
    """The first statement of a transaction: the time. On PostgreSQL it also bounds how long a stopped process keeps its locks."""
    if read_only or connection.dialect.name != "postgresql":
        return sa.select(now())
    return sa.select(now(), sa.func.set_config("idle_in_transaction_session_timeout", str(round(IDLE_SECONDS * 1000)), True))


def _engine(url: str) -> AsyncEngine:
    # Statements carry what users sent: an error that is logged must not repeat it.
    common: dict[str, Any] = {"hide_parameters": True, "pool_timeout": WAIT_SECONDS}
    if not url.startswith("sqlite"):
        return create_async_engine(url, pool_pre_ping=True, pool_size=10, max_overflow=10, connect_args=dict(_POSTGRESQL), **common)
    engine = create_async_engine(url, pool_size=4, max_overflow=0, connect_args={"timeout": WAIT_SECONDS}, **common)
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


def _whole(connection: sa.Connection) -> None:
    """Raises StoreDamaged for a file of SQLite's with a page that is not as it was written; PostgreSQL looks after its own."""
    if connection.dialect.name == "sqlite" and (said := connection.exec_driver_sql("PRAGMA quick_check(1)").scalar()) != "ok":
        raise StoreDamaged(f"quick_check: {' '.join(str(said).split())}")


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
