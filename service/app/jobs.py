"""Jobs: create, list, look up, cancel, events, checkpoints."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from dataclasses import replace
from datetime import timedelta

from service.app.context import MAX_TRIES, Context, available, require
from service.errors import ErrorCode, TunesmithError, invalid
from service.jobs import FINAL, Event, Job, JobSpec, JobStatus, Notice, advance
from service.records import Caller, Checkpoint, Page
from service.store import Stale, Transaction
from trainers import registry
from trainers.spec import BaseModelRef

RETRY_WINDOW = timedelta(minutes=10)
"""The official client repeats a post without a key within this time; a job of the same content is then its twin."""


class JobUses(Context):
    """What a caller can do with jobs."""

    async def create_job(self, caller: Caller, spec: JobSpec, *, idempotency_key: str | None, retried: bool) -> Job:
        """Accept a job. It is durable when this returns.

        Posting again under the same key gives the job that is there; so does a client's own retry
        (`retried`) of the same content within RETRY_WINDOW.
        """
        require(caller, "write")
        fingerprint = hashlib.sha256(spec.model_dump_json().encode()).hexdigest()
        async with available():
            base_model = await self._base_model(spec)
            async with self.store.begin() as tx:
                project = await self.locked_project(tx, caller)
                known = await self._known_submission(tx, caller, idempotency_key, fingerprint, retried)
                if known is not None:
                    return known
                await check_files(tx, caller, spec)
                await self.check_new_job(tx, project, spec)
                job = _new_job(caller, spec, base_model)
                if idempotency_key is not None and not await tx.insert_submission(caller.project_id, idempotency_key, fingerprint, job.id):
                    raise TunesmithError(ErrorCode.CONFLICT, "A request with this Idempotency-Key is in flight; ask again.")
                job = await tx.insert_job(job, fingerprint, [Notice(f"Created fine-tuning job: {job.id}")])
                await tx.audit(caller, "job.created", job.id, {"model": spec.model, "method": spec.method.type})
        self.wake()
        return job

    async def list_jobs(self, caller: Caller, *, after: str | None, limit: int, metadata: dict[str, str]) -> Page[Job]:
        """The project's jobs, newest first; only those whose metadata holds all of `metadata`."""
        require(caller, "read")
        async with self.reading() as tx:
            return await tx.list_jobs(caller.project_id, after=after, limit=limit, metadata=metadata)

    async def get_job(self, caller: Caller, job_id: str) -> Job:
        """One job."""
        require(caller, "read")
        async with self.reading() as tx:
            return await self.the_job(tx, caller, job_id)

    async def cancel_job(self, caller: Caller, job_id: str) -> Job:
        """Stop a job: at once when nothing of it runs, else CANCELLING until its processes are gone."""
        require(caller, "write")
        async with available():
            for _ in range(MAX_TRIES):
                try:
                    job = await self._try_cancel(caller, job_id)
                except Stale:
                    continue
                self.wake()
                return job
        raise TunesmithError(ErrorCode.UNAVAILABLE, "The job is changing just now.", retry_after=timedelta(seconds=1))

    async def list_events(self, caller: Caller, job_id: str, *, after: str | None, limit: int, ascending: bool = False) -> Page[Event]:
        """The job's history by age, newest first unless `ascending`."""
        require(caller, "read")
        async with self.reading() as tx:
            await self.the_job(tx, caller, job_id)
            return await tx.list_events(job_id, after=after, limit=limit, ascending=ascending)

    async def list_checkpoints(self, caller: Caller, job_id: str, *, after: str | None, limit: int) -> Page[Checkpoint]:
        """The job's checkpoints, newest step first."""
        require(caller, "read")
        async with self.reading() as tx:
            await self.the_job(tx, caller, job_id)
            return await tx.list_checkpoints(job_id, after=after, limit=limit)

    async def _try_cancel(self, caller: Caller, job_id: str) -> Job:
        async with self.store.begin() as tx:
            job = await self.the_job(tx, caller, job_id, lock=True)
            if job.status is JobStatus.CANCELLING:
                return job
            if job.status in FINAL:
                raise invalid(f"The job is {job.status} already and can no longer be cancelled.", "fine_tuning_job_id")
            await tx.audit(caller, "job.cancelled", job_id)
            if job.status in (JobStatus.VALIDATING, JobStatus.QUEUED, JobStatus.PAUSED):
                cancelled = advance(job, JobStatus.CANCELLED, finished_at=tx.time, reason="", lease_owner=None)
                return await tx.apply(job, cancelled, [Notice("The job has been cancelled")])
            cancelling = advance(job, JobStatus.CANCELLING, reason="waiting for the run's processes to end")
            return await tx.apply(job, cancelling, [Notice("Cancelling the job: waiting for its processes to end")])

    async def _known_submission(self, tx: Transaction, caller: Caller, key: str | None, fingerprint: str, retried: bool) -> Job | None:
        job_id: str | None = None
        if key is not None:
            submission = await tx.submission(caller.project_id, key)
            if submission is not None and submission[0] != fingerprint:
                raise invalid("This Idempotency-Key was used with another request body; take a new key.", "Idempotency-Key")
            job_id = submission[1] if submission else None
        elif retried:
            job_id = await tx.recent_twin(caller.project_id, fingerprint, RETRY_WINDOW)
        return await tx.job(caller.project_id, job_id) if job_id else None

    async def _base_model(self, spec: JobSpec) -> BaseModelRef:
        entry = self.catalogue.find(spec.model)
        if entry is None:
            known = ", ".join(sorted(self.catalogue.ids()))
            raise invalid(f"The model '{spec.model}' is not in the catalogue. It has: {known}.", "model", "model_not_found")
        ref = await asyncio.to_thread(self.catalogue.installed, self.storage, entry)
        if ref is None:
            raise invalid(
                f"The model '{spec.model}' has not been pulled yet: run `tunesmith models pull {spec.model}`.", "model", "model_not_found"
            )
        await asyncio.to_thread(self.catalogue.check_targets, self.storage, ref, spec.tunesmith.adapter)
        await asyncio.to_thread(self.catalogue.check_length, self.storage, ref, spec.tunesmith.training.max_length)
        return ref


async def check_files(tx: Transaction, caller: Caller, spec: JobSpec) -> None:
    """Raise INVALID_REQUEST unless the method is known and the job's files are the caller's and can be trained on."""
    if spec.method.type not in registry.METHODS:
        raise invalid(f"Unknown method '{spec.method.type}'. Known: {', '.join(sorted(registry.METHODS))}.", "method.type")
    for param, file_id in (("training_file", spec.training_file), ("validation_file", spec.validation_file)):
        if file_id is None:
            continue
        # Locked: a file that is deleted meanwhile is either refused here, or was there when the job was accepted.
        file = await tx.file(caller.project_id, file_id, lock=True)
        if file is None:
            raise invalid(f"No such file: '{file_id}'", param, f"invalid_{param}")
        if file.purpose != "fine-tune":
            raise invalid(f"'{file_id}' has the purpose '{file.purpose}'; upload it with purpose 'fine-tune'.", param, f"invalid_{param}")


def _new_job(caller: Caller, spec: JobSpec, base_model: BaseModelRef) -> Job:
    job = Job(
        id=f"ftjob-{secrets.token_hex(12)}",
        project_id=caller.project_id,
        organization_id=caller.organization_id,
        spec=spec if spec.seed is not None else spec.model_copy(update={"seed": secrets.randbelow(2**31)}),
        status=JobStatus.VALIDATING,
        version=1,
        created_at=0.0,
        base_model=base_model,
    )
    return replace(job, reason="waiting for the data check")
