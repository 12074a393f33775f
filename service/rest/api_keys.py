"""/v1/organization/projects/{project_id}/api_keys: list, look up, change and delete as OpenAI has them; create and rotate are ours."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated

from fastapi import APIRouter, Query, Request

from service.rest import convert_organization as convert
from service.rest import wire
from service.rest.bodies import read_json, validated
from service.rest.dependencies import After, ApiKeyId, AppDep, CallerDep, ProjectId
from service.rest.documents import json_body

router = APIRouter(prefix="/v1/organization/projects/{project_id}/api_keys", tags=["API keys"])


@router.post("", response_model=wire.NewApiKeyObject, openapi_extra=json_body(wire.CreateApiKeyRequest))
async def create_api_key(request: Request, app: AppDep, caller: CallerDep, project_id: ProjectId) -> wire.NewApiKeyObject:
    """Create an API key. `value` is the key; it is shown this once."""
    body = validated(wire.CreateApiKeyRequest, await read_json(request))
    key, value = await app.create_key(
        caller, project_id, name=body.name, scopes=frozenset(body.scopes), life=_duration(body.expires_in_seconds)
    )
    return convert.new_api_key_object(key, value)


@router.get("", response_model=wire.ApiKeyList)
async def list_api_keys(
    app: AppDep,
    caller: CallerDep,
    project_id: ProjectId,
    after: After = None,
    limit: Annotated[int, Query(ge=1, le=100, description="Keys of one page.")] = 20,
) -> wire.ApiKeyList:
    """The project's API keys, newest first, expired ones too."""
    return convert.api_key_list(await app.list_keys(caller, project_id, after=after, limit=limit))


@router.get("/{api_key_id}", response_model=wire.ApiKeyObject)
async def get_api_key(app: AppDep, caller: CallerDep, project_id: ProjectId, key_id: ApiKeyId) -> wire.ApiKeyObject:
    """One API key."""
    return convert.api_key_object(await app.get_key(caller, project_id, key_id))


@router.post("/{api_key_id}", response_model=wire.ApiKeyObject, openapi_extra=json_body(wire.UpdateApiKeyRequest))
async def update_api_key(request: Request, app: AppDep, caller: CallerDep, project_id: ProjectId, key_id: ApiKeyId) -> wire.ApiKeyObject:
    """Change a key's name, scopes or expiry; what is not named stays as it is."""
    body = validated(wire.UpdateApiKeyRequest, await read_json(request))
    scopes = frozenset(body.scopes) if body.scopes else None
    life = _duration(body.expires_in_seconds)
    return convert.api_key_object(await app.update_key(caller, project_id, key_id, name=body.name, scopes=scopes, life=life))


@router.post("/{api_key_id}/rotate", response_model=wire.NewApiKeyObject, openapi_extra=json_body(wire.RotateApiKeyRequest, required=False))
async def rotate_api_key(request: Request, app: AppDep, caller: CallerDep, project_id: ProjectId, key_id: ApiKeyId) -> wire.NewApiKeyObject:
    """Give a key another secret under the same id. `value` is the new key; the old one is good for `grace_seconds` more."""
    body = validated(wire.RotateApiKeyRequest, await read_json(request) if await request.body() else {})
    key, value = await app.rotate_key(caller, project_id, key_id, grace=timedelta(seconds=body.grace_seconds))
    return convert.new_api_key_object(key, value)


@router.delete("/{api_key_id}", response_model=wire.ApiKeyDeleted)
async def delete_api_key(app: AppDep, caller: CallerDep, project_id: ProjectId, key_id: ApiKeyId) -> wire.ApiKeyDeleted:
    """Revoke an API key. The next request with it is refused."""
    await app.revoke_key(caller, project_id, key_id)
    return wire.ApiKeyDeleted(id=key_id)


def _duration(seconds: int | None) -> timedelta | None:
    return None if seconds is None else timedelta(seconds=seconds)
