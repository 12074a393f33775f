"""The audit log in SQL: rows are added and read. No statement changes or deletes one, and a trigger refuses any that would."""

from __future__ import annotations

import secrets
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from service.records import AuditFilter, AuditLog, Caller, Page
from service.store import tables as t
from service.store.paging import page


class AuditStatements:
    """Mixed into `Transaction`."""

    connection: AsyncConnection
    time: float

    async def audit(
        self, caller: Caller, type: str, object_id: str, details: dict[str, Any] | None = None, *, project_id: str | None = None
    ) -> None:
        """Log a change in the transaction that makes it, e.g. `await tx.audit(caller, "job.created", job.id)`.

        `details` must hold no secret. The change is in the caller's project unless `project_id` names another of the organization.
        """
        values = {
            "id": f"audit_log-{secrets.token_hex(12)}",
            "organization_id": caller.organization_id,
            "project_id": project_id or caller.project_id or None,
            "key_id": caller.key_id or None,
            "type": type,
            "object_id": object_id,
            "request_id": caller.request_id,
            "effective_at": self.time,
            "details": details or {},
        }
        await self.connection.execute(sa.insert(t.audit_logs).values(values))

    async def list_audit_logs(self, organization_id: str, wanted: AuditFilter, *, after: str | None, limit: int) -> Page[AuditLog]:
        """Newest first. Raises ValueError when `after` is no log of the organization."""
        c = t.audit_logs.c
        query = (
            sa.select(t.audit_logs, t.projects.c.name.label("project_name"))
            .join(t.projects, t.projects.c.id == c.project_id, isouter=True)
            .where(c.organization_id == organization_id, *_conditions(wanted))
        )
        cursor = sa.select(c.n).where(c.id == after, c.organization_id == organization_id) if after else None
        return await page(self.connection, query, c.n, cursor, limit, _audit_log)


def _conditions(wanted: AuditFilter) -> list[sa.ColumnElement[bool]]:
    c = t.audit_logs.c
    sets = ((c.type, wanted.types), (c.project_id, wanted.project_ids), (c.key_id, wanted.key_ids), (c.object_id, wanted.object_ids))
    bounds = (
        (wanted.at_least, c.effective_at.__ge__),
        (wanted.above, c.effective_at.__gt__),
        (wanted.at_most, c.effective_at.__le__),
        (wanted.below, c.effective_at.__lt__),
    )
    return [column.in_(values) for column, values in sets if values] + [bound(time) for time, bound in bounds if time is not None]


def _audit_log(row: sa.RowMapping) -> AuditLog:
    return AuditLog(**{name: row[name] for name in AuditLog.__dataclass_fields__})
