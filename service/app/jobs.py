"""Jobs: create, list, look up, cancel, pause, resume, events, checkpoints."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta

from service import objects
from service.app.context import MAX_TRIES, Context, available, require, settled
from service.errors import ErrorCode, TunesmithError, invalid
from service.jobs import FINAL, Event, Job, JobSpec, JobStatus, Notice, advance
from service.records import Caller, Checkpoint, Page
from service.store import Stale, Transaction
from trainers import registry
from trainers.spec import BaseModelRef
from trainers.storage import StorageError

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
        if spec.integrations and not self.settings.wandb_enabled:
            raise invalid(
                "Weights & Biases is not set up here: leave 'integrations' out, or have the operator install `wandb` and set "
                "WANDB_API_KEY on the nodes, and TUNESMITH_WANDB_ENABLED at the gateway.",
                "integrations",
            )
        async with available():
            base_model = await self._base_model(spec)
            check_resources(spec)
            job = await settled(lambda: self._accepted(caller, spec, base_model, idempotency_key, retried))
        self.wake()
        return job

    async def _accepted(self, caller: Caller, spec: JobSpec, base_model: BaseModelRef, key: str | None, retried: bool) -> Job:
        """The new job, or the one that this submission made before."""
        fingerprint = hashlib.sha256(spec.model_dump_json().encode()).hexdigest()
        async with self.store.begin() as tx:
            project = await self.locked_project(tx, caller)
            job = _new_job(caller, self.with_priority(project, spec), base_model)
            known = await _known_submission(tx, job, key, fingerprint, retried)
            if known is not None:
                return known
            await check_files(tx, caller, spec)
            await self.check_new_job(tx, project, spec)
            job = await tx.insert_job(job, fingerprint, [Notice(f"Created fine-tuning job: {job.id}")])
            await tx.audit(caller, "job.created", job.id, {"model": spec.model, "method": spec.method.type})
            return job

    async def list_jobs(self, caller: Caller, *, after: str | None, limit: int, metadata: dict[str, str] | None) -> Page[Job]:
        """The project's jobs, newest first; only those whose metadata holds all of `metadata`, or that have none when it is None."""
        require(caller, "read")
        async with self.reading() as tx:
            page = await tx.list_jobs(caller.project_id, after=after, limit=limit, metadata=metadata)
            return Page(await tx.detailed(page.items), page.has_more)

    async def get_job(self, caller: Caller, job_id: str) -> Job:
        """One job, with the last log lines of its attempts that failed."""
        require(caller, "read")
        async with self.reading() as tx:
            [job] = await tx.detailed([await self.the_job(tx, caller, job_id)], log_tails=True)
            return job

    async def cancel_job(self, caller: Caller, job_id: str) -> Job:
        """Stop a job: at once when nothing of it runs, else CANCELLING until its processes are gone."""
        job = await self._change(caller, job_id, _cancelled, "job.cancelled")
        if job.status is JobStatus.CANCELLED and job.epoch > 0:
            with suppress(StorageError):  # it is cancelled, whether or not the store answers
                await asyncio.to_thread(objects.discard_job, self.storage, job.id)
        return job

    async def pause_job(self, caller: Caller, job_id: str) -> Job:
        """Set a job aside: at once while it is queued, else PAUSING until its run has left; without effect on a paused job.

        Refused while the files are checked, which holds no device, and once the job is being cancelled or has ended.
        """
        return await self._change(caller, job_id, _paused, "job.paused")

    async def resume_job(self, caller: Caller, job_id: str) -> Job:
        """Put a paused job back in the queue, from where it goes on at its last checkpoint; refused in every other state."""
        return await self._change(caller, job_id, _resumed, "job.resumed")

    async def _change(self, caller: Caller, job_id: str, change: Callable[[Transaction, Job], Awaitable[Job]], audited: str) -> Job:
        """What `change` makes of the caller's job, tried again when somebody else changed the job in between."""
        require(caller, "write")

        async def changed_once() -> Job:
            async with self.store.begin() as tx:
                before = await self.the_job(tx, caller, job_id, lock=True)
                changed = await change(tx, before)
                if changed is not before:
                    await tx.audit(caller, audited, job_id)
                [job] = await tx.detailed([changed])
                return job

        async with available():
            for _ in range(MAX_TRIES):
                with suppress(Stale):
                    job = await settled(changed_once)
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


