"""Artifacts: the published files of a succeeded job."""

from __future__ import annotations

import asyncio
import json

from service.app.context import Context, available, found, require
from service.errors import invalid, not_found
from service.jobs import JobStatus
from service.records import Artifact, Caller, Content
from trainers.spec import model_prefix


class ArtifactUses(Context):
    """What a caller can do with artifacts."""

    async def list_artifacts(self, caller: Caller, job_id: str) -> list[Artifact]:
        """The published files of a succeeded job, by name."""
        return (await self._published(caller, job_id))[1]

    async def _published(self, caller: Caller, job_id: str) -> tuple[str, list[Artifact]]:
        """The storage prefix of a succeeded job's artifacts, and what lies there."""
        require(caller, "read")
        async with self.reading() as tx:
            job = await self.the_job(tx, caller, job_id)
            if job.status is not JobStatus.SUCCEEDED:
                raise invalid(f"The job has no artifacts: it is {job.status}. They are published when it succeeds.", "fine_tuning_job_id")
            if await tx.model_is_deleted(job_id):
                raise not_found("model", job.tuned_model or job_id)
        async with available():
            prefix = model_prefix(job_id, job.epoch)
            listed = json.loads(await asyncio.to_thread(self.storage.get, f"{prefix}/manifest.json"))
        artifacts = [Artifact(entry["name"], entry["bytes"], entry["sha256"]) for entry in listed["files"]]
        return prefix, sorted(artifacts, key=lambda artifact: artifact.name)

    async def artifact_content(self, caller: Caller, job_id: str, name: str) -> Content:
        """The bytes of one artifact."""
        prefix, artifacts = await self._published(caller, job_id)
        artifact = found(next((a for a in artifacts if a.name == name), None), "artifact", name)
        return await self.content(f"{prefix}/{name}", name.rpartition("/")[2], artifact.bytes, artifact.sha256)
