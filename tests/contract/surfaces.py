"""The service by three ways: application layer, REST and gRPC, in the one vocabulary of `vocabulary`.

So what one surface says can be compared with what another says. Nothing here is taken from the code that the transports
translate with.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import grpc
import httpx

from protos.tunesmith.v1 import files_pb2, jobs_pb2, models_pb2, types_pb2
from service import jobs as app_jobs
from service.errors import ErrorCode, TunesmithError
from service.job_request import CheckFileRequest, CreateFineTuningJobRequest, job_spec
from service.records import Caller, Content
from service.strict import validated
from tests.contract.messages import message, optional, plain, word
from tests.contract.vocabulary import (
    Artifact,
    Body,
    Checkpoint,
    Estimate,
    Event,
    Failure,
    Fault,
    File,
    Job,
    Kind,
    Model,
    Page,
    Refusal,
    Report,
    Surface,
    T,
)
from tests.gateway import Gateway
from tests.rpc_client import connected, refusal


def _faults(given: list[Body]) -> tuple[Fault, ...]:
    return tuple(Fault(None if f["line"] is None else int(f["line"]), f["path"], f["rule"], f["message"]) for f in given)


def _report(given: Body) -> Report:
    counts = {name: given[name] for name in ("rows", "tokens", "trained_tokens", "fault_count")}
    return Report(ok=given["ok"], summary=given["summary"], faults=_faults(given["faults"]), **counts)


def _failure(given: Body) -> Failure:
    report = given["details"].get("report") or {"faults": []}
    return Failure(given["code"], given["message"], given["param"], given["cause"], _faults(report["faults"]))


class AppSurface:
    """The application layer itself, on the gateway's own loop."""

    def __init__(self, gateway: Gateway, key: str) -> None:
        self._gateway, self._app, self._key = gateway, gateway.app, key

    def _do(self, use: Callable[[Caller], Coroutine[Any, Any, T]]) -> T:
        async def asked() -> T:
            return await use(await self._app.authenticate(self._key))

        with _told(TunesmithError, _of_error):
            return self._gateway.do(asked())

    def upload(self, data: bytes, filename: str = "rows.jsonl", purpose: str = "fine-tune") -> File:
        with tempfile.NamedTemporaryFile() as spool:
            spool.write(data)
            spool.flush()
            path = Path(spool.name)
            return self._file(self._do(lambda caller: self._app.create_file(caller, path=path, filename=filename, purpose=purpose)))

    def file(self, file_id: str) -> File:
        return self._file(self._do(lambda caller: self._app.get_file(caller, file_id)))

    def files(self, after: str | None = None, limit: int = 100) -> Page[File]:
        page = self._do(lambda caller: self._app.list_files(caller, purpose=None, after=after, limit=limit, ascending=False))
        return Page([self._file(file) for file in page.items], page.has_more)

    def delete_file(self, file_id: str) -> None:
        self._do(lambda caller: self._app.delete_file(caller, file_id))

    def download(self, file_id: str) -> bytes:
        return self._bytes(lambda caller: self._app.file_content(caller, file_id))

    def check(self, file_id: str, **asked: Any) -> Report:
        with _told(TunesmithError, _of_error):
            request = validated(CheckFileRequest, asked)
        report = self._do(
            lambda caller: self._app.check_file(
                caller, file_id, model=request.model, method=request.method, training=request.training, param=request.purpose
            )
        )
        return self._report(report)

    def create(self, body: Body, key: str | None = None) -> Job:
        with _told(TunesmithError, _of_error):
            spec = job_spec(validated(CreateFineTuningJobRequest, body))
        return self._job(self._do(lambda caller: self._app.create_job(caller, spec, idempotency_key=key, retried=False)))

    def job(self, job_id: str) -> Job:
        return self._job(self._do(lambda caller: self._app.get_job(caller, job_id)))

    def jobs(self, after: str | None = None, limit: int = 100, metadata: dict[str, str] | None = None) -> Page[Job]:
        page = self._do(lambda caller: self._app.list_jobs(caller, after=after, limit=limit, metadata=metadata or {}))
        return Page([self._job(job) for job in page.items], page.has_more)

    def cancel(self, job_id: str) -> Job:
        return self._job(self._do(lambda caller: self._app.cancel_job(caller, job_id)))

    def pause(self, job_id: str) -> Job:
        return self._job(self._do(lambda caller: self._app.pause_job(caller, job_id)))

    def resume(self, job_id: str) -> Job:
        return self._job(self._do(lambda caller: self._app.resume_job(caller, job_id)))

    def watch(self, job_id: str) -> list[Event]:
        async def events(updates: AsyncGenerator[app_jobs.JobUpdate]) -> list[app_jobs.Event]:
            return [update.event async for update in updates if update.event is not None]

        async def watched(caller: Caller) -> list[app_jobs.Event]:
            return await events(self._app.watch_job(caller, job_id))

        return [Event(e.seq, e.level, e.type, e.message, e.data) for e in self._do(watched)]

    def checkpoints(self, job_id: str, after: str | None = None, limit: int = 100) -> Page[Checkpoint]:
        page = self._do(lambda caller: self._app.list_checkpoints(caller, job_id, after=after, limit=limit))
        return Page([Checkpoint(c.id, c.model_name, c.step, c.metrics.get("train_loss")) for c in page.items], page.has_more)

    def artifacts(self, job_id: str) -> list[Artifact]:
        return [Artifact(a.name, a.bytes, a.sha256) for a in self._do(lambda caller: self._app.list_artifacts(caller, job_id))]

    def artifact(self, job_id: str, name: str) -> bytes:
        return self._bytes(lambda caller: self._app.artifact_content(caller, job_id, name))

    def models(self) -> list[Model]:
        return [self._model(model) for model in self._do(self._app.list_models)]

    def model(self, name: str) -> Model:
        return self._model(self._do(lambda caller: self._app.get_model(caller, name)))

    def delete_model(self, name: str) -> None:
        self._do(lambda caller: self._app.delete_model(caller, name))

    def estimate(self, body: Body) -> Estimate:
        with _told(TunesmithError, _of_error):
            spec = job_spec(validated(CreateFineTuningJobRequest, body))
        found = self._do(lambda caller: self._app.estimate_job(caller, spec))
        return Estimate(
            ok=found.ok,
            steps=found.resolved.steps if found.resolved else None,
            trained_tokens=found.trained_tokens,
            memory=found.plan.memory.total if found.plan else None,
            fits=found.placement.fits if found.placement else None,
            training=self._report(found.training),
        )

    def _bytes(self, find: Callable[[Caller], Coroutine[Any, Any, Content]]) -> bytes:
        content = self._do(find)
        data = b"".join(content.read(0, content.bytes))
        assert hashlib.sha256(data).hexdigest() == content.sha256
        return data

    @staticmethod
    def _file(file: Any) -> File:
        return File(file.id, file.filename, file.purpose, file.bytes, int(file.created_at))

    @staticmethod
    def _model(model: Any) -> Model:
        return Model(model.id, model.owned_by, model.job_id, model.base.id if model.base else None)

    @staticmethod
    def _report(report: Any) -> Report:
        return _report(report.model_dump() | {"ok": report.ok, "summary": report.summary})

    @staticmethod
    def _job(job: app_jobs.Job) -> Job:
        return Job(
            id=job.id,
            phase=job.status.value,
            model=job.spec.model,
            training_file=job.spec.training_file,
            seed=job.spec.seed or 0,
            suffix=job.spec.suffix,
            metadata=job.spec.metadata,
            r=job.spec.tunesmith.adapter.r,
            epochs=job.resolved.n_epochs if job.resolved else None,
            steps=job.resolved.steps if job.resolved else None,
            epoch=job.epoch,
            created_at=int(job.created_at),
            finished_at=None if job.finished_at is None else int(job.finished_at),
            tuned_model=job.tuned_model if job.status is app_jobs.JobStatus.SUCCEEDED else None,
            trained_tokens=job.trained_tokens,
            result_files=tuple(job.result_files),
            outcomes=tuple(attempt.outcome for attempt in job.attempts),
            error=_failure(job.error.model_dump(mode="json")) if job.error else None,
        )


