"""/v1/models: base models that jobs can start from, and tuned models. Names hold `/` and `:`, hence `:path`."""

from __future__ import annotations

from fastapi import APIRouter

from service.rest import convert, wire
from service.rest.dependencies import AppDep, CallerDep, ModelId

router = APIRouter(prefix="/v1/models", tags=["Models"])


@router.get("", response_model=wire.ModelList)
async def list_models(app: AppDep, caller: CallerDep) -> wire.ModelList:
    """Every base model that is ready, and the project's tuned models."""
    return wire.ModelList(data=[convert.model_object(model) for model in await app.list_models(caller)])


@router.get("/{model:path}", response_model=wire.ModelObject)
async def get_model(app: AppDep, caller: CallerDep, model: ModelId) -> wire.ModelObject:
    """One model."""
    return convert.model_object(await app.get_model(caller, model))


@router.delete("/{model:path}", response_model=wire.ModelDeleted)
async def delete_model(app: AppDep, caller: CallerDep, model: ModelId) -> wire.ModelDeleted:
    """Delete a tuned model and its artifacts; its job stays known."""
    await app.delete_model(caller, model)
    return wire.ModelDeleted(id=model)
