"""Webhooks: register an endpoint, rotate its secret, try it, and read what was sent to it."""

from __future__ import annotations

from datetime import timedelta

from service.app.context import Context, available, found, require
from service.errors import invalid
from service.outbound import AddressRefused, RequestFailed, check_address
from service.records import Caller, Page
from service.store import Transaction
from service.webhooks import TEST_EVENT, Delivery, Endpoint

MAX_ENDPOINTS = 20
"""Endpoints of a project: each job's end is sent to all of them."""


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
            rotated = found(await tx.rotate_webhook(caller.project_id, webhook_id, grace), "webhook", webhook_id, param="webhook_id")
            await tx.audit(caller, "webhook.rotated", webhook_id, {"grace_seconds": int(grace.total_seconds())})
            return rotated

    async def test_webhook(self, caller: Caller, webhook_id: str) -> Delivery:
        """Send a `webhook.test` event to the endpoint; the list of deliveries tells how it went."""
        require(caller, "write")
        async with available(), self.store.begin() as tx:
            delivery = await tx.insert_test_delivery(await self._webhook(tx, caller, webhook_id), TEST_EVENT)
        self.wake()
        return delivery

    async def list_deliveries(self, caller: Caller, webhook_id: str, *, after: str | None, limit: int) -> Page[Delivery]:
        """What was sent to the endpoint, or waits, newest first."""
        require(caller, "read")
        async with self.reading() as tx:
            return await tx.list_deliveries(await self._webhook(tx, caller, webhook_id), after=after, limit=limit)

    async def _webhook(self, tx: Transaction, caller: Caller, webhook_id: str) -> Endpoint:
        return found(await tx.webhook(caller.project_id, webhook_id), "webhook", webhook_id, param="webhook_id")

    async def _check(self, url: str) -> None:
        try:
            await check_address(url, allow_private=self.settings.webhook_allow_private)
        except (AddressRefused, RequestFailed) as error:
            raise invalid(f"This endpoint can't be used: {error}.", "url", "webhook_url_refused") from error
