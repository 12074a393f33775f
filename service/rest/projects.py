"""/v1/organization/projects: create, list, look up, change, archive. Needs an admin key; sees its own organization only."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request

from service.app import App
from service.records import Project
from service.rest import convert_organization as convert
from service.rest import wire
from service.rest.bodies import read_json, validated
from service.rest.dependencies import After, AppDep, CallerDep, ProjectId
from service.rest.documents import json_body
from service.rest.values import ends

router = APIRouter(prefix="/v1/organization/projects", tags=["Projects"])


@router.post("", response_model=wire.ProjectObject, openapi_extra=json_body(wire.CreateProjectRequest))
async def create_project(request: Request, app: AppDep, caller: CallerDep) -> wire.ProjectObject:
    """Create a project. It has no keys yet."""
    body = validated(wire.CreateProjectRequest, await read_json(request))
    return _object(app, await app.create_project(caller, body.name, body.tunesmith.quotas))


@router.get("", response_model=wire.ProjectList)
async def list_projects(
    app: AppDep,
    caller: CallerDep,
    after: After = None,
    limit: Annotated[int, Query(ge=1, le=100, description="Projects of one page.")] = 20,
    include_archived: Annotated[bool, Query(description="Archived projects too.")] = False,
) -> wire.ProjectList:
    """The organization's projects, newest first."""
    page = await app.list_projects(caller, after=after, limit=limit, archived=include_archived)
    return wire.ProjectList(data=[_object(app, project) for project in page.items], has_more=page.has_more, **ends(page.items))


@router.get("/{project_id}", response_model=wire.ProjectObject)
async def get_project(app: AppDep, caller: CallerDep, project_id: ProjectId) -> wire.ProjectObject:
    """One project, its quotas and what it uses of them."""
    project, usage = await app.get_project(caller, project_id)
    return convert.project_object(project, app.quotas(project), usage)


@router.post("/{project_id}", response_model=wire.ProjectObject, openapi_extra=json_body(wire.UpdateProjectRequest))
async def update_project(request: Request, app: AppDep, caller: CallerDep, project_id: ProjectId) -> wire.ProjectObject:
    """Change a project's name and quotas. What is not named stays as it is; a quota that is null takes the service's default again."""
    body = validated(wire.UpdateProjectRequest, await read_json(request))
    quotas = body.tunesmith.quotas.model_dump(exclude_unset=True)
    return _object(app, await app.update_project(caller, project_id, name=body.name, quotas=quotas))


@router.post("/{project_id}/archive", response_model=wire.ProjectObject)
async def archive_project(app: AppDep, caller: CallerDep, project_id: ProjectId) -> wire.ProjectObject:
    """Archive a project whose jobs have ended. Its keys are refused from then on; there is no way back."""
    return _object(app, await app.archive_project(caller, project_id))


def _object(app: App, project: Project) -> wire.ProjectObject:
    return convert.project_object(project, app.quotas(project))
