"""Webhook endpoints and the outbox of their deliveries in SQL."""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from datetime import timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from service.records import Page
from service.store import tables as t
from service.store.paging import page
from service.webhooks import Attempt, Delivery, Endpoint, new_event, new_secret, next_attempt


async def enqueue(connection: AsyncConnection, time: float, project_id: str, type: str, object_id: str) -> None:
    """Put an event into the outbox for every endpoint of the project that wants it, in the transaction that makes it true."""
    c = t.webhook_endpoints.c
    query = sa.select(c.id, c.events).where(c.project_id == project_id, c.deleted_at.is_(None))
    wanting = [row.id for row in await connection.execute(query) if type in row.events]
    if wanting:
        await _insert(connection, time, project_id, type, object_id, wanting)


async def _insert(
    connection: AsyncConnection, time: float, project_id: str, type: str, object_id: str, endpoints: Iterable[str]
) -> list[str]:
    """One event, a delivery for each endpoint; the deliveries' ids."""
    event_id, body = new_event(type, object_id, time)
    common = {"project_id": project_id, "event_id": event_id, "type": type, "body": body, "status": "pending", "attempts": 0}
    common |= {"created_at": time, "due_at": time, "claimed_until": 0.0}
    rows = [common | {"id": f"whd_{secrets.token_hex(12)}", "endpoint_id": endpoint} for endpoint in endpoints]
    await connection.execute(sa.insert(t.webhook_deliveries), rows)
    return [str(row["id"]) for row in rows]


