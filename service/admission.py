"""Who comes in: the key, the request rate of its project, when the key was last used, and refused logins.

Both transports come through `App.authenticate`, which calls `admit`. The rate is counted in this
process's memory: each gateway counts for itself, and forgets when it starts again.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta

import structlog
from limits import RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter

from service import tenancy
from service.errors import RateExceeded
from service.quotas import Quotas
from service.records import Caller, Rate
from service.store import Store, StoreUnavailable

log = structlog.get_logger(__name__)
FLUSH = timedelta(minutes=1)
"""Between two writes of when keys were last used."""
ONE_REFUSAL = RateLimitItemPerMinute(1, namespace="refused")
"""What the audit log keeps of wrong keys with one id."""


class Admission:
    """The door. `defaults` are the quotas of projects that have none of their own."""

    def __init__(self, store: Store, defaults: Quotas) -> None:
        self._store, self.defaults = store, defaults
        self._windows = MovingWindowRateLimiter(MemoryStorage())
        self._used: set[str] = set()

    async def admit(self, key: str, request_id: str) -> Caller:
        """Who holds the key, with where the project stands within its rate.

        Raises UNAUTHENTICATED for anything but a live key, RateExceeded when the project asks too often.
        """
        try:
            caller = await tenancy.authenticate(self._store, key, request_id)
        except tenancy.WrongKey as wrong:
            await self._refused(wrong, request_id)
            raise
        self._used.add(caller.key_id)
        return replace(caller, rate=self._charged(caller))

    def _charged(self, caller: Caller) -> Rate | None:
        limit = caller.quotas.over(self.defaults).limit("requests_per_minute")
        if limit is None:
            return None
        item = RateLimitItemPerMinute(int(limit), namespace="requests")
        admitted = self._windows.hit(item, caller.project_id)
        stats = self._windows.get_window_stats(item, caller.project_id)
        reset = max(0.0, stats.reset_time - time.time())
        if not admitted:
            raise RateExceeded(int(limit), timedelta(seconds=reset))
        return Rate(int(limit), max(0, stats.remaining), reset)

    async def _refused(self, wrong: tenancy.WrongKey, request_id: str) -> None:
        """Log the login that failed where somebody can read of it: in the organization whose key it is or was."""
        holder = wrong.holder
        if holder is None or not self._windows.hit(ONE_REFUSAL, holder.key_id):
            return
        details = {"error_code": wrong.code.value, "error_message": wrong.message}
        async with self._store.begin() as tx:
            await tx.audit(replace(holder, request_id=request_id), "login.failed", holder.key_id, details)

    async def run(self) -> None:
        """Write once a minute which keys were used, until cancelled; what is left is written at the end."""
        try:
            while True:
                await asyncio.sleep(FLUSH.total_seconds())
                await self.flush()
        finally:
            await self.flush()

    async def flush(self) -> None:
        """Write which keys were used since the last time. A minute's doubt about that is worth no error."""
        used, self._used = self._used, set()
        if not used:
            return
        with suppress(StoreUnavailable):
            async with self._store.begin() as tx:
                await tx.mark_used(used)
