"""What every use case stands on: the parts behind the application layer, and how their absence is told."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from typing import TypeVar

from service import objects
from service.admission import Admission
from service.app.quota_checks import QuotaChecks
from service.app.turns import Turns
from service.catalogue import Catalogue
from service.errors import ErrorCode, TunesmithError, invalid, not_found
from service.file_checks import FileChecks
from service.grading import Grading
from service.jobs import Job
from service.records import Caller, Content, Scope
from service.reports import RunReports
from service.runtime import Runtime, RuntimeUnavailable
from service.settings import Settings
from service.store import Conflict, Store, StoreUnavailable, Transaction
from service.watches import Watches
from trainers.storage import NoSuchObject, Storage, StorageDenied, StorageError, StorageFull, StorageUnavailable

T = TypeVar("T")
MAX_TRIES = 5
"""How often a change is tried again when somebody else changed the job in between."""
CONFLICTS = 3
"""How often what the database undid for another's sake is tried again."""
DOWNLOAD_LIFE = timedelta(minutes=15)
"""How long a presigned address serves."""
ARRIVAL = timedelta(days=1)
"""What bytes may take to be stored; those that still have no row then are removed."""
ASSEMBLIES = 2
"""Uploads that are made files at a time: each takes a thread for as long as it copies gigabytes."""


class Context(QuotaChecks):
    """The parts that use cases work with, and the few steps that many of them share."""

    def __init__(
        self,
        store: Store,
        storage: Storage,
        catalogue: Catalogue,
        runtime: Runtime,
        reports: RunReports,
        wake: Callable[[], None],
        admission: Admission,
        checks: FileChecks,
        grading: Grading,
        watches: Watches,
        settings: Settings,
    ) -> None:
        self.store, self.storage, self.catalogue, self.runtime = store, storage, catalogue, runtime
        self.reports, self.admission, self.settings = reports, admission, settings
        self.wake = wake
        self.checks, self.grading, self.watches = checks, grading, watches
        self.assemblies = Turns(ASSEMBLIES)

    @asynccontextmanager
    async def reading(self) -> AsyncGenerator[Transaction]:
        """A transaction that reads for a caller; a cursor that names nothing is the caller's fault."""
        async with available():
            try:
                async with self.store.read() as tx:
                    yield tx
            except ValueError as error:
                if error.args != ("after",):
                    raise
                raise invalid("'after' names nothing in this list; pass the id of the last item you have.", "after") from error

    async def the_job(self, tx: Transaction, caller: Caller, job_id: str, *, lock: bool = False) -> Job:
        """The caller's job, or NOT_FOUND."""
        return found(await tx.job(caller.project_id, job_id, lock=lock), "fine-tuning job", job_id, param="fine_tuning_job_id")

    async def content(self, key: str, filename: str, size: int, sha256: str) -> Content:
        """The bytes at `key`, ready to be sent."""

        def read(start: int, end: int) -> Iterator[bytes]:
            return self.storage.read(key, start, end)

        async with available():
            url = await asyncio.to_thread(self.storage.presigned_url, key, expires=DOWNLOAD_LIFE, filename=filename)
        return Content(filename, size, sha256, read, url)

    @asynccontextmanager
    async def keeping(self, key: str, put: Callable[[], objects.Kept]) -> AsyncGenerator[objects.Kept]:
        """What `put` stores under `key`, off the event loop; the block writes the row that keeps it, see `kept`.

        When the block refuses, the bytes are removed at once; when nobody knows how it ended, the sweep finds out.
        """
        async with self.store.begin() as tx:
            await tx.plan_removal(key, ARRIVAL)
        stored = await asyncio.to_thread(put)
        try:
            yield stored
        except TunesmithError:
            with suppress(StorageError):
                await asyncio.to_thread(self.storage.delete, key)
            raise

    async def kept(self, tx: Transaction, key: str) -> None:
        """The transaction writes the row that keeps the bytes under `key`. Raises UNAVAILABLE when they took too long to come."""
        if not await tx.keep(key):
            raise TunesmithError(ErrorCode.UNAVAILABLE, "Storing the bytes took too long; send them again.")


async def settled(work: Callable[[], Awaitable[T]]) -> T:
    """What `work`, one transaction, gives; tried again up to CONFLICTS times. Raises Conflict when that was not enough."""
    for attempt in range(CONFLICTS):
        with suppress(Conflict):
            return await work()
        await asyncio.sleep(random.uniform(0, 0.05 * 2**attempt))  # those that met would meet again
    return await work()


@asynccontextmanager
async def available() -> AsyncGenerator[None]:
    """Turns the absence of a part behind into an error that the client may answer by asking again."""
    soon = timedelta(seconds=5)
    try:
        yield
    except (StoreUnavailable, StorageUnavailable, RuntimeUnavailable) as error:
        raise TunesmithError(ErrorCode.UNAVAILABLE, "A part of the service is away; ask again.", retry_after=soon) from error
    except StorageFull as error:
        raise TunesmithError(ErrorCode.STORAGE_FULL, "The object store is full.") from error
    except StorageDenied as error:
        raise TunesmithError(ErrorCode.UNAVAILABLE, "The object store refuses the service's credentials.", retry_after=soon) from error
    except NoSuchObject as error:
        raise TunesmithError(ErrorCode.NOT_FOUND, "The bytes are no longer in the object store.") from error


def require(caller: Caller, scope: Scope) -> None:
    """Raises PERMISSION_DENIED unless the key has the scope."""
    if scope not in caller.scopes:
        raise TunesmithError(ErrorCode.PERMISSION_DENIED, f"This API key lacks the scope '{scope}'.")


def found(value: T | None, kind: str, name: str, param: str | None = None) -> T:
    """`value`, or NOT_FOUND where there is none."""
    if value is None:
        raise not_found(kind, name, param)
    return value
