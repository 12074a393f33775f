"""/v1/organization/audit_logs: who changed what, and when. Needs an admin key."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import Field, StringConstraints

from service.records import AuditFilter
from service.rest import convert_organization as convert
from service.rest import wire
from service.rest.dependencies import After, AppDep, CallerDep

router = APIRouter(prefix="/v1/organization", tags=["Audit log"])
Words = Annotated[list[Annotated[str, StringConstraints(pattern=r"^[\x21-\x7e]{1,512}$")]], Field(max_length=100)] | None
Moment = Annotated[int, Field(ge=0, le=10**12)] | None


@router.get("/audit_logs", response_model=wire.AuditLogList)
async def list_audit_logs(
    app: AppDep,
    caller: CallerDep,
    after: After = None,
    limit: Annotated[int, Query(ge=1, le=100, description="Logs of one page.")] = 20,
    types: Annotated[Words, Query(alias="event_types[]", description="Only these types, e.g. api_key.created.")] = None,
    projects: Annotated[Words, Query(alias="project_ids[]", description="Only changes in these projects.")] = None,
    actors: Annotated[Words, Query(alias="actor_ids[]", description="Only changes made with these keys.")] = None,
    resources: Annotated[Words, Query(alias="resource_ids[]", description="Only changes of these objects.")] = None,
    at_least: Annotated[Moment, Query(alias="effective_at[gte]", description="Not before this time, seconds since 1970.")] = None,
    above: Annotated[Moment, Query(alias="effective_at[gt]", description="After this time.")] = None,
    at_most: Annotated[Moment, Query(alias="effective_at[lte]", description="Not after this time.")] = None,
    below: Annotated[Moment, Query(alias="effective_at[lt]", description="Before this time.")] = None,
) -> wire.AuditLogList:
    """The organization's audit log, newest first. Filters of different kinds must all hold."""
    sets = (tuple(words or ()) for words in (types, projects, actors, resources))
    wanted = AuditFilter(*sets, at_least=at_least, above=above, at_most=at_most, below=below)
    return convert.audit_log_list(await app.list_audit_logs(caller, wanted, after=after, limit=limit))
