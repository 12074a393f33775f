"""The application layer: one method per use case. Knows permissions and rules, no transport and no SQL.

REST and gRPC call these methods and nothing else. Every method raises `TunesmithError` for what a
caller did wrong, and UNAVAILABLE when a part behind it is away.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import secrets
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

from protos.tunesmith.v1 import runs_pb2
from service import objects, tenancy
from service.catalogue import Catalogue
from service.errors import ErrorCode, TunesmithError, invalid, not_found
from service.jobs import FINAL, Event, Job, JobSpec, JobStatus, Notice, advance
from service.records import Artifact, Caller, Checkpoint, Content, File, Model, Page, Scope
from service.reports import RunReports
from service.runtime import Runtime, RuntimeUnavailable
from service.store import Stale, Store, StoreUnavailable, Transaction
from trainers import manifest, registry
from trainers.spec import BaseModelRef, model_prefix, published_prefix
from trainers.storage import NoSuchObject, Storage, StorageDenied, StorageFull, StorageUnavailable

T = TypeVar("T")
RETRY_WINDOW = timedelta(minutes=10)
"""The official client repeats a post without a key within this time; a job of the same content is then its twin."""
MAX_TRIES = 5
"""How often a change is tried again when somebody else changed the job in between."""
DOWNLOAD_LIFE = timedelta(minutes=15)
"""How long a presigned address serves."""


class App:
    """What Tunesmith can do for a caller."""

    def __init__(
        self, store: Store, storage: Storage, catalogue: Catalogue, runtime: Runtime, reports: RunReports, wake: Callable[[], None]
    ) -> None:
        self._store, self._storage, self._catalogue, self._runtime = store, storage, catalogue, runtime
        self._reports = reports
        self._wake = wake

    async def authenticate(self, bearer: str) -> Caller:
        """Who holds this key."""
        async with _available():
            return await tenancy.authenticate(self._store, bearer)

    # Files

    async def create_file(self, caller: Caller, *, path: Path, filename: str, purpose: str) -> File:
        """Keep the bytes at `path`, which the caller of this method owns and removes."""
        _require(caller, "write")
        async with _available():
            file_id = f"file-{secrets.token_hex(12)}"
            key = objects.file_key(caller.project_id, file_id)
            stored = await asyncio.to_thread(objects.keep_file, self._storage, key, path)
            file = File(file_id, caller.project_id, filename, purpose, stored.bytes, stored.sha256, key, 0.0)
            async with self._store.begin() as tx:
                await tx.insert_file(file)
                return _found(await tx.file(caller.project_id, file_id), "file", file_id)

    async def list_files(self, caller: Caller, *, purpose: str | None, after: str | None, limit: int, ascending: bool) -> Page[File]:
        """The project's files by age."""
        _require(caller, "read")
        async with self._reading() as tx:
            return await tx.list_files(caller.project_id, purpose=purpose, after=after, limit=limit, ascending=ascending)

    async def get_file(self, caller: Caller, file_id: str) -> File:
        """One file's facts."""
        _require(caller, "read")
        async with self._reading() as tx:
            return _found(await tx.file(caller.project_id, file_id), "file", file_id)

    async def file_content(self, caller: Caller, file_id: str) -> Content:
        """One file's bytes."""
        file = await self.get_file(caller, file_id)
        return await self._content(file.key, file.filename, file.bytes, file.sha256)

    async def delete_file(self, caller: Caller, file_id: str) -> None:
        """Forget a file; a job that was validated no longer needs it."""
        _require(caller, "write")
        async with _available():
            async with self._store.begin() as tx:
                key = _found(await tx.delete_file(caller.project_id, file_id), "file", file_id)
            if key.startswith("files/"):  # a result file's bytes are also an artifact of its job
                await asyncio.to_thread(self._storage.delete, key)

    # Jobs

    async def create_job(self, caller: Caller, spec: JobSpec, *, idempotency_key: str | None, retried: bool) -> Job:
        """Accept a job. It is durable when this returns.

        Posting again under the same key gives the job that is there; so does a client's own retry
        (`retried`) of the same content within RETRY_WINDOW.
        """
        _require(caller, "write")
        fingerprint = hashlib.sha256(spec.model_dump_json().encode()).hexdigest()
        async with _available():
            base_model = await self._base_model(spec)
            async with self._store.begin() as tx:
                known = await self._known_submission(tx, caller, idempotency_key, fingerprint, retried)
                if known is not None:
                    return known
                await _check_files(tx, caller, spec)
                job = _new_job(caller, spec, base_model)
                if idempotency_key is not None and not await tx.insert_submission(caller.project_id, idempotency_key, fingerprint, job.id):
                    raise TunesmithError(ErrorCode.CONFLICT, "A request with this Idempotency-Key is in flight; ask again.")
                job = await tx.insert_job(job, fingerprint, [Notice(f"Created fine-tuning job: {job.id}")])
        self._wake()
        return job

    async def list_jobs(self, caller: Caller, *, after: str | None, limit: int, metadata: dict[str, str]) -> Page[Job]:
        """The project's jobs, newest first; only those whose metadata holds all of `metadata`."""
        _require(caller, "read")
        async with self._reading() as tx:
            return await tx.list_jobs(caller.project_id, after=after, limit=limit, metadata=metadata)

    async def get_job(self, caller: Caller, job_id: str) -> Job:
        """One job."""
        _require(caller, "read")
        async with self._reading() as tx:
            return await self._job(tx, caller, job_id)

    async def cancel_job(self, caller: Caller, job_id: str) -> Job:
        """Stop a job: at once when nothing of it runs, else CANCELLING until its processes are gone."""
        _require(caller, "write")
        async with _available():
            for _ in range(MAX_TRIES):
                try:
                    job = await self._try_cancel(caller, job_id)
                except Stale:
                    continue
                self._wake()
                return job
        raise TunesmithError(ErrorCode.UNAVAILABLE, "The job is changing just now.", retry_after=timedelta(seconds=1))

    async def list_events(self, caller: Caller, job_id: str, *, after: str | None, limit: int, ascending: bool = False) -> Page[Event]:
        """The job's history by age, newest first unless `ascending`."""
        _require(caller, "read")
        async with self._reading() as tx:
            await self._job(tx, caller, job_id)
            return await tx.list_events(job_id, after=after, limit=limit, ascending=ascending)

    async def list_checkpoints(self, caller: Caller, job_id: str, *, after: str | None, limit: int) -> Page[Checkpoint]:
        """The job's checkpoints, newest step first."""
        _require(caller, "read")
        async with self._reading() as tx:
            await self._job(tx, caller, job_id)
            return await tx.list_checkpoints(job_id, after=after, limit=limit)

    async def list_artifacts(self, caller: Caller, job_id: str) -> list[Artifact]:
        """The published files of a succeeded job, by name."""
        return (await self._published(caller, job_id))[1]

    async def _published(self, caller: Caller, job_id: str) -> tuple[str, list[Artifact]]:
        """The storage prefix of a succeeded job's artifacts, and what lies there."""
        _require(caller, "read")
        async with self._reading() as tx:
            job = await self._job(tx, caller, job_id)
            if job.status is not JobStatus.SUCCEEDED:
                raise invalid(f"The job has no artifacts: it is {job.status}. They are published when it succeeds.", "fine_tuning_job_id")
            if await tx.model_is_deleted(job_id):
                raise not_found("model", job.tuned_model or job_id)
        async with _available():
            prefix = model_prefix(job_id, job.epoch)
            listed = json.loads(await asyncio.to_thread(self._storage.get, f"{prefix}/manifest.json"))
        artifacts = [Artifact(entry["name"], entry["bytes"], entry["sha256"]) for entry in listed["files"]]
        return prefix, sorted(artifacts, key=lambda artifact: artifact.name)

    async def artifact_content(self, caller: Caller, job_id: str, name: str) -> Content:
        """The bytes of one artifact."""
        prefix, artifacts = await self._published(caller, job_id)
        artifact = _found(next((a for a in artifacts if a.name == name), None), "artifact", name)
        return await self._content(f"{prefix}/{name}", name.rpartition("/")[2], artifact.bytes, artifact.sha256)

    # Models

    async def list_models(self, caller: Caller) -> list[Model]:
        """Base models that jobs can start from, and the project's tuned models."""
        _require(caller, "read")
        base = await self._base_models()
        async with self._reading() as tx:
            return base + await tx.tuned_models(caller.project_id)

    async def get_model(self, caller: Caller, model: str) -> Model:
        """One model by its name."""
        _require(caller, "read")
        for base in await self._base_models():
            if base.id == model:
                return base
        async with self._reading() as tx:
            tuned = await tx.tuned_models(caller.project_id, model)
        return _found(tuned[0] if tuned else None, "model", model, param="model")

    async def delete_model(self, caller: Caller, model: str) -> None:
        """Delete a tuned model and its artifacts; its job stays known."""
        _require(caller, "write")
        async with _available():
            if any(base.id == model for base in await self._base_models()):
                raise TunesmithError(
                    ErrorCode.PERMISSION_DENIED, f"'{model}' is a base model; only tuned models can be deleted.", param="model"
                )
            async with self._store.begin() as tx:
                job_id = _found(await tx.delete_tuned_model(caller.project_id, model), "model", model, param="model")
            await asyncio.to_thread(manifest.remove, self._storage, f"{published_prefix(job_id)}/")

    # Operation

    async def ready(self) -> dict[str, str]:
        """Each part ("store", "objects", "runtime") and "ok", or what is wrong with it."""

        async def objects_answer() -> None:
            await asyncio.to_thread(self._storage.head, "base/probe")

        async def runtime_answers() -> None:
            await self._runtime.capacity()

        checks = {"store": self._store.ping, "objects": objects_answer, "runtime": runtime_answers}
        answers = await asyncio.gather(*(asyncio.wait_for(check(), 10) for check in checks.values()), return_exceptions=True)
        return {
            name: "ok" if not isinstance(a, BaseException) else f"{type(a).__name__}: {a}" for name, a in zip(checks, answers, strict=True)
        }

    async def report(self, bearer: str, request: runs_pb2.ReportRequest) -> runs_pb2.ReportResponse:
        """A run tells what happened and asks what to do; see reports.py."""
        async with _available():
            for _ in range(MAX_TRIES):
                try:
                    return await self._reports.take(bearer, request)
                except Stale:
                    continue
        raise TunesmithError(ErrorCode.UNAVAILABLE, "The job is changing just now.", retry_after=timedelta(seconds=1))

    # Inner parts

    @asynccontextmanager
    async def _reading(self) -> AsyncGenerator[Transaction]:
        async with _available():
            try:
                async with self._store.read() as tx:
                    yield tx
            except ValueError as error:
                if error.args != ("after",):
                    raise
                raise invalid("'after' names nothing in this list; pass the id of the last item you have.", "after") from error

    async def _job(self, tx: Transaction, caller: Caller, job_id: str, *, lock: bool = False) -> Job:
        return _found(await tx.job(caller.project_id, job_id, lock=lock), "fine-tuning job", job_id, param="fine_tuning_job_id")

    async def _try_cancel(self, caller: Caller, job_id: str) -> Job:
        async with self._store.begin() as tx:
            job = await self._job(tx, caller, job_id, lock=True)
            if job.status is JobStatus.CANCELLING:
                return job
            if job.status in FINAL:
                raise invalid(f"The job is {job.status} already and can no longer be cancelled.", "fine_tuning_job_id")
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
        entry = self._catalogue.find(spec.model)
        if entry is None:
            known = ", ".join(sorted(self._catalogue.ids()))
            raise invalid(f"The model '{spec.model}' is not in the catalogue. It has: {known}.", "model", "model_not_found")
        ref = await asyncio.to_thread(self._catalogue.installed, self._storage, entry)
        if ref is None:
            raise invalid(
                f"The model '{spec.model}' has not been pulled yet: run `tunesmith models pull {spec.model}`.", "model", "model_not_found"
            )
        await asyncio.to_thread(self._catalogue.check_targets, self._storage, ref, spec.tunesmith.adapter)
        await asyncio.to_thread(self._catalogue.check_length, self._storage, ref, spec.tunesmith.training.max_length)
        return ref

    async def _base_models(self) -> list[Model]:
        def installed() -> list[Model]:
            refs = [self._catalogue.installed(self._storage, entry) for entry in self._catalogue.entries()]
            return [Model(id=ref.id, created_at=0.0, owned_by="tunesmith", base=ref) for ref in refs if ref is not None]

        async with _available():
            return await asyncio.to_thread(installed)

    async def _content(self, key: str, filename: str, size: int, sha256: str) -> Content:
        def read(start: int, end: int) -> Iterator[bytes]:
            return self._storage.read(key, start, end)

        async with _available():
            url = await asyncio.to_thread(self._storage.presigned_url, key, expires=DOWNLOAD_LIFE, filename=filename)
        return Content(filename, size, sha256, read, url)