async def _known_submission(tx: Transaction, job: Job, key: str | None, fingerprint: str, retried: bool) -> Job | None:
    """The job that was accepted for this submission before, None for a new one, which is `job`'s from here on.

    Both ways wait for a request of the same submission that is in flight, at whichever gateway, and so see what came of it.
    """
    job_id: str | None = None
    if key is not None:
        if not await tx.insert_submission(job.project_id, key, fingerprint, job.id):
            first_fingerprint, job_id = await tx.submission(job.project_id, key)
            if first_fingerprint != fingerprint:
                raise invalid("This Idempotency-Key was used with another request body; take a new key.", "Idempotency-Key")
    else:
        await tx.lock_content(job.project_id, fingerprint)
        job_id = await tx.recent_twin(job.project_id, fingerprint, RETRY_WINDOW) if retried else None
    return await tx.job(job.project_id, job_id) if job_id else None


async def _cancelled(tx: Transaction, job: Job) -> Job:
    if job.status is JobStatus.CANCELLING:
        return job
    if job.status in FINAL:
        raise invalid(f"The job is {job.status} already and can no longer be cancelled.", "fine_tuning_job_id")
    if job.status in (JobStatus.VALIDATING, JobStatus.QUEUED, JobStatus.PAUSED):
        await tx.forget_checkpoints(job.id)
        cancelled = advance(job, JobStatus.CANCELLED, finished_at=tx.time, reason="", lease_owner=None)
        return await tx.apply(job, cancelled, [Notice("The job has been cancelled")])
    cancelling = advance(job, JobStatus.CANCELLING, reason="waiting for the run's processes to end")
    return await tx.apply(job, cancelling, [Notice("Cancelling the job: waiting for its processes to end")])


async def _paused(tx: Transaction, job: Job) -> Job:
    if job.status in (JobStatus.PAUSING, JobStatus.PAUSED):
        return job
    if job.status is JobStatus.VALIDATING:
        raise invalid("The job's files are still being checked. Pause it once it is queued, or cancel it.", "fine_tuning_job_id")
    if job.status is JobStatus.QUEUED:
        paused = advance(job, JobStatus.PAUSED, reason="paused while it was queued")
        return await tx.apply(job, paused, [Notice("The job has been paused")])
    if job.status not in (JobStatus.STARTING, JobStatus.RUNNING):
        raise invalid(f"The job is {job.status} and can no longer be paused.", "fine_tuning_job_id")
    pausing = advance(job, JobStatus.PAUSING, reason="waiting for the run to write a checkpoint and leave")
    return await tx.apply(job, pausing, [Notice("Pausing the job: waiting for its run to write a checkpoint and leave")])


async def _resumed(tx: Transaction, job: Job) -> Job:
    if job.status is JobStatus.PAUSING:
        raise invalid("The job is still being paused. Resume it once its status is paused.", "fine_tuning_job_id")
    if job.status is not JobStatus.PAUSED:
        raise invalid(f"The job is {job.status}; only a paused job can be resumed.", "fine_tuning_job_id")
    queued = advance(job, JobStatus.QUEUED, queued_at=tx.time, not_before=0.0, reason="waiting for its workers")
    return await tx.apply(job, queued, [Notice("The job has been resumed")])


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


def check_resources(spec: JobSpec) -> None:
    """Raises INVALID for resources that no run can be had with."""
    if why := spec.tunesmith.resources.refusal:
        raise invalid(why, "tunesmith.resources")


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