_APP_KINDS: dict[ErrorCode, Kind] = {
    ErrorCode.INVALID_REQUEST: "invalid",
    ErrorCode.CONFLICT: "invalid",
    ErrorCode.UNAUTHENTICATED: "unauthenticated",
    ErrorCode.PERMISSION_DENIED: "forbidden",
    ErrorCode.NOT_FOUND: "missing",
    ErrorCode.TOO_LARGE: "exhausted",
    ErrorCode.RATE_LIMITED: "exhausted",
    ErrorCode.QUOTA_EXCEEDED: "exhausted",
}


def _of_error(error: TunesmithError) -> Refusal:
    return Refusal(_APP_KINDS.get(error.code, "broken"), error.wire_code or error.code.value, error.message, error.param)


E = TypeVar("E", bound=Exception)


@contextmanager
def _told(kind: type[E], refusal_of: Callable[[E], Refusal]) -> Iterator[None]:
    """A surface's own way of saying no, as a Refusal."""
    try:
        yield
    except kind as error:
        raise refusal_of(error) from error


class RestSurface:
    """JSON over HTTP."""

    JOBS = "/v1/fine_tuning/jobs"

    def __init__(self, http: httpx.Client) -> None:
        self._http = http

    def _ask(self, method: str, path: str, **sent: Any) -> httpx.Response:
        answer = self._http.request(method, path, **sent)
        if answer.status_code >= 400:
            raise self._refusal(answer)
        return answer

    @staticmethod
    def _refusal(answer: httpx.Response) -> Refusal:
        error = answer.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        kinds: dict[int, Kind] = {
            400: "invalid",
            401: "unauthenticated",
            403: "forbidden",
            404: "missing",
            413: "exhausted",
            429: "exhausted",
        }
        return Refusal(kinds.get(answer.status_code, "broken"), error["code"], error["message"], error["param"])

    def upload(self, data: bytes, filename: str = "rows.jsonl", purpose: str = "fine-tune") -> File:
        answer = self._ask("POST", "/v1/files", files={"file": (filename, data)}, data={"purpose": purpose})
        return self._file(answer.json())

    def file(self, file_id: str) -> File:
        return self._file(self._ask("GET", f"/v1/files/{file_id}").json())

    def files(self, after: str | None = None, limit: int = 100) -> Page[File]:
        return self._page("/v1/files", self._file, after, limit)

    def delete_file(self, file_id: str) -> None:
        self._ask("DELETE", f"/v1/files/{file_id}")

    def download(self, file_id: str) -> bytes:
        return self._bytes(f"/v1/files/{file_id}/content")

    def check(self, file_id: str, **asked: Any) -> Report:
        answer = self._ask("POST", f"/v1/files/{file_id}/check", json=asked).json()
        return _report(answer["report"] | {"ok": answer["ok"], "summary": answer["summary"]})

    def create(self, body: Body, key: str | None = None) -> Job:
        headers = {} if key is None else {"idempotency-key": key}
        return self._job(self._ask("POST", self.JOBS, json=body, headers=headers).json())

    def job(self, job_id: str) -> Job:
        return self._job(self._ask("GET", f"{self.JOBS}/{job_id}").json())

    def jobs(self, after: str | None = None, limit: int = 100, metadata: dict[str, str] | None = None) -> Page[Job]:
        wanted = {f"metadata[{name}]": value for name, value in (metadata or {}).items()}
        return self._page(self.JOBS, self._job, after, limit, **wanted)

    def cancel(self, job_id: str) -> Job:
        return self._job(self._ask("POST", f"{self.JOBS}/{job_id}/cancel").json())

    def pause(self, job_id: str) -> Job:
        return self._job(self._ask("POST", f"{self.JOBS}/{job_id}/pause").json())

    def resume(self, job_id: str) -> Job:
        return self._job(self._ask("POST", f"{self.JOBS}/{job_id}/resume").json())

    def watch(self, job_id: str) -> list[Event]:
        events: list[Event] = []
        for update in self._ask("GET", f"{self.JOBS}/{job_id}/stream").text.strip().split("\n\n"):
            lines = dict(line.split(": ", 1) for line in update.splitlines() if ": " in line)
            if lines.get("event") == "event":
                e = json.loads(lines["data"])
                events.append(Event(int(lines["id"]), e["level"], e["type"], e["message"], e["data"]))
        return events

    def checkpoints(self, job_id: str, after: str | None = None, limit: int = 100) -> Page[Checkpoint]:
        def checkpoint(c: Body) -> Checkpoint:
            return Checkpoint(c["id"], c["fine_tuned_model_checkpoint"], c["step_number"], c["metrics"]["train_loss"])

        return self._page(f"{self.JOBS}/{job_id}/checkpoints", checkpoint, after, limit)

    def artifacts(self, job_id: str) -> list[Artifact]:
        listed = self._ask("GET", f"{self.JOBS}/{job_id}/artifacts").json()["data"]
        return [Artifact(a["name"], a["bytes"], a["sha256"]) for a in listed]

    def artifact(self, job_id: str, name: str) -> bytes:
        return self._bytes(f"{self.JOBS}/{job_id}/artifacts/{name}")

    def models(self) -> list[Model]:
        return [self._model(model) for model in self._ask("GET", "/v1/models").json()["data"]]

    def model(self, name: str) -> Model:
        return self._model(self._ask("GET", f"/v1/models/{name}").json())

    def delete_model(self, name: str) -> None:
        self._ask("DELETE", f"/v1/models/{name}")

    def estimate(self, body: Body) -> Estimate:
        found = self._ask("POST", f"{self.JOBS}/estimate", json=body).json()
        report = found["training"] | {"ok": found["training"]["fault_count"] == 0}
        report["summary"] = self.check(body["training_file"], model=body["model"]).summary
        return Estimate(
            ok=found["ok"],
            steps=found["resolved"]["steps"] if found["resolved"] else None,
            trained_tokens=found["trained_tokens"],
            memory=found["plan"]["memory"]["total"] if found["plan"] else None,
            fits=found["placement"]["fits"] if found["placement"] else None,
            training=_report(report),
        )

    def _page(self, path: str, convert: Callable[[Body], T], after: str | None, limit: int, **query: str) -> Page[T]:
        query |= {"limit": str(limit)} | ({} if after is None else {"after": after})
        page = self._ask("GET", path, params=query).json()
        return Page([convert(item) for item in page["data"]], page["has_more"])

    def _bytes(self, path: str) -> bytes:
        answer = self._ask("GET", path)
        assert hashlib.sha256(answer.content).hexdigest() == answer.headers["x-checksum-sha256"]
        return answer.content

    @staticmethod
    def _file(file: Body) -> File:
        return File(file["id"], file["filename"], file["purpose"], file["bytes"], file["created_at"])

    @staticmethod
    def _model(model: Body) -> Model:
        return Model(model["id"], model["owned_by"], model["tunesmith"]["job_id"], model["tunesmith"]["base_model"])

    @staticmethod
    def _job(job: Body) -> Job:
        ours, error = job["tunesmith"], job["error"]
        return Job(
            id=job["id"],
            phase=ours["phase"],
            model=job["model"],
            training_file=job["training_file"],
            seed=job["seed"],
            suffix=job["user_provided_suffix"],
            metadata=job["metadata"] or {},
            r=ours["adapter"]["r"],
            epochs=ours["resolved"]["n_epochs"] if ours["resolved"] else None,
            steps=ours["resolved"]["steps"] if ours["resolved"] else None,
            epoch=ours["epoch"],
            created_at=job["created_at"],
            finished_at=job["finished_at"],
            tuned_model=job["fine_tuned_model"],
            trained_tokens=job["trained_tokens"],
            result_files=tuple(job["result_files"]),
            outcomes=tuple(attempt["outcome"] for attempt in ours["attempts"]),
            error=_failure(error | ours["error"]) if error and error["code"] else None,
        )


