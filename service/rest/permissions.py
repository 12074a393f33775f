"""/v1/fine_tuning/checkpoints/{name}/permissions: let other projects use a model. Names hold `/` and `:`, hence `:path`."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request

from service.rest import convert, wire
from service.rest.bodies import read_json, validated
from service.rest.dependencies import After, AppDep, CallerDep, CheckpointName, PermissionId
from service.rest.documents import json_body

router = APIRouter(prefix="/v1/fine_tuning/checkpoints/{fine_tuned_model_checkpoint:path}/permissions", tags=["Permissions"])


@router.post("", response_model=wire.PermissionList, openapi_extra=json_body(wire.CreatePermissionsRequest))
async def create_permissions(request: Request, app: AppDep, caller: CallerDep, name: CheckpointName) -> wire.PermissionList:
    """Let projects of the organization use a tuned model or a checkpoint: all of them, or none when one is unknown.

    They see it among their models and can download its files. Needs an admin key of the project that owns the model.
    A project that may use it already keeps the permission that it has.
    """
    body = validated(wire.CreatePermissionsRequest, await read_json(request))
    return convert.permission_list(await app.create_permissions(caller, name, body.project_ids), has_more=False)


@router.get("", response_model=wire.PermissionList)
async def list_permissions(
    app: AppDep,
    caller: CallerDep,
    name: CheckpointName,
    project_id: Annotated[str | None, Query(pattern=r"^[A-Za-z0-9_-]{1,128}$", description="Only this project's permission.")] = None,
    after: After = None,
    limit: Annotated[int, Query(ge=1, le=1000, description="Permissions of one page.")] = 10,
    order: Annotated[Literal["ascending", "descending"], Query(description="By age; descending begins with the newest.")] = "descending",
) -> wire.PermissionList:
    """Who else may use a model. Needs an admin key of the project that owns it."""
    page = await app.list_permissions(caller, name, project_id=project_id, after=after, limit=limit, ascending=order == "ascending")
    return convert.permission_list(page.items, has_more=page.has_more)


@router.delete("/{permission_id}", response_model=wire.PermissionDeleted)
async def delete_permission(app: AppDep, caller: CallerDep, name: CheckpointName, permission_id: PermissionId) -> wire.PermissionDeleted:
    """Take a permission away. It ends at once. Needs an admin key of the project that owns the model."""
    await app.delete_permission(caller, name, permission_id)
    return wire.PermissionDeleted(id=permission_id)
