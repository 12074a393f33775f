"""Webhooks: register an endpoint, rotate its secret, try it, and read what was sent to it."""

from __future__ import annotations

import asyncio
import time
from datetime import timedelta
from typing import Any

from service.app.context import Context, available, found, require
from service.errors import invalid
from service.outbound import AddressRefused, RequestFailed, check_address
from service.records import Caller, Page
from service.store import Transaction
from service.webhooks import Delivery, Endpoint

MAX_ENDPOINTS = 20
"""Endpoints of a project: each job's end is sent to all of them."""
TEST_WAIT = timedelta(seconds=15)
"""For the first attempt of a test: longer than an endpoint may take to answer."""
TEST_LOOK = timedelta(milliseconds=50)
"""Between two looks at a test: any gateway may be the one that sends it."""


class WebhookUses(Context):
    """What a caller can do with webhooks. An endpoint's secret is shown when it is made and when it is rotated."""

    async def create_webhook(self, caller: Caller, *, name: str, url: str, events: list[str]) -> Endpoint:
        """Register an endpoint; its address is checked now, and again each time it is used."""
        require(caller, "write")
        await self._check(url)
        async with available(), self.store.begin() as tx:
            if await tx.count_webhooks(caller.project_id) >= MAX_ENDPOINTS:
                raise invalid(f"The project has {MAX_ENDPOINTS} webhooks already; delete one first.")
            endpoint = await tx.insert_webhook(caller.project_id, name, url, events)
            await tx.audit(caller, "webhook.created", endpoint.id, {"url": url, "events": events})
            return endpoint

    async def list_webhooks(self, caller: Caller, *, after: str | None, limit: int) -> Page[Endpoint]:
        """The project's endpoints, newest first."""
        require(caller, "read")
        async with self.reading() as tx:
            return await tx.list_webhooks(caller.project_id, after=after, limit=limit)

    async def get_webhook(self, caller: Caller, webhook_id: str) -> Endpoint:
        """One endpoint."""
        require(caller, "read")
        async with self.reading() as tx:
            return await self._webhook(tx, caller, webhook_id)

    async def update_webhook(
        self, caller: Caller, webhook_id: str, *, name: str | None, url: str | None, events: list[str] | None
    ) -> Endpoint:
        """Change what is not None; another address is checked as that of a new endpoint."""
        require(caller, "write")
        if url is not None:
            await self._check(url)
        given: dict[str, Any] = {"name": name, "url": url, "events": events}
        changes = {field: value for field, value in given.items() if value is not None}
        async with available(), self.store.begin() as tx:
            if not changes:
                return await self._webhook(tx, caller, webhook_id)
            changed = _found(await tx.update_webhook(caller.project_id, webhook_id, **changes), webhook_id)
            await tx.audit(caller, "webhook.updated", webhook_id, {"changes_requested": changes})
            return changed

    async def delete_webhook(self, caller: Caller, webhook_id: str) -> None:
        """Forget an endpoint; what waits for it is given up."""
        require(caller, "write")
        async with available(), self.store.begin() as tx:
            await self._webhook(tx, caller, webhook_id)
            await tx.delete_webhook(caller.project_id, webhook_id)
            await tx.audit(caller, "webhook.deleted", webhook_id)

    async def rotate_webhook(self, caller: Caller, webhook_id: str, grace: timedelta) -> Endpoint:
        """A new secret. Until `grace` is over, deliveries carry a signature of each."""
        require(caller, "write")
        async with available(), self.store.begin() as tx:
            rotated = _found(await tx.rotate_webhook(caller.project_id, webhook_id, grace), webhook_id)
            await tx.audit(caller, "webhook.rotated", webhook_id, {"grace_seconds": int(grace.total_seconds())})
            return rotated

    async def test_webhook(self, caller: Caller, webhook_id: str, type: str) -> int:
        """Send a sample event to the endpoint; the HTTP status of its first answer. It stands in the list of deliveries as every other."""
        require(caller, "write")
        async with available(), self.store.begin() as tx:
            sample = await tx.insert_test_delivery(await self._webhook(tx, caller, webhook_id), type)
        self.wake()
        tried = await self._attempted(sample)
        if tried.response_status is None:
            raise invalid(f"The endpoint did not answer: {tried.error or 'it was not asked yet'}.", wire_code="webhook_unreachable")
        return tried.response_status

    async def _attempted(self, delivery: Delivery) -> Delivery:
        """The delivery after its first attempt, or as it is when that takes too long."""
        deadline = time.monotonic() + TEST_WAIT.total_seconds()
        while delivery.attempts == 0 and delivery.status == "pending" and time.monotonic() < deadline:
            await asyncio.sleep(TEST_LOOK.total_seconds())
            async with self.reading() as tx:
                delivery = await tx.delivery(delivery)
        return delivery

    async def list_deliveries(self, caller: Caller, webhook_id: str, *, after: str | None, limit: int) -> Page[Delivery]:
        """What was sent to the endpoint, or waits, newest first."""
        require(caller, "read")
        async with self.reading() as tx:
            return await tx.list_deliveries(await self._webhook(tx, caller, webhook_id), after=after, limit=limit)

    async def _webhook(self, tx: Transaction, caller: Caller, webhook_id: str) -> Endpoint:
        return _found(await tx.webhook(caller.project_id, webhook_id), webhook_id)

    async def _check(self, url: str) -> None:
        try:
            await check_address(url, allow_private=self.settings.webhook_allow_private)
        except (AddressRefused, RequestFailed) as error:
            raise invalid(f"This endpoint can't be used: {error}.", "url", "webhook_url_refused") from error


def _found(endpoint: Endpoint | None, webhook_id: str) -> Endpoint:
    return found(endpoint, "webhook", webhook_id, param="webhook_endpoint_id")