class RpcSurface:
    """Messages over gRPC."""

    def __init__(self, channel: Any) -> None:
        self._jobs, self._files, self._models = channel.jobs, channel.files, channel.models

    def upload(self, data: bytes, filename: str = "rows.jsonl", purpose: str = "fine-tune") -> File:
        digest = hashlib.sha256(data).hexdigest()
        start = files_pb2.UploadStart(filename=filename, purpose=purpose, bytes=len(data), sha256=digest)
        messages = [files_pb2.UploadFileRequest(start=start)]
        for offset in range(0, len(data), 2**20):
            chunk = types_pb2.Chunk(offset=offset, data=data[offset : offset + 2**20])
            messages.append(files_pb2.UploadFileRequest(chunk=chunk))
        return self._file(self._call(self._files.UploadFile, iter(messages)).file)

    def file(self, file_id: str) -> File:
        return self._file(self._call(self._files.GetFile, files_pb2.GetFileRequest(file_id=file_id)).file)

    def files(self, after: str | None = None, limit: int = 100) -> Page[File]:
        page = self._call(self._files.ListFiles, files_pb2.ListFilesRequest(after=after, limit=limit))
        return Page([self._file(file) for file in page.files], page.has_more)

    def delete_file(self, file_id: str) -> None:
        self._call(self._files.DeleteFile, files_pb2.DeleteFileRequest(file_id=file_id))

    def download(self, file_id: str) -> bytes:
        return self._bytes(self._files.DownloadFile, files_pb2.DownloadFileRequest(file_id=file_id))

    def check(self, file_id: str, **asked: Any) -> Report:
        request = message(files_pb2.ValidateDatasetRequest(file_id=file_id), asked)
        return self._report(self._call(self._files.ValidateDataset, request).report)

    def create(self, body: Body, key: str | None = None) -> Job:
        request = jobs_pb2.CreateJobRequest(spec=message(types_pb2.JobSpec(), body), idempotency_key=key)
        return self._job(self._call(self._jobs.CreateJob, request).job)

    def job(self, job_id: str) -> Job:
        return self._job(self._call(self._jobs.GetJob, jobs_pb2.GetJobRequest(job_id=job_id)).job)

    def jobs(self, after: str | None = None, limit: int = 100, metadata: dict[str, str] | None = None) -> Page[Job]:
        page = self._call(self._jobs.ListJobs, jobs_pb2.ListJobsRequest(after=after, limit=limit, metadata=metadata))
        return Page([self._job(job) for job in page.jobs], page.has_more)

    def cancel(self, job_id: str) -> Job:
        return self._job(self._call(self._jobs.CancelJob, jobs_pb2.CancelJobRequest(job_id=job_id)).job)

    def pause(self, job_id: str) -> Job:
        return self._job(self._call(self._jobs.PauseJob, jobs_pb2.PauseJobRequest(job_id=job_id)).job)

    def resume(self, job_id: str) -> Job:
        return self._job(self._call(self._jobs.ResumeJob, jobs_pb2.ResumeJobRequest(job_id=job_id)).job)

    def watch(self, job_id: str) -> list[Event]:
        updates = self._stream(self._jobs.WatchJob, jobs_pb2.WatchJobRequest(job_id=job_id))
        found = [update.event for update in updates if update.WhichOneof("update") == "event"]
        return [Event(e.seq, word(e, "level") or "", word(e, "type") or "", e.message, plain(e.data)) for e in found]

    def checkpoints(self, job_id: str, after: str | None = None, limit: int = 100) -> Page[Checkpoint]:
        page = self._call(self._jobs.ListCheckpoints, jobs_pb2.ListCheckpointsRequest(job_id=job_id, after=after, limit=limit))
        return Page([Checkpoint(c.id, c.model, c.step, c.metrics.get("train_loss")) for c in page.checkpoints], page.has_more)

    def artifacts(self, job_id: str) -> list[Artifact]:
        listed = self._call(self._jobs.ListArtifacts, jobs_pb2.ListArtifactsRequest(job_id=job_id)).artifacts
        return [Artifact(a.name, a.bytes, a.sha256) for a in listed]

    def artifact(self, job_id: str, name: str) -> bytes:
        return self._bytes(self._jobs.DownloadArtifact, jobs_pb2.DownloadArtifactRequest(job_id=job_id, name=name))

    def models(self) -> list[Model]:
        return [self._model(model) for model in self._call(self._models.ListModels, models_pb2.ListModelsRequest()).models]

    def model(self, name: str) -> Model:
        return self._model(self._call(self._models.GetModel, models_pb2.GetModelRequest(model=name)).model)

    def delete_model(self, name: str) -> None:
        self._call(self._models.DeleteModel, models_pb2.DeleteModelRequest(model=name))

    def estimate(self, body: Body) -> Estimate:
        request = jobs_pb2.EstimateJobRequest(spec=message(types_pb2.JobSpec(), body))
        found = self._call(self._jobs.EstimateJob, request).estimate
        return Estimate(
            ok=found.ok,
            steps=found.resolved.steps if found.HasField("resolved") else None,
            trained_tokens=optional(found, "trained_tokens"),
            memory=found.plan.memory.total if found.HasField("plan") else None,
            fits=optional(found.placement, "fits") if found.HasField("placement") else None,
            training=self._report(found.training),
        )

    @staticmethod
    def _call(method: Any, request: Any) -> Any:
        with _told(grpc.RpcError, _of_rpc_error):
            return method(request, timeout=60)

    @staticmethod
    def _stream(method: Any, request: Any) -> list[Any]:
        with _told(grpc.RpcError, _of_rpc_error):
            return list(method(request, timeout=60))

    def _bytes(self, method: Any, request: Any) -> bytes:
        first, *rest = self._stream(method, request)
        data = b"".join(piece.chunk.data for piece in rest)
        assert (len(data), hashlib.sha256(data).hexdigest()) == (first.content.bytes, first.content.sha256)
        return data

    @staticmethod
    def _file(file: types_pb2.File) -> File:
        return File(file.id, file.filename, file.purpose, file.bytes, file.create_time.ToSeconds())

    @staticmethod
    def _model(model: models_pb2.Model) -> Model:
        return Model(model.id, model.owned_by, optional(model, "job_id"), optional(model, "base_model"))

    @staticmethod
    def _report(report: Any) -> Report:
        faults = tuple(Fault(optional(f, "line"), f.path, f.rule, f.message) for f in report.faults)
        counts = {name: getattr(report, name) for name in ("ok", "summary", "rows", "tokens", "trained_tokens", "fault_count")}
        return Report(faults=faults, **counts)

    @staticmethod
    def _job(job: types_pb2.Job) -> Job:
        done = job.HasField("resolved")
        error = job.error
        failed = {"code": error.code, "message": error.message, "param": optional(error, "param"), "details": plain(error.details)}
        return Job(
            id=job.id,
            phase=word(job, "status") or "",
            model=job.spec.model,
            training_file=job.spec.training_file,
            seed=job.spec.seed,
            suffix=optional(job.spec, "suffix"),
            metadata=dict(job.spec.metadata),
            r=job.spec.tunesmith.adapter.r,
            epochs=job.resolved.n_epochs if done else None,
            steps=job.resolved.steps if done else None,
            epoch=job.epoch,
            created_at=job.create_time.ToSeconds(),
            finished_at=job.finish_time.ToSeconds() if job.HasField("finish_time") else None,
            tuned_model=job.tuned_model or None,
            trained_tokens=optional(job, "trained_tokens"),
            result_files=tuple(job.result_files),
            outcomes=tuple(word(attempt, "outcome") for attempt in job.attempts),
            error=_failure(failed | {"cause": word(error, "cause")}) if job.HasField("error") else None,
        )


