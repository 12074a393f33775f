"""Models: the base models that jobs can start from, and what finished jobs made."""

from __future__ import annotations

import asyncio

from service.app.context import Context, available, found, require
from service.errors import ErrorCode, TunesmithError
from service.records import Caller, Model
from trainers import manifest
from trainers.spec import published_prefix


class ModelUses(Context):
    """What a caller can do with models."""

    async def list_models(self, caller: Caller) -> list[Model]:
        """Base models that jobs can start from, and the project's tuned models."""
        require(caller, "read")
        base = await self._base_models()
        async with self.reading() as tx:
            return base + await tx.tuned_models(caller.project_id)

    async def get_model(self, caller: Caller, model: str) -> Model:
        """One model by its name."""
        require(caller, "read")
        for base in await self._base_models():
            if base.id == model:
                return base
        async with self.reading() as tx:
            tuned = await tx.tuned_models(caller.project_id, model)
        return found(tuned[0] if tuned else None, "model", model, param="model")

    async def delete_model(self, caller: Caller, model: str) -> None:
        """Delete a tuned model and its artifacts; its job stays known."""
        require(caller, "write")
        async with available():
            if any(base.id == model for base in await self._base_models()):
                raise TunesmithError(
                    ErrorCode.PERMISSION_DENIED, f"'{model}' is a base model; only tuned models can be deleted.", param="model"
                )
            async with self.store.begin() as tx:
                job_id = found(await tx.delete_tuned_model(caller.project_id, model), "model", model, param="model")
                await tx.audit(caller, "model.deleted", model)
            await asyncio.to_thread(manifest.remove, self.storage, f"{published_prefix(job_id)}/")

    async def _base_models(self) -> list[Model]:
        def installed() -> list[Model]:
            refs = [self.catalogue.installed(self.storage, entry) for entry in self.catalogue.entries()]
            return [Model(id=ref.id, created_at=0.0, owned_by="tunesmith", base=ref) for ref in refs if ref is not None]

        async with available():
            return await asyncio.to_thread(installed)
