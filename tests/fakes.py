"""Hand-made stand-ins for the parts behind the one under test. Small, in memory, and with the real rules of their contract."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

from service import devices
from service.app import App
from service.app.files import check_file
from service.app.streams import JobLog
from service.curves import Curves
from service.data_report import DataReport, LineFault
from service.errors import ErrorCode, TunesmithError, invalid, not_found
from service.estimate import CountedData, Estimate
from service.estimating import Known, estimate
from service.jobs import FINAL, Event, Job, JobSpec, JobStatus, JobUpdate, tuned_model_name
from service.records import Artifact, Caller, Checkpoint, Content, File, Model, Page
from service.runtime import Capacity
from service.settings import Settings
from tests.sizes import SMOLLM2
from trainers.spec import BaseModelRef, DatasetRef

API_KEY = "sk-tunesmith-test"
OTHER_KEY = "sk-tunesmith-other"
BASE_MODEL = "smollm2-135m-instruct"
BASE = BaseModelRef(id=BASE_MODEL, revision="r1", prefix="base/smollm2/r1", licence="apache-2.0")
T = TypeVar("T", File, Job, Event, Checkpoint)


class FakeApp(App):
    """The application layer without a database: everything is in public dictionaries that a test may fill or change."""

    def __init__(self) -> None:
        self.callers = {
            API_KEY: Caller("key_1", "proj_1", "org_1", frozenset({"read", "write", "admin"})),
            OTHER_KEY: Caller("key_2", "proj_2", "org_2", frozenset({"read", "write"})),
        }
        self.files: dict[str, File] = {}
        self.data: dict[str, bytes] = {}
        self.jobs: dict[str, Job] = {}
        self.events: dict[str, list[Event]] = {}
        self.checkpoints: dict[str, list[Checkpoint]] = {}
        self.artifacts: dict[str, dict[str, bytes]] = {}
        self.submissions: dict[str, str] = {}
        self.models = {BASE_MODEL: Model(BASE_MODEL, 1.5, "tunesmith", base=BASE)}
        self.parts = {"store": "ok", "objects": "ok", "runtime": "ok"}
        self.presigned: str | None = None
        self.failure: BaseException | None = None
        """Raised by the next call of `get_job`."""

    async def authenticate(self, bearer: str, request_id: str = "") -> Caller:
        if bearer not in self.callers:
            raise TunesmithError(ErrorCode.UNAUTHENTICATED, "Incorrect API key provided.")
        return self.callers[bearer]

    async def create_file(self, caller: Caller, *, path: Path, filename: str, purpose: str, expires_after: timedelta | None = None) -> File:
        check_file(purpose, expires_after)
        data = path.read_bytes()
        file_id = f"file-{secrets.token_hex(8)}"
        digest = hashlib.sha256(data).hexdigest()
        file = File(file_id, caller.project_id, filename, purpose, len(data), digest, f"files/{file_id}", time.time())
        if expires_after is not None:
            file = replace(file, expires_at=file.created_at + expires_after.total_seconds())
        self.files[file_id], self.data[file_id] = file, data
        return file

    async def list_files(self, caller: Caller, *, purpose: str | None, after: str | None, limit: int, ascending: bool) -> Page[File]:
        files = [f for f in self.files.values() if f.project_id == caller.project_id and purpose in (None, f.purpose)]
        return _page(files if ascending else files[::-1], after, limit)

    async def get_file(self, caller: Caller, file_id: str) -> File:
        file = self.files.get(file_id)
        if file is None or file.project_id != caller.project_id:
            raise not_found("file", file_id)
        return file

    async def file_content(self, caller: Caller, file_id: str) -> Content:
        file = await self.get_file(caller, file_id)
        return self._content(file.filename, self.data[file_id])

    async def delete_file(self, caller: Caller, file_id: str) -> None:
        await self.get_file(caller, file_id)
        del self.files[file_id]

    async def create_job(self, caller: Caller, spec: JobSpec, *, idempotency_key: str | None, retried: bool) -> Job:
        if spec.model not in self.models:
            raise invalid(f"The model '{spec.model}' is not in the catalogue.", "model", "model_not_found")
        content = spec.model_dump_json()
        if (idempotency_key or retried) and (known := self.submissions.get(idempotency_key or content)):
            return self.jobs[known]
        job_id = f"ftjob-{secrets.token_hex(8)}"
        self.submissions |= {content: job_id} | ({idempotency_key: job_id} if idempotency_key else {})
        seeded = spec if spec.seed is not None else spec.model_copy(update={"seed": 7})
        job = Job(job_id, caller.project_id, caller.organization_id, seeded, JobStatus.VALIDATING, 1, time.time(), BASE)
        self.jobs[job_id], self.checkpoints[job_id] = job, []
        self.events[job_id] = [Event(f"ftevent-{job_id}-1", job_id, 1, time.time(), "info", f"Created fine-tuning job: {job_id}")]
        return job

    async def estimate_job(self, caller: Caller, spec: JobSpec, counted: CountedData | None = None) -> Estimate:
        if spec.model not in self.models:
            raise invalid(f"The model '{spec.model}' is not in the catalogue.", "model", "model_not_found")
        data = DatasetRef(prefix="", sha256="", rows=400, tokens=22_000, trained_tokens=800, longest=90)
        data = counted.training.dataset() if counted else data
        if counted is None and b'"role": "usr"' in self.data[spec.training_file]:
            fault = LineFault(line=1, path="messages[0].role", rule="bad_role", message='"usr" is not a role')
            report = DataReport(param="training_file", sha256="", faults=(fault,), fault_count=1, faulty_lines=1)
            return Estimate(ok=False, training=report, validation=None)
        capacity, memory = Capacity(cpus=2, gpus=0, nodes=1), 8 * 2**30
        known = Known(SMOLLM2, capacity, memory, (), (), devices.processor(Settings(cpu_gflops=50)), (None, None))
        return estimate(spec, data, None, known, Settings(price_per_cpu_hour=36.0))

    async def list_jobs(self, caller: Caller, *, after: str | None, limit: int, metadata: dict[str, str] | None) -> Page[Job]:
        jobs = [j for j in self.jobs.values() if j.project_id == caller.project_id]
        if metadata is None:
            jobs = [j for j in jobs if not j.spec.metadata]
        else:
            jobs = [j for j in jobs if metadata.items() <= j.spec.metadata.items()]
        return _page(jobs[::-1], after, limit)

    async def get_job(self, caller: Caller, job_id: str) -> Job:
        if self.failure is not None:
            failure, self.failure = self.failure, None
            raise failure
        job = self.jobs.get(job_id)
        if job is None or job.project_id != caller.project_id:
            raise not_found("fine-tuning job", job_id, "fine_tuning_job_id")
        return job

    async def cancel_job(self, caller: Caller, job_id: str) -> Job:
        job = await self.get_job(caller, job_id)
        if job.status in FINAL:
            raise invalid(f"The job is {job.status} already and can no longer be cancelled.", "fine_tuning_job_id")
        self.jobs[job_id] = replace(job, status=JobStatus.CANCELLED, finished_at=time.time())
        return self.jobs[job_id]

    async def pause_job(self, caller: Caller, job_id: str) -> Job:
        job = await self.get_job(caller, job_id)
        self.jobs[job_id] = replace(job, status=JobStatus.PAUSING if job.status is JobStatus.RUNNING else JobStatus.PAUSED)
        return self.jobs[job_id]

    async def resume_job(self, caller: Caller, job_id: str) -> Job:
        job = await self.get_job(caller, job_id)
        if job.status is not JobStatus.PAUSED:
            raise invalid(f"The job is {job.status}; only a paused job can be resumed.", "fine_tuning_job_id")
        self.jobs[job_id] = replace(job, status=JobStatus.QUEUED)
        return self.jobs[job_id]

    async def list_events(self, caller: Caller, job_id: str, *, after: str | None, limit: int, ascending: bool = False) -> Page[Event]:
        await self.get_job(caller, job_id)
        events = self.events[job_id]
        return _page(events if ascending else events[::-1], after, limit)

    async def list_checkpoints(self, caller: Caller, job_id: str, *, after: str | None, limit: int) -> Page[Checkpoint]:
        await self.get_job(caller, job_id)
        return _page(self.checkpoints[job_id][::-1], after, limit)

    async def list_artifacts(self, caller: Caller, job_id: str) -> list[Artifact]:
        await self.get_job(caller, job_id)
        found = self.artifacts.get(job_id, {})
        return [Artifact(name, len(data), hashlib.sha256(data).hexdigest()) for name, data in sorted(found.items())]

    async def artifact_content(self, caller: Caller, job_id: str, name: str) -> Content:
        await self.get_job(caller, job_id)
        data = self.artifacts.get(job_id, {}).get(name)
        if data is None:
            raise not_found("artifact", name)
        return self._content(name.rpartition("/")[2], data)

    async def watch_job(self, caller: Caller, job_id: str, *, after_seq: int = 0) -> AsyncGenerator[JobUpdate]:
        await self.get_job(caller, job_id)
        seq = max(0, len(self.events[job_id]) + after_seq) if after_seq < 0 else after_seq
        known = None
        while known is None or known.status not in FINAL:
            job, news = self.jobs[job_id], self.events[job_id][seq:]
            seq += len(news)
            for event in news:
                yield JobUpdate(event, None)
            if job != known:
                yield JobUpdate(None, job)
            known = job
            await asyncio.sleep(0.02)

    async def job_curves(self, caller: Caller, job_id: str, *, after_step: int = 0) -> Curves:
        await self.get_job(caller, job_id)
        curves = Curves()
        for event in self.events[job_id]:
            if event.type == "metrics" and event.data["step"] > after_step:
                curves.add(event.data)
        return curves

    async def job_log(self, caller: Caller, job_id: str, **asked: Any) -> JobLog:
        await self.get_job(caller, job_id)

        async def text() -> AsyncGenerator[bytes]:
            yield f"{asked}\n".encode()

        return JobLog(asked["attempt"] or 1, "rank-0", ["driver", "rank-0"], text())

    async def list_models(self, caller: Caller) -> list[Model]:
        return list(self.models.values())

    async def get_model(self, caller: Caller, model: str) -> Model:
        if model not in self.models:
            raise not_found("model", model, "model")
        return self.models[model]

    async def delete_model(self, caller: Caller, model: str) -> None:
        if (await self.get_model(caller, model)).job_id is None:
            raise TunesmithError(ErrorCode.PERMISSION_DENIED, "A base model cannot be deleted.", param="model")
        del self.models[model]

    async def ready(self) -> dict[str, str]:
        return self.parts

    def finish(self, job_id: str, artifacts: dict[str, bytes]) -> Job:
        """Let a job succeed, with these published files."""
        job = self.jobs[job_id]
        name = tuned_model_name(job.spec.model, job.organization_id, job.spec.suffix, job_id)
        self.jobs[job_id] = replace(job, status=JobStatus.SUCCEEDED, tuned_model=name, finished_at=time.time())
        self.artifacts[job_id] = artifacts
        self.models[name] = Model(name, time.time(), job.organization_id, job_id, BASE)
        return self.jobs[job_id]

    def _content(self, filename: str, data: bytes) -> Content:
        def read(start: int, end: int) -> Iterator[bytes]:
            for at in range(start, end, 1 << 20):
                yield data[at : min(end, at + (1 << 20))]

        return Content(filename, len(data), hashlib.sha256(data).hexdigest(), read, self.presigned)


def _page(items: Sequence[T], after: str | None, limit: int) -> Page[T]:
    start = 0
    if after is not None:
        ids = [item.id for item in items]
        if after not in ids:
            raise invalid("'after' names nothing in this list.", "after")
        start = ids.index(after) + 1
    return Page(list(items[start : start + limit]), len(items) > start + limit)
