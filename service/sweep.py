"""Removes in the background what nobody can see any more: expired uploads and files, and the bytes of what is gone.

Every gateway has one. Two of them share the work: each statement takes rows that the other has not, and removing bytes twice does
no harm. Clients need not wait for it, for what has expired is gone by the database's clock. Started by `gateway`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import structlog

from service.metrics import Metrics
from service.settings import Settings
from service.store import Store, StoreUnavailable
from trainers.storage import Storage, StorageError

log = structlog.get_logger(__name__)
BATCH = 500
"""Rows of one transaction."""


class Sweep:
    """What must be done every `sweep_interval`."""

    def __init__(self, store: Store, storage: Storage, settings: Settings, metrics: Metrics) -> None:
        self._store, self._storage, self._settings, self._metrics = store, storage, settings, metrics

    async def run(self) -> None:
        """Sweep until cancelled."""
        while True:
            try:
                await self.once()
            except (StoreUnavailable, StorageError) as error:
                log.warning("sweep_waits", cause=str(error))
            except Exception:
                # It must outlive any single bad row; the cause is in the log.
                log.exception("sweep_error")
            await asyncio.sleep(self._settings.sweep_interval.total_seconds())

    async def once(self) -> None:
        """Leave nothing that is due. Raises StoreUnavailable, StorageError; what is left then is due still."""
        while await self._expire():
            pass
        while keys := await self._begin():
            await self._remove(keys)

    async def _expire(self) -> bool:
        """Whether there may be more."""
        async with self._store.begin() as tx:
            uploads, files = await tx.expire_uploads(BATCH), await tx.expire_files(BATCH)
        self._metrics.expired(uploads=uploads, files=files)
        return BATCH in (uploads, files)

    async def _begin(self) -> list[str]:
        async with self._store.begin() as tx:
            return await tx.begin_removals(BATCH)

    async def _remove(self, keys: Sequence[str]) -> None:
        def delete() -> None:
            for key in keys:
                self._storage.delete(key)

        await asyncio.to_thread(delete)
        async with self._store.begin() as tx:
            await tx.removed(keys)
