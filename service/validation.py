"""Checks and tokenises a job's files before it is queued, and resolves what was left "auto".

The rows are read in a process of their own (data_process.py); the dataset lies in storage under a key made
of all that decides its bytes, so the same file for the same model is read once. Called by the driver.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import tempfile
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

from service import objects
from service.data_process import run_check
from service.data_report import MIN_ROWS, CheckRequest, DataReport, Param, failed_report
from service.datasets import cache_key
from service.jobs import Job, JobError, JobStatus, Notice, advance
from service.records import File
from service.resolve import resolve
from service.settings import Settings
from service.store import Store, StoreUnavailable
from trainers import manifest
from trainers.base_model import fetch_base
from trainers.registry import Fault, tokenizer_fingerprint
from trainers.spec import DatasetRef
from trainers.storage import NoSuchObject, ObjectExists, Storage, StorageDenied, StorageFull, StorageUnavailable

DAMAGED = Fault("", "file_damaged", "the stored bytes of the file are not those that were uploaded", "Upload the file again.")


class FaultyFile(Exception):
    """A file did not pass; holds its report."""

    def __init__(self, report: DataReport) -> None:
        super().__init__(report)
        self.report = report


class Validation:
    """The data check of jobs. One in each process that owns `data_dir`: what a dead one left in scratch is removed."""

    def __init__(self, store: Store, storage: Storage, settings: Settings) -> None:
        self._store, self._storage, self._settings = store, storage, settings
        self._scratch = settings.data_dir.absolute() / "scratch"
        self._cache = settings.data_dir.absolute() / "cache"
        shutil.rmtree(self._scratch, ignore_errors=True)

    async def check(self, job: Job) -> tuple[Job, list[Notice]]:
        """The job QUEUED with its datasets and numbers, or FAILED with the report, and the lines that tell of it.

        Raises StoreUnavailable when a disk or the object store failed, which says nothing about the file.
        """
        notices = [_validating(job)]
        try:
            model_dir = await asyncio.to_thread(fetch_base, job.base_model, self._storage, self._cache)
            training, report = await self._dataset(job, "training_file", job.spec.training_file, model_dir)
            validation = None
            if job.spec.validation_file is not None:
                validation, _ = await self._dataset(job, "validation_file", job.spec.validation_file, model_dir)
        except FaultyFile as faulty:
            return _failed(job, notices, _refusal(faulty.report))
        except manifest.ManifestBroken as error:
            return _failed(job, notices, JobError(code="base_model_damaged", message=str(error), param="model"))
        except StorageDenied as error:
            return _failed(job, notices, JobError(code="storage_auth", message=f"object storage refuses access ({error})", cause="config"))
        except (StorageUnavailable, StorageFull) as error:
            raise StoreUnavailable(str(error)) from error
        queued = advance(job, JobStatus.QUEUED, dataset=training, validation=validation, resolved=resolve(job.spec, training), reason="")
        return queued, [*notices, *_shortened(report), _validated(report)]

    async def _dataset(self, job: Job, param: Param, file_id: str, model_dir: Path) -> tuple[DatasetRef, DataReport]:
        request = _request(job, param, model_dir)
        async with self._store.read() as tx:
            file = await tx.file(job.project_id, file_id)
        if file is None:
            raise FaultyFile(failed_report(request, _missing(file_id)))
        key = await asyncio.to_thread(_key, file, job, request)
        prefix = objects.dataset_prefix(key)
        report = await asyncio.to_thread(self._known, prefix, request)
        if report is None or report.examples < request.min_rows:
            report = await self._read(file, request, prefix)
        if report.retryable:
            raise StoreUnavailable(report.summary)
        if not report.ok:
            raise FaultyFile(report)
        return report.dataset_ref(prefix, key), report

    def _known(self, prefix: str, request: CheckRequest) -> DataReport | None:
        """The report of a dataset that is complete in storage."""
        try:
            known = manifest.read(self._storage, prefix).facts["report"]
        except manifest.ManifestBroken:
            return None
        return DataReport.model_validate_json(json.dumps({**known, "param": request.param}))

    async def _read(self, file: File, request: CheckRequest, prefix: str) -> DataReport:
        """Check the rows; keep the dataset when they pass. Once more when the bytes were spoiled on the way."""
        for _ in range(2):
            async with self._scratch_dir() as scratch:
                path = await asyncio.to_thread(self._local, file, scratch)
                if path is None:
                    return failed_report(request, _missing(file.id))
                directory = scratch / "dataset"
                report = await self._run(request.model_copy(update={"path": str(path), "out_dir": str(directory)}))
                if report.sha256 in ("", file.sha256):
                    if report.ok:
                        await asyncio.to_thread(self._keep, directory, prefix, report)
                    return report
        return failed_report(request, DAMAGED)

    async def _run(self, request: CheckRequest) -> DataReport:
        settings = self._settings
        return await run_check(request, memory_bytes=settings.validation_memory_bytes, timeout=settings.validation_timeout)

    def _local(self, file: File, scratch: Path) -> Path | None:
        """The file's bytes on this machine, None when they are gone."""
        path = self._storage.local_path(file.key)
        if path is not None:
            return path if path.is_file() else None
        try:
            self._storage.get_file(file.key, scratch / "rows.jsonl")
        except NoSuchObject:
            return None
        return scratch / "rows.jsonl"

    @asynccontextmanager
    async def _scratch_dir(self) -> AsyncGenerator[Path]:
        self._scratch.mkdir(parents=True, exist_ok=True, mode=0o700)
        scratch = Path(tempfile.mkdtemp(prefix="check-", dir=self._scratch))
        try:
            yield scratch
        finally:
            await asyncio.to_thread(shutil.rmtree, scratch, ignore_errors=True)

    def _keep(self, directory: Path, prefix: str, report: DataReport) -> None:
        # Without `param`: the same rows may be one job's training file and another's validation file.
        facts = {"report": report.model_dump(mode="json", exclude={"param"})}
        try:
            manifest.write(self._storage, prefix, directory, facts)
        except ObjectExists:  # a manifest that can't be read: a readable one would have been used
            manifest.remove(self._storage, prefix)
            manifest.write(self._storage, prefix, directory, facts)


