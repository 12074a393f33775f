"""Permissions: let other projects of the organization use a tuned model or a checkpoint."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from service.app.context import Context, available, found, require
from service.errors import ErrorCode, TunesmithError, invalid, not_found
from service.records import Caller, Model, Page, Permission
from service.store import Transaction
from trainers.manifest import MANIFEST

PARAM = "fine_tuned_model_checkpoint"


class PermissionUses(Context):
    """What an administrator of a project can do with permissions on its models."""

    async def create_permissions(self, caller: Caller, model: str, project_ids: Sequence[str]) -> list[Permission]:
        """Let these projects of the organization use the model, all of them or none; one that may already keeps its permission."""
        require(caller, "admin")
        wanted = list(dict.fromkeys(project_ids))
        async with available():
            async with self.store.read() as tx:
                prefix = (await _own_model(tx, caller, model)).prefix
            if await asyncio.to_thread(self.storage.head, f"{prefix}/{MANIFEST}") is None:
                raise not_found("model", model, PARAM)
            async with self.store.begin() as tx:
                await _own_model(tx, caller, model)
                known = await tx.projects_of(caller.organization_id, wanted)
                for project_id in wanted:
                    if project_id not in known:
                        raise invalid(f"No such project: '{project_id}'", "project_ids", "project_not_found")
                await tx.audit(caller, "checkpoint.permission.created", model, {"project_ids": wanted})
                return await tx.put_permissions(model, wanted)

    async def list_permissions(
        self, caller: Caller, model: str, *, project_id: str | None, after: str | None, limit: int, ascending: bool
    ) -> Page[Permission]:
        """Who else may use the model, by age."""
        require(caller, "admin")
        async with self.reading() as tx:
            await _own_model(tx, caller, model)
            return await tx.list_permissions(model, project_id=project_id, after=after, limit=limit, ascending=ascending)

    async def delete_permission(self, caller: Caller, model: str, permission_id: str) -> None:
        """Take a permission away; it no longer counts when this returns."""
        require(caller, "admin")
        async with available(), self.store.begin() as tx:
            await _own_model(tx, caller, model)
            if not await tx.delete_permission(model, permission_id):
                raise not_found("permission", permission_id, "permission_id")
            await tx.audit(caller, "checkpoint.permission.deleted", permission_id, {"model": model})


async def _own_model(tx: Transaction, caller: Caller, name: str) -> Model:
    """The caller's own model; one that is only shared with them is not theirs to share."""
    model = found(await tx.model_named(caller.project_id, name), "model", name, PARAM)
    if model.project_id != caller.project_id:
        raise TunesmithError(ErrorCode.PERMISSION_DENIED, f"'{name}' belongs to another project, which alone can share it.", param=PARAM)
    return model
