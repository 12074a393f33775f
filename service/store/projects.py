"""Organizations and projects in SQL. Every read of a caller names the organization it is for."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from service.quotas import Quotas
from service.records import Organization, Page, Project
from service.store import tables as t
from service.store.paging import page_by_age


class ProjectStatements:
    """Mixed into `Transaction`."""

    connection: AsyncConnection
    time: float

    async def insert_organization(self, organization_id: str, name: str) -> None:
        """A new organization."""
        await self.connection.execute(sa.insert(t.organizations).values(id=organization_id, name=name, created_at=self.time))

    async def organizations(self) -> list[Organization]:
        """All of them, oldest first: for the operator, never for a caller."""
        rows = (await self.connection.execute(sa.select(t.organizations).order_by(t.organizations.c.created_at))).mappings()
        return [Organization(**row) for row in rows]

    async def insert_project(self, project_id: str, organization_id: str, name: str, quotas: Quotas | None = None) -> None:
        """A new project."""
        values = {"id": project_id, "organization_id": organization_id, "name": name, "created_at": self.time}
        await self.connection.execute(sa.insert(t.projects).values(values | {"quotas": _stored(quotas or Quotas())}))

    async def first_project(self, organization_id: str | None = None) -> Project | None:
        """The oldest project that is not archived, of the organization or of all; None where there is none."""
        c = t.projects.c
        query = sa.select(t.projects).where(c.archived_at.is_(None)).order_by(c.created_at).limit(1)
        if organization_id is not None:
            query = query.where(c.organization_id == organization_id)
        row = (await self.connection.execute(query)).mappings().first()
        return _project(row) if row else None

    async def project(self, organization_id: str, project_id: str, *, lock: bool = False) -> Project | None:
        """A project of the organization; `lock` makes others that lock it wait until the transaction ends."""
        query = sa.select(t.projects).where(t.projects.c.id == project_id, t.projects.c.organization_id == organization_id)
        row = (await self.connection.execute(query.with_for_update() if lock else query)).mappings().first()
        return _project(row) if row else None

    async def list_projects(self, organization_id: str, *, after: str | None, limit: int, archived: bool) -> Page[Project]:
        """Newest first. Raises ValueError when `after` is no project of the organization."""
        c = t.projects.c
        also = [] if archived else [c.archived_at.is_(None)]
        return await page_by_age(self.connection, t.projects, c.organization_id == organization_id, also, after, limit, _project)

    async def update_project(self, project: Project) -> None:
        """Write the project's name, quotas and the time it was archived."""
        values = {"name": project.name, "archived_at": project.archived_at, "quotas": _stored(project.quotas)}
        await self.connection.execute(sa.update(t.projects).where(t.projects.c.id == project.id).values(values))

    async def quotas_of(self, project_ids: Iterable[str]) -> dict[str, Quotas]:
        """Each project's own quotas, for the scheduler."""
        c = t.projects.c
        rows = await self.connection.execute(sa.select(c.id, c.quotas).where(c.id.in_(set(project_ids))))
        return {project_id: Quotas.stored(quotas) for project_id, quotas in rows}


def _stored(quotas: Quotas) -> dict[str, Any]:
    return quotas.model_dump(exclude_none=True)


def _project(row: sa.RowMapping) -> Project:
    values: dict[str, Any] = dict(row) | {"quotas": Quotas.stored(row["quotas"])}
    return Project(**values)
