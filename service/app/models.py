"""Models: the base models that jobs can start from, and what finished jobs made."""

from __future__ import annotations

import asyncio

from service.app.context import Context, available, found, require
from service.errors import ErrorCode, TunesmithError, invalid, not_found
from service.jobs import CHECKPOINT_MARK, FINAL
from service.records import Caller, Model
from service.store import Transaction
from trainers import manifest
from trainers.spec import published_prefix


class ModelUses(Context):
    """What a caller can do with models."""

    async def list_models(self, caller: Caller) -> list[Model]:
        """Base models that jobs can start from, the project's tuned models, and what other projects share with it."""
        require(caller, "read")
        base = await self._base_models()
        async with self.reading() as tx:
            return base + await tx.tuned_models(caller.project_id) + await tx.shared_models(caller.project_id)

    async def get_model(self, caller: Caller, model: str) -> Model:
        """One model by its name; checkpoints are found by theirs while their bytes are there."""
        require(caller, "read")
        for base in await self._base_models():
            if base.id == model:
                return base
        async with self.reading() as tx:
            tuned = found(await tx.model_named(caller.project_id, model), "model", model, param="model")
        async with available():
            if CHECKPOINT_MARK in model and await asyncio.to_thread(self.storage.head, f"{tuned.prefix}/{manifest.MANIFEST}") is None:
                raise not_found("model", model, param="model")
        return tuned

    async def delete_model(self, caller: Caller, model: str) -> None:
        """Delete a tuned model or a checkpoint, its artifacts and its permissions; its job stays known."""
        require(caller, "write")
        async with available():
            if any(base.id == model for base in await self._base_models()):
                raise TunesmithError(
                    ErrorCode.PERMISSION_DENIED, f"'{model}' is a base model; only tuned models can be deleted.", param="model"
                )
            async with self.store.begin() as tx:
                tuned = found(await tx.model_named(caller.project_id, model), "model", model, param="model")
                await _require_deletable(tx, caller, tuned)
                prefixes = await tx.forget_model(tuned)
                await tx.audit(caller, "model.deleted", model)
            if CHECKPOINT_MARK not in model:
                prefixes.append(published_prefix(tuned.job_id or ""))
            for prefix in prefixes:
                await asyncio.to_thread(manifest.remove, self.storage, prefix)

    async def _base_models(self) -> list[Model]:
        def installed() -> list[Model]:
            refs = [self.catalogue.installed(self.storage, entry) for entry in self.catalogue.entries()]
            return [Model(id=ref.id, created_at=0.0, owned_by="tunesmith", base=ref) for ref in refs if ref is not None]

        async with available():
            return await asyncio.to_thread(installed)


async def _require_deletable(tx: Transaction, caller: Caller, model: Model) -> None:
    if model.project_id != caller.project_id:
        message = f"'{model.id}' belongs to another project, which shares it; only that project can delete it."
        raise TunesmithError(ErrorCode.PERMISSION_DENIED, message, param="model")
    job = await tx.job(caller.project_id, model.job_id or "")
    if job is not None and job.status not in FINAL:
        raise invalid(f"The job is {job.status} and may go on from this checkpoint; cancel it or let it end first.", "model")