def _request(job: Job, param: Param, model_dir: Path) -> CheckRequest:
    training = job.spec.tunesmith.training
    return CheckRequest(
        path="",
        model_dir=str(model_dir),
        method=job.spec.method.type,
        max_length=training.max_length,
        overlong=training.overlong,
        min_rows=MIN_ROWS[param],
        param=param,
    )


def _key(file: File, job: Job, request: CheckRequest) -> str:
    return cache_key(
        file_sha256=file.sha256,
        model_revision=job.base_model.revision,
        tokenizer_hash=tokenizer_fingerprint(Path(request.model_dir), request.today),
        method=request.method,
        max_length=request.max_length,
        overlong=request.overlong,
    )


def _missing(file_id: str) -> Fault:
    return Fault("", "file_missing", f"The file '{file_id}' was deleted, or has expired, before it could be read.", "Upload it again.")


def _validating(job: Job) -> Notice:
    named = f"training file: {job.spec.training_file}"
    if job.spec.validation_file is not None:
        named += f" and validation file: {job.spec.validation_file}"
    return Notice(f"Validating {named}")


def _validated(report: DataReport) -> Notice:
    facts = report.model_dump(include={"rows", "tokens", "trained_tokens", "longest", "truncated_rows", "dropped_rows"})
    return Notice("Files validated, moving job to queued state", data=facts)


def _shortened(report: DataReport) -> list[Notice]:
    """A warning when rows of the training file were cut or left out."""
    parts = {
        "were cut": report.truncated_rows,
        "were left out": report.dropped_rows,
        "had no token that carries loss once cut and were left out": report.rows_without_trained_tokens,
    }
    told = [f"{count:,} {words}" for words, count in parts.items() if count]
    if not told:
        return []
    longest = f"the longest has {report.longest_uncut:,} tokens"
    return [Notice(f"Rows of the training file are longer than max_length ({longest}): {', '.join(told)}", level="warn")]


def _refusal(report: DataReport) -> JobError:
    return JobError(
        code=report.error_code,
        message=report.summary,
        param=report.param,
        cause="service" if report.failure == "crash" else "data",
        details={"report": report.model_dump(mode="json")},
    )


def _failed(job: Job, notices: list[Notice], error: JobError) -> tuple[Job, list[Notice]]:
    reason = f"an invalid {error.param.replace('_', ' ')}" if error.cause == "data" and error.param else error.code
    why = Notice(f"The job failed due to {reason}: {error.message}", level="error")
    return advance(job, JobStatus.FAILED, error=error, reason=""), [*notices, why]