class WebhookStatements:
    """Mixed into `Transaction`."""

    connection: AsyncConnection
    time: float

    async def insert_webhook(self, project_id: str, name: str, url: str, events: list[str]) -> Endpoint:
        """A new endpoint with a new secret."""
        values = {"id": f"we_{secrets.token_hex(12)}", "project_id": project_id, "name": name, "url": url, "events": events}
        await self.connection.execute(sa.insert(t.webhook_endpoints).values(**values, secret=new_secret(), created_at=self.time))
        found = await self.webhook(project_id, str(values["id"]))
        assert found is not None
        return found

    async def webhook(self, project_id: str, webhook_id: str) -> Endpoint | None:
        """An endpoint of the project."""
        query = sa.select(t.webhook_endpoints).where(*_live(project_id, webhook_id))
        row = (await self.connection.execute(query)).mappings().first()
        return _endpoint(row) if row else None

    async def list_webhooks(self, project_id: str, *, after: str | None, limit: int) -> Page[Endpoint]:
        """Newest first. Raises ValueError when `after` is no endpoint of the project."""
        c = t.webhook_endpoints.c
        cursor = sa.select(c.n).where(c.id == after, c.project_id == project_id) if after else None
        query = sa.select(t.webhook_endpoints).where(c.project_id == project_id, c.deleted_at.is_(None))
        return await page(self.connection, query, c.n, cursor, limit, _endpoint)

    async def count_webhooks(self, project_id: str) -> int:
        """Endpoints of the project."""
        c = t.webhook_endpoints.c
        query = sa.select(sa.func.count()).select_from(t.webhook_endpoints).where(c.project_id == project_id, c.deleted_at.is_(None))
        return (await self.connection.execute(query)).scalar_one()

    async def delete_webhook(self, project_id: str, webhook_id: str) -> bool:
        """Forget the endpoint and give up what waits for it; False when there is none."""
        found = await self._change(project_id, webhook_id, deleted_at=self.time, secret="", previous_secret=None)
        d = t.webhook_deliveries.c
        waiting = sa.update(t.webhook_deliveries).where(d.endpoint_id == webhook_id, d.due_at.is_not(None))
        if found:
            await self.connection.execute(waiting.values(status="failed", due_at=None, error="the endpoint was deleted"))
        return found

    async def update_webhook(self, project_id: str, webhook_id: str, **values: Any) -> Endpoint | None:
        """The endpoint with these columns changed; None when there is none."""
        await self._change(project_id, webhook_id, **values)
        return await self.webhook(project_id, webhook_id)

    async def rotate_webhook(self, project_id: str, webhook_id: str, grace: timedelta) -> Endpoint | None:
        """Another secret; the one before is signed with too until `grace` is over."""
        expires = self.time + grace.total_seconds()
        values = {"secret": new_secret(), "previous_secret": t.webhook_endpoints.c.secret, "previous_expires_at": expires}
        return await self.update_webhook(project_id, webhook_id, **values)

    async def _change(self, project_id: str, webhook_id: str, **values: Any) -> bool:
        query = sa.update(t.webhook_endpoints).where(*_live(project_id, webhook_id)).values(**values).returning(t.webhook_endpoints.c.id)
        return (await self.connection.execute(query)).scalar() is not None

    async def insert_test_delivery(self, endpoint: Endpoint, type: str) -> Delivery:
        """An event for this endpoint alone."""
        [delivery_id] = await _insert(self.connection, self.time, endpoint.project_id, type, endpoint.id, [endpoint.id])
        return await self._delivery(delivery_id)

    async def delivery(self, delivery: Delivery) -> Delivery:
        """As it is now."""
        return await self._delivery(delivery.id)

    async def _delivery(self, delivery_id: str) -> Delivery:
        query = sa.select(t.webhook_deliveries).where(t.webhook_deliveries.c.id == delivery_id)
        return _delivery((await self.connection.execute(query)).mappings().one())

    async def list_deliveries(self, endpoint: Endpoint, *, after: str | None, limit: int) -> Page[Delivery]:
        """What was, or will be, sent to the endpoint, newest first. Raises ValueError when `after` is none of it."""
        c = t.webhook_deliveries.c
        cursor = sa.select(c.n).where(c.id == after, c.endpoint_id == endpoint.id) if after else None
        query = sa.select(t.webhook_deliveries).where(c.endpoint_id == endpoint.id)
        return await page(self.connection, query, c.n, cursor, limit, _delivery)

    async def deliveries_due(self) -> bool:
        """Whether anything could be claimed."""
        return (await self.connection.execute(_due(self.time).limit(1))).first() is not None

    async def claim_deliveries(self, limit: int, hold: timedelta) -> list[tuple[Delivery, Endpoint]]:
        """Deliveries that are due, held for the caller for that long: another gateway leaves them alone. Fresh ones come first."""
        c = t.webhook_deliveries.c
        due = _due(self.time).order_by(c.attempts, c.due_at).limit(limit)
        if self.connection.dialect.name == "postgresql":
            due = due.with_for_update(skip_locked=True)
        claim = sa.update(t.webhook_deliveries).where(c.n.in_(due)).values(claimed_until=self.time + hold.total_seconds()).returning(c.n)
        numbers = list((await self.connection.execute(claim)).scalars())
        deliveries = [
            _delivery(row) for row in (await self.connection.execute(sa.select(t.webhook_deliveries).where(c.n.in_(numbers)))).mappings()
        ]
        e = t.webhook_endpoints.c
        rows = await self.connection.execute(sa.select(t.webhook_endpoints).where(e.id.in_({one.endpoint_id for one in deliveries})))
        endpoints = {row["id"]: _endpoint(row) for row in rows.mappings()}
        return [(one, endpoints[one.endpoint_id]) for one in deliveries]

    async def settle_delivery(self, delivery: Delivery, attempt: Attempt, jitter: float) -> Delivery:
        """Write how an attempt went, and when the next one is due unless it was the last."""
        attempts = delivery.attempts + 1
        due = None if attempt.delivered else next_attempt(attempts, self.time, jitter)
        status = "delivered" if attempt.delivered else "pending" if due is not None else "failed"
        c = t.webhook_deliveries.c
        query = (
            sa.update(t.webhook_deliveries)
            .where(c.id == delivery.id)
            .values(attempts=attempts, status=status, due_at=due, claimed_until=0.0, attempted_at=self.time)
            .values(response_status=attempt.response_status, error=attempt.error)
            .returning(*c)
        )
        return _delivery((await self.connection.execute(query)).mappings().one())

    async def forget_deliveries(self, older_than: timedelta) -> int:
        """Remove settled deliveries of that age from the log; how many."""
        c = t.webhook_deliveries.c
        old = sa.delete(t.webhook_deliveries).where(c.due_at.is_(None), c.created_at < self.time - older_than.total_seconds())
        return len((await self.connection.execute(old.returning(c.n))).all())


def _due(time: float) -> sa.Select[tuple[int]]:
    c = t.webhook_deliveries.c
    return sa.select(c.n).where(c.due_at <= time, c.claimed_until < time)


def _live(project_id: str, webhook_id: str) -> tuple[sa.ColumnElement[bool], ...]:
    c = t.webhook_endpoints.c
    return (c.id == webhook_id, c.project_id == project_id, c.deleted_at.is_(None))


def _endpoint(row: sa.RowMapping) -> Endpoint:
    values: dict[str, Any] = {name: row[name] for name in Endpoint.__dataclass_fields__}
    values["events"] = tuple(row["events"])
    return Endpoint(**values)


def _delivery(row: sa.RowMapping) -> Delivery:
    values: dict[str, Any] = {name: row[name] for name in Delivery.__dataclass_fields__}
    return Delivery(**values)
