"""/v1/fine_tuning/jobs/{id}/artifacts: the published files of a succeeded job. Ours; OpenAI has no such thing."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse

from service.rest import convert, wire
from service.rest.content import content_response
from service.rest.dependencies import AppDep, ArtifactName, CallerDep, JobId
from service.rest.documents import BYTES

router = APIRouter(prefix="/v1/fine_tuning/jobs/{fine_tuning_job_id}/artifacts", tags=["Artifacts"])


@router.get("", response_model=wire.ArtifactList)
async def list_artifacts(app: AppDep, caller: CallerDep, job_id: JobId) -> wire.ArtifactList:
    """Name, size and SHA-256 of each published file; an adapter's are below `adapter/`, a whole model's below `model/`."""
    artifacts = await app.list_artifacts(caller, job_id)
    return wire.ArtifactList(data=[convert.artifact_object(artifact) for artifact in artifacts], has_more=False)


@router.head("/{name:path}", include_in_schema=False)
@router.get("/{name:path}", response_class=StreamingResponse, responses=BYTES)
async def get_artifact(request: Request, app: AppDep, caller: CallerDep, job_id: JobId, name: ArtifactName) -> Response:
    """The bytes of one artifact, whole or the range asked for. Where the store can serve them itself, a redirect to it."""
    return await content_response(request, await app.artifact_content(caller, job_id, name))
