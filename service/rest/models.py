"""/v1/models: base models that jobs can start from, and tuned models. Names hold `/` and `:`, hence `:path`."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse

from service.rest import convert, wire
from service.rest.content import content_response
from service.rest.dependencies import AppDep, ArtifactName, CallerDep, ModelId
from service.rest.documents import BYTES

router = APIRouter(prefix="/v1/models", tags=["Models"])


@router.get("", response_model=wire.ModelList)
async def list_models(app: AppDep, caller: CallerDep) -> wire.ModelList:
    """Every base model that is ready, the project's tuned models, and those that other projects share with it."""
    return wire.ModelList(data=[convert.model_object(model) for model in await app.list_models(caller)])


# The routes on files come first: `/{model:path}` would take them for models whose names end so.
@router.get("/{model:path}/artifacts", response_model=wire.ArtifactList, tags=["Artifacts"])
async def list_model_artifacts(app: AppDep, caller: CallerDep, model: ModelId) -> wire.ArtifactList:
    """Name, size and SHA-256 of each file of a tuned model; of a checkpoint, those of its adapter."""
    artifacts = await app.list_model_artifacts(caller, model)
    return wire.ArtifactList(data=[convert.artifact_object(artifact) for artifact in artifacts], has_more=False)


@router.head("/{model:path}/artifacts/{name:path}", include_in_schema=False)
@router.get("/{model:path}/artifacts/{name:path}", response_class=StreamingResponse, responses=BYTES, tags=["Artifacts"])
async def get_model_artifact(request: Request, app: AppDep, caller: CallerDep, model: ModelId, name: ArtifactName) -> Response:
    """The bytes of one file of a model, whole or the range asked for. A model of one's own may be served by a redirect to the store."""
    return await content_response(request, await app.model_artifact_content(caller, model, name))


@router.get("/{model:path}", response_model=wire.ModelObject)
async def get_model(app: AppDep, caller: CallerDep, model: ModelId) -> wire.ModelObject:
    """One model; a checkpoint is found under its name too."""
    return convert.model_object(await app.get_model(caller, model))


@router.delete("/{model:path}", response_model=wire.ModelDeleted)
async def delete_model(app: AppDep, caller: CallerDep, model: ModelId) -> wire.ModelDeleted:
    """Delete a tuned model or a checkpoint with its artifacts and permissions; its job stays known."""
    await app.delete_model(caller, model)
    return wire.ModelDeleted(id=model)
