"""The audit log of the caller's organization. Written by `Transaction.audit` in the transaction of each change."""

from __future__ import annotations

from service.app.context import Context, require
from service.records import AuditFilter, AuditLog, Caller, Page


class AuditUses(Context):
    """What an admin key can do with the audit log: read it."""

    async def list_audit_logs(self, caller: Caller, wanted: AuditFilter, *, after: str | None, limit: int) -> Page[AuditLog]:
        """The organization's log, newest first."""
        require(caller, "admin")
        async with self.reading() as tx:
            return await tx.list_audit_logs(caller.organization_id, wanted, after=after, limit=limit)
