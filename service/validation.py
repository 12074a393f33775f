"""Checks and tokenises a job's files before it is queued, and resolves what was left "auto".

How a file is checked is file_checks.py's business. Called by the driver.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from service.data_report import DataReport, Param
from service.devices import worker_bytes
from service.file_checks import FileChecks, Question
from service.jobs import Job, JobError, JobStatus, Notice, advance
from service.resolve import resolve
from service.runtime import Runtime, RuntimeUnavailable
from service.settings import Settings
from service.store import Store, StoreUnavailable
from trainers import manifest
from trainers.failure import HINTS
from trainers.model_files import measure
from trainers.plan import choose_engine, settled_engine, unshareable
from trainers.spec import DatasetRef, EngineName
from trainers.storage import Storage, StorageDenied, StorageFull, StorageUnavailable

SHARED_BY, NOT_SHARED = "tunesmith.resources.sequence_parallel", "sequence_not_shared"
"""What asks workers to share rows, and the code of a job whose base model does not allow it: the same as a run's."""


class FaultyFile(Exception):
    """A file did not pass; holds its report."""

    def __init__(self, report: DataReport) -> None:
        super().__init__(report)
        self.report = report


class Unshareable(Exception):
    """Workers can't share the rows of the base model; says why."""


class Validation:
    """The data check of jobs."""

    def __init__(self, store: Store, storage: Storage, runtime: Runtime, settings: Settings) -> None:
        self._store, self._runtime, self._settings = store, runtime, settings
        self.files = FileChecks(storage, settings)
        self._turns = asyncio.Semaphore(settings.job_checks)

    async def check(self, job: Job) -> tuple[Job, list[Notice]]:
        """The job QUEUED with its datasets and numbers, or FAILED with the report, and the lines that tell of it.

        Raises StoreUnavailable when a disk or the object store failed, which says nothing about the file.
        """
        notices = [_validating(job)]
        try:
            training, report = await self._dataset(job, "training_file", job.spec.training_file)
            validation = None
            if job.spec.validation_file is not None:
                validation, _ = await self._dataset(job, "validation_file", job.spec.validation_file)
            engine = await self._engine(job, training, validation)
        except FaultyFile as faulty:
            return _failed(job, notices, _refusal(faulty.report))
        except Unshareable as error:
            hint = HINTS[NOT_SHARED]
            return _failed(job, notices, JobError(code=NOT_SHARED, message=str(error), param=SHARED_BY, cause="config", hint=hint))
        except manifest.ManifestBroken as error:
            return _failed(job, notices, JobError(code="base_model_damaged", message=str(error), param="model"))
        except StorageDenied as error:
            return _failed(job, notices, JobError(code="storage_auth", message=f"object storage refuses access ({error})", cause="config"))
        except (StorageUnavailable, StorageFull) as error:
            raise StoreUnavailable(str(error)) from error
        resolved = resolve(job.spec, training, engine)
        queued = advance(job, JobStatus.QUEUED, dataset=training, validation=validation, resolved=resolved, reason="")
        return queued, [*notices, *_shortened(report), _validated(report)]

    async def _engine(self, job: Job, training: DatasetRef, validation: DatasetRef | None) -> EngineName:
        """By what the cluster's devices hold; one that can't be asked is taken to hold it. Raises Unshareable."""
        spec = job.spec.tunesmith
        settled = settled_engine(spec)
        if settled and spec.resources.sequence_parallel == 1:
            return settled.engine
        sizes = await asyncio.to_thread(measure, await self.files.model_dir(job.base_model))
        longest = max(training.longest, validation.longest if validation else 0)
        if why := unshareable(sizes.config, spec, longest):
            raise Unshareable(why)
        if settled:
            return settled.engine
        try:
            capacity = await self._runtime.capacity()
        except RuntimeUnavailable:
            capacity = None
        memory = worker_bytes(self._settings, spec.resources, capacity)
        return choose_engine(sizes, spec, longest=longest, memory_bytes=memory).engine

    @asynccontextmanager
    async def _turn(self) -> AsyncGenerator[None]:
        """Many jobs may be posted at once; each check is a process that uses all the cores it finds."""
        async with self._turns:
            yield

    async def _dataset(self, job: Job, param: Param, file_id: str) -> tuple[DatasetRef, DataReport]:
        async with self._store.read() as tx:
            file = await tx.file(job.project_id, file_id)
        question = Question(param, file_id, job.base_model, job.spec.method.type, job.spec.tunesmith.training, job.spec.tunesmith.data)
        checked = await self.files.check(question, file, self._turn)
        if checked.report.retryable:
            raise StoreUnavailable(checked.report.summary)
        if checked.dataset is None:
            raise FaultyFile(checked.report)
        return checked.dataset, checked.report


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
        details={"report": report.model_dump(mode="json", exclude={"preview"})},
    )


def _failed(job: Job, notices: list[Notice], error: JobError) -> tuple[Job, list[Notice]]:
    reason = f"an invalid {error.param.replace('_', ' ')}" if error.cause == "data" and error.param else error.code
    why = Notice(f"The job failed due to {reason}: {error.message}", level="error")
    return advance(job, JobStatus.FAILED, error=error, reason=""), [*notices, why]
