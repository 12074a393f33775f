"""Projects and API keys in SQL."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from service.store import tables as t


class KeyStatements:
    """Mixed into `Transaction`."""

    connection: AsyncConnection
    time: float

    async def insert_project(self, project_id: str, organization_id: str, name: str) -> None:
        """A new project."""
        values = {"id": project_id, "organization_id": organization_id, "name": name, "created_at": self.time}
        await self.connection.execute(sa.insert(t.projects).values(values))

    async def first_project(self) -> str | None:
        """Id of the oldest project, None in a new database."""
        query = sa.select(t.projects.c.id).order_by(t.projects.c.created_at).limit(1)
        return (await self.connection.execute(query)).scalar()

    async def insert_key(self, key_id: str, project_id: str, name: str, secret_sha256: str, scopes: list[str]) -> None:
        """A new key of a project; the secret itself is never stored."""
        values = {
            "id": key_id,
            "project_id": project_id,
            "name": name,
            "secret_sha256": secret_sha256,
            "scopes": scopes,
            "created_at": self.time,
        }
        await self.connection.execute(sa.insert(t.api_keys).values(values))

    async def key(self, key_id: str) -> sa.RowMapping | None:
        """A key that is neither revoked nor expired, with its organization."""
        key, project = t.api_keys.c, t.projects.c
        query: sa.Select[Any] = (
            sa.select(t.api_keys, project.organization_id)
            .join(t.projects)
            .where(key.id == key_id, key.revoked_at.is_(None), sa.or_(key.expires_at.is_(None), key.expires_at > self.time))
        )
        return (await self.connection.execute(query)).mappings().first()
