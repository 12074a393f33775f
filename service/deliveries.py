"""Empties the outbox of webhooks: what is due is signed, sent, and written down with how it went.

Every gateway has one; a delivery is held by the one that claimed it, and another takes it over when that one died. So an endpoint
may get an event twice, under the same `webhook-id`, and never not at all. Knows no job; started by gateway.py.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Coroutine
from contextlib import suppress
from datetime import timedelta
from typing import Any

import structlog

from service.metrics import Metrics
from service.outbound import AddressRefused, RequestFailed, guarded_request
from service.settings import Settings
from service.store import Store, StoreUnavailable
from service.webhooks import Attempt, Delivery, Endpoint, signed_headers

log = structlog.get_logger(__name__)
TICK = timedelta(seconds=1)
"""Longest wait between two looks at the outbox; `wake` makes it shorter."""
ANSWER = timedelta(seconds=10)
"""What an endpoint may take."""
HOLD = timedelta(seconds=60)
"""How long a claim holds: well beyond ANSWER."""
AT_ONCE = 16
"""Deliveries under way at the same time."""
KEPT = timedelta(days=30)
"""How long the log keeps what is settled."""
SWEEP = timedelta(hours=1)


class Deliveries:
    """The outbox's other end."""

    def __init__(self, store: Store, settings: Settings, metrics: Metrics) -> None:
        self._store, self._metrics = store, metrics
        self._allow_private = settings.webhook_allow_private
        self._awake = asyncio.Event()
        self._under_way: set[asyncio.Task[None]] = set()

    def wake(self) -> None:
        """Something may be due: look now."""
        self._awake.set()

    async def run(self) -> None:
        """Deliver until cancelled; what is under way then is sent again by the next gateway."""
        swept = -SWEEP.total_seconds()
        try:
            while True:
                with suppress(StoreUnavailable):  # the scheduler's log tells of it every second
                    await self._look()
                    if time.monotonic() - swept > SWEEP.total_seconds():
                        swept = time.monotonic()
                        await self._sweep()
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._awake.wait(), TICK.total_seconds())
                self._awake.clear()
        finally:
            for task in self._under_way:
                task.cancel()
            await asyncio.gather(*self._under_way, return_exceptions=True)

    async def _look(self) -> None:
        free = AT_ONCE - len(self._under_way)
        if free == 0 or not await self._anything_due():
            return
        async with self._store.begin() as tx:
            claimed = await tx.claim_deliveries(free, HOLD)
        for delivery, endpoint in claimed:
            self._start(self._deliver(delivery, endpoint))

    async def _anything_due(self) -> bool:
        """A look that takes no lock: mostly there is nothing."""
        async with self._store.read() as tx:
            return await tx.deliveries_due()

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._under_way.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._under_way.discard(task)
        self._awake.set()  # there is room for another
        if not task.cancelled() and (error := task.exception()) is not None:
            log.warning("webhook_not_settled", cause=str(error))  # its claim runs out, then it is sent again

    async def _deliver(self, delivery: Delivery, endpoint: Endpoint) -> None:
        attempt = await self._attempt(delivery, endpoint)
        async with self._store.begin() as tx:
            settled = await tx.settle_delivery(delivery, attempt, random.uniform(0.8, 1.2))
        self._metrics.webhook_attempted(settled.status)
        if not attempt.delivered:
            facts = {"delivery": delivery.id, "endpoint": endpoint.id, "attempts": settled.attempts, "status": settled.status}
            log.info("webhook_not_taken", answer=attempt.response_status, cause=attempt.error, **facts)

    async def _attempt(self, delivery: Delivery, endpoint: Endpoint) -> Attempt:
        headers = {"content-type": "application/json"} | signed_headers(endpoint, delivery.event_id, delivery.body, time.time())
        content = delivery.body.encode()
        try:
            async with guarded_request(
                "POST", endpoint.url, timeout=ANSWER, headers=headers, content=content, allow_private=self._allow_private
            ) as response:
                return Attempt(response.status_code, _cause(response.status_code))
        except (AddressRefused, RequestFailed) as error:
            return Attempt(None, str(error)[:512])

    async def _sweep(self) -> None:
        async with self._store.begin() as tx:
            await tx.forget_deliveries(KEPT)


def _cause(status: int) -> str | None:
    if 200 <= status < 300:
        return None
    return f"the endpoint answered HTTP {status}" + ("; redirects are not followed" if 300 <= status < 400 else "")
