"""Artifacts: the published files of a succeeded job, and those of a model under whichever name the caller knows it by."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace

from service.app.context import Context, available, found, require
from service.errors import invalid, not_found
from service.jobs import CHECKPOINT_MARK, JobStatus
from service.records import Artifact, Caller, Content, Model
from trainers.manifest import MANIFEST
from trainers.spec import model_prefix


class ArtifactUses(Context):
    """What a caller can do with artifacts."""

    async def list_artifacts(self, caller: Caller, job_id: str) -> list[Artifact]:
        """The published files of a succeeded job, by name."""
        return await self._listed(await self._published(caller, job_id))

    async def artifact_content(self, caller: Caller, job_id: str, name: str) -> Content:
        """The bytes of one artifact."""
        prefix = await self._published(caller, job_id)
        return await self._file(prefix, name, await self._listed(prefix))

    async def list_model_artifacts(self, caller: Caller, model: str) -> list[Artifact]:
        """The files of a tuned model, or a checkpoint's adapter, by name; also of one that another project shares."""
        return await self._files_of(await self._usable_model(caller, model))

    async def model_artifact_content(self, caller: Caller, model: str, name: str) -> Content:
        """The bytes of one file of a model."""
        usable = await self._usable_model(caller, model)
        content = await self._file(usable.prefix or "", name, await self._files_of(usable))
        # A presigned address would go on serving after the permission was taken away.
        return content if usable.project_id == caller.project_id else replace(content, url=None)

    async def _published(self, caller: Caller, job_id: str) -> str:
        """The storage prefix of a succeeded job's artifacts."""
        require(caller, "read")
        async with self.reading() as tx:
            job = await self.the_job(tx, caller, job_id)
            if job.status is not JobStatus.SUCCEEDED:
                raise invalid(f"The job has no artifacts: it is {job.status}. They are published when it succeeds.", "fine_tuning_job_id")
            if await tx.model_is_deleted(job_id):
                raise not_found("model", job.tuned_model or job_id)
        return model_prefix(job_id, job.epoch)

    async def _usable_model(self, caller: Caller, name: str) -> Model:
        """A model that has files and that the caller may use."""
        require(caller, "read")
        if self.catalogue.find(name) is not None:
            raise invalid(f"'{name}' is a base model; only tuned models and checkpoints have artifacts.", "model")
        async with self.reading() as tx:
            return found(await tx.model_named(caller.project_id, name), "model", name, "model")

    async def _files_of(self, model: Model) -> list[Artifact]:
        """What is beside a checkpoint's adapter or model is for resuming alone."""
        listed = await self._listed(model.prefix or "")
        return [artifact for artifact in listed if CHECKPOINT_MARK not in model.id or artifact.name.startswith(("adapter/", "model/"))]

    async def _listed(self, prefix: str) -> list[Artifact]:
        async with available():
            listed = json.loads(await asyncio.to_thread(self.storage.get, f"{prefix}/{MANIFEST}"))
        artifacts = [Artifact(entry["name"], entry["bytes"], entry["sha256"]) for entry in listed["files"]]
        return sorted(artifacts, key=lambda artifact: artifact.name)

    async def _file(self, prefix: str, name: str, artifacts: list[Artifact]) -> Content:
        artifact = found(next((a for a in artifacts if a.name == name), None), "artifact", name)
        return await self.content(f"{prefix}/{name}", name.rpartition("/")[2], artifact.bytes, artifact.sha256)
