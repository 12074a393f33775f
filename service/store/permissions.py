"""Tuned models and checkpoints by their names, and which other projects may use them, in SQL."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from service.jobs import CHECKPOINT_MARK
from service.records import Model, Page, Permission
from service.store import tables as t
from service.store.paging import page
from trainers.spec import model_prefix

Named = Callable[[sa.ColumnElement[str]], sa.ColumnElement[bool]]
"""Which names are meant, as a condition on the column that holds them."""


class PermissionStatements:
    """Mixed into `Transaction`."""

    connection: AsyncConnection
    time: float

    async def model_named(self, project_id: str, name: str) -> Model | None:
        """The tuned model or checkpoint of that name, if it is the project's or the project has a permission."""
        p = t.checkpoint_permissions.c
        found = await self._models(lambda column: column == name)
        permitted = sa.select(p.id).where(p.model == name, p.project_id == project_id)
        if found and (found[0].project_id == project_id or (await self.connection.execute(permitted)).first() is not None):
            return found[0]
        return None

    async def shared_models(self, project_id: str) -> list[Model]:
        """What other projects let this one use, newest first."""
        p = t.checkpoint_permissions.c
        names = sa.select(p.model).where(p.project_id == project_id)
        found = [model for model in await self._models(lambda column: column.in_(names)) if model.project_id != project_id]
        return sorted(found, key=lambda model: -model.created_at)

    async def _models(self, named: Named) -> list[Model]:
        m, c, j = t.tuned_models.c, t.checkpoints.c, t.jobs.c
        tuned = (
            sa.select(m.id, m.created_at, m.job_id, j.project_id, j.organization_id, j.epoch)
            .join(t.jobs, j.id == m.job_id)
            .where(named(m.id), m.deleted_at.is_(None))
        )
        checkpoints = (
            sa.select(c.model_name.label("id"), c.created_at, c.job_id, j.project_id, j.organization_id, c.prefix)
            .join(t.jobs, j.id == c.job_id)
            .where(named(c.model_name), c.model_name.contains(CHECKPOINT_MARK))
        )
        rows = [row for query in (tuned, checkpoints) for row in (await self.connection.execute(query)).mappings()]
        return [_model(row) for row in rows]

    async def projects_of(self, organization_id: str, project_ids: Iterable[str]) -> set[str]:
        """Those of the ids that are projects of the organization."""
        c = t.projects.c
        query = sa.select(c.id).where(c.organization_id == organization_id, c.id.in_(list(project_ids)))
        return set((await self.connection.execute(query)).scalars())

    async def put_permissions(self, model: str, project_ids: Sequence[str]) -> list[Permission]:
        """A permission for each of these projects, in their order; one that is there already stays what it is."""
        insert = sqlite.insert if self.connection.dialect.name == "sqlite" else postgresql.insert
        rows = [
            {"id": f"cp_{secrets.token_hex(12)}", "model": model, "project_id": project_id, "created_at": self.time}
            for project_id in project_ids
        ]
        await self.connection.execute(insert(t.checkpoint_permissions).values(rows).on_conflict_do_nothing())
        c = t.checkpoint_permissions.c
        query = sa.select(t.checkpoint_permissions).where(c.model == model, c.project_id.in_(list(project_ids)))
        found = {row["project_id"]: _permission(row) for row in (await self.connection.execute(query)).mappings()}
        return [found[project_id] for project_id in project_ids]

    async def list_permissions(
        self, model: str, *, project_id: str | None, after: str | None, limit: int, ascending: bool
    ) -> Page[Permission]:
        """By age; the caller has checked whose model it is. Raises ValueError when `after` is no permission of the model."""
        c = t.checkpoint_permissions.c
        query = sa.select(t.checkpoint_permissions).where(c.model == model)
        if project_id is not None:
            query = query.where(c.project_id == project_id)
        cursor = sa.select(c.n).where(c.id == after, c.model == model) if after else None
        return await page(self.connection, query, c.n, cursor, limit, _permission, ascending=ascending)

    async def delete_permission(self, model: str, permission_id: str) -> bool:
        """Take a permission away; False when the model has none of that id."""
        c = t.checkpoint_permissions.c
        query = sa.delete(t.checkpoint_permissions).where(c.id == permission_id, c.model == model).returning(c.id)
        return (await self.connection.execute(query)).first() is not None

    async def forget_model(self, model: Model) -> list[str]:
        """Take a model's name and its permissions away; the prefixes of the checkpoints that bore the name."""
        p, m, c = t.checkpoint_permissions.c, t.tuned_models.c, t.checkpoints.c
        await self.connection.execute(sa.delete(t.checkpoint_permissions).where(p.model == model.id))
        named = (m.id == model.id, m.job_id == model.job_id, m.deleted_at.is_(None))
        await self.connection.execute(sa.update(t.tuned_models).where(*named).values(deleted_at=self.time))
        bearing = sa.delete(t.checkpoints).where(c.job_id == model.job_id, c.model_name == model.id).returning(c.prefix)
        return list((await self.connection.execute(bearing)).scalars())


def _model(row: sa.RowMapping) -> Model:
    return Model(
        id=row["id"],
        created_at=row["created_at"],
        owned_by=row["organization_id"],
        job_id=row["job_id"],
        project_id=row["project_id"],
        prefix=row["prefix"] if "prefix" in row else model_prefix(row["job_id"], row["epoch"]),
    )


def _permission(row: sa.RowMapping | dict[str, Any]) -> Permission:
    return Permission(row["id"], row["project_id"], row["created_at"])
