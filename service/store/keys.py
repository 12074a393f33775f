"""API keys in SQL. A revoked key's row stays, so that its id is never given again."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from service.records import ApiKey, Page
from service.store import tables as t
from service.store.paging import page_by_age


class KeyStatements:
    """Mixed into `Transaction`."""

    connection: AsyncConnection
    time: float

    async def insert_key(
        self, key_id: str, project_id: str, name: str, secret_sha256: str, scopes: Iterable[str], expires_at: float | None = None
    ) -> None:
        """A new key of a project; the secret itself is never stored."""
        values = {
            "id": key_id,
            "project_id": project_id,
            "name": name,
            "secret_sha256": secret_sha256,
            "scopes": sorted(scopes),
            "created_at": self.time,
            "expires_at": expires_at,
        }
        await self.connection.execute(sa.insert(t.api_keys).values(values))

    async def key(self, key_id: str) -> sa.RowMapping | None:
        """A key in whatever state, with what its project says of it. Read for each request: a revocation holds at once."""
        project = t.projects.c
        query = (
            sa.select(t.api_keys, project.organization_id, project.archived_at, project.quotas)
            .join(t.projects)
            .where(t.api_keys.c.id == key_id)
        )
        return (await self.connection.execute(query)).mappings().first()

    async def api_key(self, project_id: str, key_id: str, *, lock: bool = False) -> ApiKey | None:
        """A key of the project that was not revoked; `lock` holds the row until the transaction ends."""
        c = t.api_keys.c
        query = sa.select(t.api_keys).where(c.id == key_id, c.project_id == project_id, c.revoked_at.is_(None))
        row = (await self.connection.execute(query.with_for_update() if lock else query)).mappings().first()
        return _api_key(row) if row else None

    async def list_keys(self, project_id: str, *, after: str | None, limit: int) -> Page[ApiKey]:
        """Keys that were not revoked, newest first. Raises ValueError when `after` is no key of the project."""
        c = t.api_keys.c
        return await page_by_age(self.connection, t.api_keys, c.project_id == project_id, [c.revoked_at.is_(None)], after, limit, _api_key)

    async def update_key(self, key: ApiKey) -> None:
        """Write the key's name, scopes and expiry."""
        values = {"name": key.name, "scopes": sorted(key.scopes), "expires_at": key.expires_at}
        await self.connection.execute(sa.update(t.api_keys).where(t.api_keys.c.id == key.id).values(values))

    async def rotate_key(self, key_id: str, secret_sha256: str, previous_expires_at: float) -> None:
        """Give the key another secret; the one it has is good until then."""
        c = t.api_keys.c
        values: dict[str, Any] = {"secret_sha256": secret_sha256, "previous_expires_at": previous_expires_at}
        query = sa.update(t.api_keys).where(c.id == key_id).values(values | {"previous_sha256": c.secret_sha256})
        await self.connection.execute(query)

    async def revoke_key(self, key_id: str) -> None:
        """The key is good for nothing from now on."""
        await self.connection.execute(sa.update(t.api_keys).where(t.api_keys.c.id == key_id).values(revoked_at=self.time))

    async def mark_used(self, key_ids: Iterable[str]) -> None:
        """These keys have been used just now."""
        await self.connection.execute(sa.update(t.api_keys).where(t.api_keys.c.id.in_(list(key_ids))).values(last_used_at=self.time))


def _api_key(row: sa.RowMapping) -> ApiKey:
    names = ("id", "project_id", "name", "created_at", "expires_at", "last_used_at", "previous_expires_at")
    return ApiKey(**{name: row[name] for name in names}, scopes=frozenset(row["scopes"]))