def _of_rpc_error(error: grpc.RpcError) -> Refusal:
    said = refusal(error)
    kinds: dict[grpc.StatusCode, Kind] = {
        grpc.StatusCode.INVALID_ARGUMENT: "invalid",
        grpc.StatusCode.UNAUTHENTICATED: "unauthenticated",
        grpc.StatusCode.PERMISSION_DENIED: "forbidden",
        grpc.StatusCode.NOT_FOUND: "missing",
        grpc.StatusCode.RESOURCE_EXHAUSTED: "exhausted",
    }
    # Two fields have other names in messages.
    param = {"job_id": "fine_tuning_job_id", "idempotency_key": "Idempotency-Key"}.get(said.field or "", said.field)
    return Refusal(kinds.get(said.code, "broken"), said.reason or "", said.message, param)


@dataclass(frozen=True)
class Surfaces:
    """The three, with one key."""

    app: AppSurface
    rest: RestSurface
    rpc: RpcSurface

    def named(self, name: str) -> Surface:
        return getattr(self, name)

    def agree(self, ask: Callable[[Surface], T]) -> T:
        """What all three answer, or refuse, alike."""
        first, *others = (answered(ask, surface) for surface in (self.app, self.rest, self.rpc))
        assert others == [first, first], f"the application says {first}, REST {others[0]}, gRPC {others[1]}"
        if isinstance(first, Refusal):
            raise first
        return first


def answered(ask: Callable[[Surface], T], surface: Surface) -> T | Refusal:
    """The answer, or the refusal."""
    try:
        return ask(surface)
    except Refusal as refused:
        return refused


@contextmanager
def surfaces(gateway: Gateway, key: str) -> Iterator[Surfaces]:
    """The gateway by its three surfaces."""
    with gateway.http(key) as http, connected(gateway.rpc_address, key) as channel:
        yield Surfaces(AppSurface(gateway, key), RestSurface(http), RpcSurface(channel))
