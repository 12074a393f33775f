"""Checks and tokenises a job's files before it is queued, and resolves what was left "auto".

The rows are read in a process of their own (datasets.py); its result lies in storage under a key made
of everything it depends on, so the same file for the same model is read once. Called by the driver.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

from service import datasets, objects
from service.datasets import CheckRequest, DataReport
from service.jobs import Job, JobError, JobStatus, Notice, advance
from service.records import File
from service.resolve import resolve
from service.settings import Settings
from service.store import Store
from trainers.base_model import fetch_base
from trainers.spec import DatasetRef
from trainers.storage import NoSuchObject, Storage

REPORT = "report.json"
"""Written last below a dataset's prefix: its existence means that the dataset is complete."""


class FaultyFile(Exception):
    """A file did not pass; holds which one and its report."""

    def __init__(self, param: str, report: DataReport) -> None:
        super().__init__(param, report)
        self.param, self.report = param, report


class Validation:
    """The data check of jobs."""

    def __init__(self, store: Store, storage: Storage, settings: Settings) -> None:
        self._store, self._storage, self._settings = store, storage, settings
        self._scratch = settings.data_dir.absolute() / "scratch"
        self._cache = settings.data_dir.absolute() / "cache"

    async def check(self, job: Job) -> tuple[Job, list[Notice]]:
        """The job QUEUED with its datasets and numbers, or FAILED with the report, and the lines that tell of it."""
        named = f"training file: {job.spec.training_file}"
        if job.spec.validation_file is not None:
            named += f" and validation file: {job.spec.validation_file}"
        notices = [Notice(f"Validating {named}")]
        try:
            training, report = await self._dataset(job, "training_file", job.spec.training_file, min_rows=10)
            validation = None
            if job.spec.validation_file is not None:
                validation, _ = await self._dataset(job, "validation_file", job.spec.validation_file, min_rows=1)
        except FaultyFile as faulty:
            return self._refused(job, notices, faulty)
        resolved = resolve(job.spec, training)
        queued = advance(job, JobStatus.QUEUED, dataset=training, validation=validation, resolved=resolved, reason="")
        data = {"rows": report.rows, "tokens": report.tokens, "trained_tokens": report.trained_tokens, "truncated_rows": report.truncated_rows}
        return queued, [*notices, Notice("Files validated, moving job to queued state", data=data)]

    def _refused(self, job: Job, notices: list[Notice], faulty: FaultyFile) -> tuple[Job, list[Notice]]:
        report = faulty.report
        error = JobError(
            code=report.wire_code or f"invalid_{faulty.param}",
            message=report.summary(),
            param=faulty.param,
            cause="data",
            details={"report": report.model_dump(mode="json")},
        )
        failed = advance(job, JobStatus.FAILED, error=error, reason="")
        return failed, [*notices, Notice(f"The job failed due to an invalid {faulty.param.replace('_', ' ')}: {error.message}", level="error")]

    async def _dataset(self, job: Job, param: str, file_id: str, *, min_rows: int) -> tuple[DatasetRef, DataReport]:
        async with self._store.read() as tx:
            file = await tx.file(job.project_id, file_id)
        if file is None:
            raise FaultyFile(param, DataReport.refused(f"the file '{file_id}' was deleted before it could be read"))
        model_dir = await asyncio.to_thread(fetch_base, job.base_model, self._storage, self._cache)
        training = job.spec.tunesmith.training
        key = await asyncio.to_thread(
            datasets.cache_key, file.sha256, model_dir, job.spec.method.type, training.max_length, training.overlong
        )
        prefix = objects.dataset_prefix(key)
        report = await self._cached(prefix)
        if report is None or report.rows < min_rows:
            report = await self._read(job, file, model_dir, prefix, min_rows)
        if report.fault_count:
            raise FaultyFile(param, report)
        ref = DatasetRef(
            prefix=prefix, sha256=key, rows=report.rows, tokens=report.tokens, trained_tokens=report.trained_tokens, longest=report.longest
        )
        return ref, report

    async def _cached(self, prefix: str) -> DataReport | None:
        with suppress(NoSuchObject):
            return DataReport.model_validate_json(await asyncio.to_thread(self._storage.get, f"{prefix}/{REPORT}"))
        return None

    async def _read(self, job: Job, file: File, model_dir: Path, prefix: str, min_rows: int) -> DataReport:
        self._scratch.mkdir(parents=True, exist_ok=True, mode=0o700)
        scratch = Path(tempfile.mkdtemp(prefix="check-", dir=self._scratch))
        try:
            path = self._storage.local_path(file.key)
            if path is None:
                path = scratch / "rows.jsonl"
                await asyncio.to_thread(self._storage.get_file, file.key, path)
            training = job.spec.tunesmith.training
            request = CheckRequest(
                path=str(path),
                model_dir=str(model_dir),
                method=job.spec.method.type,
                max_length=training.max_length,
                overlong=training.overlong,
                min_rows=min_rows,
                out_dir=str(scratch / "dataset"),
            )
            report = await datasets.run_check(
                request, memory_bytes=self._settings.validation_memory_bytes, timeout=self._settings.validation_timeout
            )
            if not report.fault_count:
                await asyncio.to_thread(self._keep, scratch / "dataset", prefix, report)
            return report
        finally:
            await asyncio.to_thread(shutil.rmtree, scratch, ignore_errors=True)

    def _keep(self, directory: Path, prefix: str, report: DataReport) -> None:
        for path in sorted(directory.iterdir()):
            self._storage.put_file(f"{prefix}/{path.name}", path)
        self._storage.put(f"{prefix}/{REPORT}", report.model_dump_json().encode())