@asynccontextmanager
async def _available() -> AsyncGenerator[None]:
    """Turns the absence of a part behind into an error that the client may answer by asking again."""
    soon = timedelta(seconds=5)
    try:
        yield
    except (StoreUnavailable, StorageUnavailable, RuntimeUnavailable) as error:
        raise TunesmithError(ErrorCode.UNAVAILABLE, "A part of the service is away; ask again.", retry_after=soon) from error
    except StorageFull as error:
        raise TunesmithError(ErrorCode.STORAGE_FULL, "The object store is full.") from error
    except StorageDenied as error:
        raise TunesmithError(ErrorCode.UNAVAILABLE, "The object store refuses the service's credentials.", retry_after=soon) from error
    except NoSuchObject as error:
        raise TunesmithError(ErrorCode.NOT_FOUND, "The bytes are no longer in the object store.") from error


def _require(caller: Caller, scope: Scope) -> None:
    if scope not in caller.scopes:
        raise TunesmithError(ErrorCode.PERMISSION_DENIED, f"This API key lacks the scope '{scope}'.")


def _found(value: T | None, kind: str, name: str, param: str | None = None) -> T:
    if value is None:
        raise not_found(kind, name, param)
    return value


async def _check_files(tx: Transaction, caller: Caller, spec: JobSpec) -> None:
    if spec.method.type not in registry.METHODS:
        raise invalid(f"Unknown method '{spec.method.type}'. Known: {', '.join(sorted(registry.METHODS))}.", "method.type")
    for param, file_id in (("training_file", spec.training_file), ("validation_file", spec.validation_file)):
        if file_id is None:
            continue
        file = await tx.file(caller.project_id, file_id)
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
