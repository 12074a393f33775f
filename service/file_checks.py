"""The data check of one file for one base model: the one path of jobs, estimates and checks that a client asks for.

The rows are read in a process of their own (data_process.py); the dataset lies in storage under a key made
of all that decides its bytes, so the same file for the same model is read once. Knows no job and no database.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import tempfile
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from weakref import WeakValueDictionary

from service import objects
from service.data_process import run_check
from service.data_report import MIN_ROWS, CheckRequest, DataReport, Param, failed_report
from service.datasets import cache_key
from service.records import File
from service.settings import Settings
from service.slots import Slots
from trainers import manifest
from trainers.base_model import fetch_base
from trainers.registry import Fault, tokenizer_fingerprint
from trainers.spec import BaseModelRef, DatasetRef, DataSpec, TrainingSpec
from trainers.storage import NoSuchObject, ObjectExists, Storage

DAMAGED = Fault("", "file_damaged", "the stored bytes of the file are not those that were uploaded", "Upload the file again.")
Turn = Callable[[], AbstractAsyncContextManager[None]]
"""Entered while a process reads rows: what is known already waits for nobody."""


@dataclass(frozen=True, slots=True)
class Question:
    """What a file is checked for."""

    param: Param
    file_id: str
    base_model: BaseModelRef
    method: str
    training: TrainingSpec
    data: DataSpec
    preview: int = 0
    """Rows that the report shows as the model will see them; the file is then read though it is known."""


@dataclass(frozen=True, slots=True)
class Checked:
    """The report, and the dataset when the file can be trained on."""

    report: DataReport
    dataset: DatasetRef | None


class FileChecks:
    """One in each process that owns `data_dir`: what a dead one left in scratch is removed."""

    def __init__(self, storage: Storage, settings: Settings) -> None:
        self._storage, self._settings = storage, settings
        self._scratch = settings.data_dir.absolute() / "scratch"
        self._cache = settings.data_dir.absolute() / "cache"
        self.slots = Slots(settings.client_checks, "Too many files are being checked just now; ask again.", timedelta(seconds=5))
        """For checks that clients ask for; those of jobs wait for nobody."""
        self._busy: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        shutil.rmtree(self._scratch, ignore_errors=True)

    async def model_dir(self, base_model: BaseModelRef) -> Path:
        """The base model's files on this machine. Raises ManifestBroken, and what the storage raises."""
        return await asyncio.to_thread(fetch_base, base_model, self._storage, self._cache)

    async def check(self, question: Question, file: File | None, turn: Turn = nullcontext) -> Checked:
        """What is known of the file, or what reading it tells; the dataset of a good file stays in storage.

        `file` is None when it is no longer there. Cancelling ends the process that reads. Raises ManifestBroken when
        the base model is damaged, and what the storage raises; a report that is `retryable` says nothing of the file.
        """
        request = self._request(question, await self.model_dir(question.base_model))
        if file is None:
            return Checked(failed_report(request, _missing(question.file_id)), None)
        key = await asyncio.to_thread(_key, file, question, request)
        prefix = objects.dataset_prefix(key)
        report = await self._report(file, request, prefix, turn)
        return Checked(report, report.dataset_ref(prefix, key) if report.ok else None)

    def _request(self, question: Question, model_dir: Path) -> CheckRequest:
        return CheckRequest(
            path="",
            model_dir=str(model_dir),
            method=question.method,
            max_length=question.training.max_length,
            overlong=question.training.overlong,
            min_rows=MIN_ROWS[question.param],
            param=question.param,
            preview=question.preview,
            data=question.data,
            max_unpacked_ratio=self._settings.max_unpacked_ratio,
            max_unpacked_bytes=self._settings.max_unpacked_bytes,
        )

    async def _report(self, file: File, request: CheckRequest, prefix: str, turn: Turn) -> DataReport:
        # Of two that ask for the same rows one reads them, and the other finds them read.
        lock = self._busy.setdefault(prefix, asyncio.Lock())
        async with lock:
            report = await asyncio.to_thread(self._known, prefix, request) if not request.preview else None
            if report is not None and report.examples >= request.min_rows:
                return report
            async with turn():
                return await self._read(file, request, prefix)

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
                        await asyncio.to_thread(self._keep, directory, prefix, request, report)
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
            self._storage.get_file(file.key, scratch / "rows")
        except NoSuchObject:
            return None
        return scratch / "rows"

    @asynccontextmanager
    async def _scratch_dir(self) -> AsyncGenerator[Path]:
        self._scratch.mkdir(parents=True, exist_ok=True, mode=0o700)
        scratch = Path(tempfile.mkdtemp(prefix="check-", dir=self._scratch))
        try:
            yield scratch
        finally:
            await asyncio.to_thread(shutil.rmtree, scratch, ignore_errors=True)

    def _keep(self, directory: Path, prefix: str, request: CheckRequest, report: DataReport) -> None:
        # Without `param`: the same rows may be one job's training file and another's validation file.
        facts = {"report": report.model_dump(mode="json", exclude={"param", "preview"})}
        try:
            manifest.write(self._storage, prefix, directory, facts)
        except ObjectExists:
            if self._known(prefix, request) is None:  # it can't be read, so no run reads it
                manifest.remove(self._storage, prefix)
                manifest.write(self._storage, prefix, directory, facts)


def _key(file: File, question: Question, request: CheckRequest) -> str:
    return cache_key(
        file_sha256=file.sha256,
        data=request.data,
        model_revision=question.base_model.revision,
        tokenizer_hash=tokenizer_fingerprint(Path(request.model_dir), request.today),
        method=request.method,
        max_length=request.max_length,
        overlong=request.overlong,
    )


def _missing(file_id: str) -> Fault:
    return Fault("", "file_missing", f"The file '{file_id}' was deleted, or has expired, before it could be read.", "Upload it again.")
