"""The public gRPC API on a whole gateway: every call, as a client and as another project, and what is refused."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import duration_pb2
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from protos.tunesmith.v1 import files_pb2, jobs_pb2, models_pb2, reports_pb2, runs_pb2, types_pb2
from service.rpc import uploads
from service.runtime import Capacity, RunState
from tests.gateway import MODEL, Gateway, running_gateway
from tests.rpc_client import Client, connected, refused

ROOT = Path(__file__).parents[2]
TWEETS = ROOT / "examples" / "tweets" / "tweets-test.jsonl"
SERVICES = [(jobs_pb2, "Jobs"), (files_pb2, "Files"), (models_pb2, "Models")]
METHODS: list[MethodDescriptor] = [method for pb, name in SERVICES for method in pb.DESCRIPTOR.services_by_name[name].methods]
ADAPTER = "adapter/adapter_model.safetensors"
TINY_ROWS = b'{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}\n' * 12


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with running_gateway(tmp_path_factory.mktemp("rpc"), cancel_grace=timedelta(seconds=0.2)) as running:
        running.runtime.total = Capacity(cpus=64, gpus=0, nodes=32)
        yield running


@pytest.fixture(scope="module")
def client(gateway: Gateway) -> Iterator[Client]:
    with connected(gateway.rpc_address, gateway.key) as connection:
        yield connection


@pytest.fixture(scope="module")
def stranger(gateway: Gateway) -> Iterator[Client]:
    """A client of another project."""
    with connected(gateway.rpc_address, gateway.other_key()) as connection:
        yield connection


@pytest.fixture(scope="module")
def file_id(client: Client) -> str:
    return upload(client, TWEETS.read_bytes()).file.id


@dataclass(frozen=True)
class Finished:
    """A job that has succeeded, and its one artifact."""

    job_id: str
    model: str
    artifact: bytes


@pytest.fixture(scope="module")
def finished(gateway: Gateway, client: Client, file_id: str) -> Finished:
    job_id = create(client, file_id).id
    artifact = finish(gateway, job_id)
    until(lambda: job_of(client, job_id).status == types_pb2.JOB_STATUS_SUCCEEDED)
    return Finished(job_id, job_of(client, job_id).tuned_model, artifact)


def finish(gateway: Gateway, job_id: str) -> bytes:
    """What a worker would do is told through Runs; the bytes of the adapter it has published."""
    run = f"{job_id}-1"
    until(lambda: run in gateway.runtime.runs)
    artifact = os.urandom(3 * 2**20 + 5)
    files = {"metrics.csv": b"step\n", ADAPTER: artifact}
    entries = [{"name": name, "bytes": len(data), "sha256": sha256(data)} for name, data in files.items()]
    manifest = json.dumps({"files": entries}).encode()
    for name, data in {**files, "manifest.json": manifest}.items():
        gateway.parts.storage.put(f"models/{job_id}/1/{name}", data)
    saved = runs_pb2.CheckpointSaved(step=2, prefix=f"runs/{job_id}/1/checkpoints/step-2", manifest_sha256="0" * 64, bytes=1)
    reports = [
        runs_pb2.RunReport(seq=1, started=runs_pb2.Started(world_size=1, total_steps=4)),
        runs_pb2.RunReport(seq=2, step=runs_pb2.StepDone(step=1, train_loss=float("nan"), learning_rate=1e-4)),
        runs_pb2.RunReport(seq=3, step=runs_pb2.StepDone(step=2, train_loss=1.5, train_mean_token_accuracy=0.5, learning_rate=1e-4)),
        runs_pb2.RunReport(seq=4, checkpoint=saved),
        runs_pb2.RunReport(seq=5, finished=runs_pb2.Finished(last_step=4, manifest_sha256=sha256(manifest), trained_tokens=256)),
    ]
    token = gateway.parts.storage.get(f"runs/{job_id}/1/token").decode()
    with connected(gateway.rpc_address, token) as worker:
        answer = worker.runs.Report(runs_pb2.ReportRequest(job_id=job_id, epoch=1, reports=reports))
    assert (answer.acknowledged, answer.directive) == (5, runs_pb2.DIRECTIVE_CONTINUE)
    gateway.runtime.ends(run, RunState.SUCCEEDED)
    return artifact


# Jobs


def test_a_job_is_created_with_what_was_asked_for_and_every_default(client: Client, file_id: str) -> None:
    spec = types_pb2.JobSpec(
        model=MODEL,
        training_file=file_id,
        validation_file=file_id,
        suffix="mine",
        seed=7,
        metadata={"team": "a"},
        method=supervised(n_epochs=2),
        tunesmith=types_pb2.TunesmithSpec(
            adapter=types_pb2.AdapterSpec(type=types_pb2.ADAPTER_TYPE_LORA, r=8, target_modules=["q_proj"]),
            training=types_pb2.TrainingSpec(schedule=types_pb2.SCHEDULE_LINEAR, learning_rate=1e-3),
            evaluation=types_pb2.EvaluationSpec(early_stopping=types_pb2.EarlyStopping(patience=5)),
            priority=-3,
        ),
    )
    job = client.jobs.CreateJob(jobs_pb2.CreateJobRequest(spec=spec)).job
    assert job.id.startswith("ftjob-")
    assert job.status == types_pb2.JOB_STATUS_VALIDATING
    assert time.time() - job.create_time.ToSeconds() < 60
    assert (job.spec.seed, job.spec.suffix, dict(job.spec.metadata)) == (7, "mine", {"team": "a"})
    given, defaults = job.spec.tunesmith, job.spec.tunesmith.adapter
    assert (given.adapter.r, list(given.adapter.target_modules), given.training.schedule) == (8, ["q_proj"], types_pb2.SCHEDULE_LINEAR)
    assert (defaults.alpha, given.training.max_length, given.checkpoints.keep, given.priority) == (32, 1024, 3, -3)
    assert given.evaluation.early_stopping.patience == 5
    hyperparameters = job.spec.method.supervised.hyperparameters
    assert hyperparameters.n_epochs == 2
    assert not hyperparameters.HasField("batch_size")
    assert not job.HasField("resolved")
    until(lambda: job_of(client, job.id).HasField("resolved"))
    assert job_of(client, job.id).resolved.n_epochs == 2
    client.jobs.CancelJob(jobs_pb2.CancelJobRequest(job_id=job.id))


def test_rest_and_grpc_see_the_same_job(gateway: Gateway, client: Client, finished: Finished) -> None:
    job = job_of(client, finished.job_id)
    with gateway.http() as http:
        wire = http.get(f"/v1/fine_tuning/jobs/{finished.job_id}").json()
    assert (wire["fine_tuned_model"], wire["created_at"], wire["seed"]) == (job.tuned_model, job.create_time.ToSeconds(), job.spec.seed)
    assert wire["finished_at"] == job.finish_time.ToSeconds()
    assert wire["result_files"] == list(job.result_files)
    assert wire["trained_tokens"] == job.trained_tokens == 256
    assert wire["hyperparameters"]["n_epochs"] == job.resolved.n_epochs
    assert [(a.epoch, a.outcome) for a in job.attempts] == [(1, types_pb2.ATTEMPT_OUTCOME_SUCCEEDED)]


def test_an_idempotency_key_makes_one_job(client: Client, file_id: str) -> None:
    request = jobs_pb2.CreateJobRequest(spec=spec_of(file_id, suffix="once"), idempotency_key="k-1")
    first, again = (client.jobs.CreateJob(request).job.id for _ in range(2))
    assert first == again
    with refused(grpc.StatusCode.INVALID_ARGUMENT) as found:
        client.jobs.CreateJob(jobs_pb2.CreateJobRequest(spec=spec_of(file_id, suffix="twice"), idempotency_key="k-1"))
    assert found[0].field == "idempotency_key"
    for bad in ("", "x" * 256, "ü"):
        with refused(grpc.StatusCode.INVALID_ARGUMENT) as found:
            client.jobs.CreateJob(jobs_pb2.CreateJobRequest(spec=spec_of(file_id), idempotency_key=bad))
        assert found[0].field == "idempotency_key"
    client.jobs.CancelJob(jobs_pb2.CancelJobRequest(job_id=first))


def supervised(**hyperparameters: Any) -> types_pb2.Method:
    block = types_pb2.SupervisedMethod(hyperparameters=types_pb2.Hyperparameters(**hyperparameters))
    return types_pb2.Method(type="supervised", supervised=block)


def adapter(**fields: Any) -> dict[str, Any]:
    return {"tunesmith": types_pb2.TunesmithSpec(adapter=types_pb2.AdapterSpec(**fields))}


def training(**fields: Any) -> dict[str, Any]:
    return {"tunesmith": types_pb2.TunesmithSpec(training=types_pb2.TrainingSpec(**fields))}


def wandb(**fields: Any) -> dict[str, Any]:
    settings = types_pb2.WandbIntegration(**fields)
    return {"integrations": [types_pb2.Integration(type=types_pb2.INTEGRATION_TYPE_WANDB, wandb=settings)]}


BAD_SPECS: list[tuple[dict[str, Any], str]] = [
    ({"model": ""}, "model"),
    ({"model": "nobody/knows"}, "model"),
    ({"training_file": ""}, "training_file"),
    ({"training_file": "file-unknown"}, "training_file"),
    ({"suffix": "not a suffix"}, "suffix"),
    ({"seed": 2**31}, "seed"),
    ({"metadata": {"a": "b\0"}}, "metadata.a"),
    ({"metadata": {"a\n": "b"}}, "metadata"),
    ({"metadata": {"x" * 65: "b"}}, "metadata"),
    ({"metadata": {str(n): "b" for n in range(17)}}, "metadata"),
    ({"method": types_pb2.Method()}, "method.type"),
    ({"method": types_pb2.Method(type="magic")}, "method.type"),
    ({"method": supervised(n_epochs=51)}, "method.supervised.hyperparameters.n_epochs"),
    ({"method": supervised(learning_rate_multiplier=-1.0)}, "method.supervised.hyperparameters.learning_rate_multiplier"),
    (adapter(r=0), "tunesmith.adapter.r"),
    (adapter(target_modules=["no_such"]), "tunesmith.adapter.target_modules"),
    (adapter(target_modules=["q_proj\x7f"]), "tunesmith.adapter.target_modules[0]"),
    (training(learning_rate=float("nan")), "tunesmith.training.learning_rate"),
    (training(learning_rate=float("inf")), "tunesmith.training.learning_rate"),
    (training(max_length=2**32 - 1), "tunesmith.training.max_length"),
    ({"tunesmith": types_pb2.TunesmithSpec(priority=101)}, "tunesmith.priority"),
    (wandb(project="p"), "integrations"),  # the operator does not allow it
    (wandb(project="a/b"), "integrations[0].wandb.project"),
    ({"integrations": [types_pb2.Integration()]}, "integrations[0].type"),
]


@pytest.mark.parametrize(("bad", "field"), BAD_SPECS)
def test_a_bad_spec_is_refused_at_its_field(client: Client, file_id: str, bad: dict[str, Any], field: str) -> None:
    spec = types_pb2.JobSpec(**{"model": MODEL, "training_file": file_id} | bad)
    with refused(grpc.StatusCode.INVALID_ARGUMENT) as found:
        client.jobs.CreateJob(jobs_pb2.CreateJobRequest(spec=spec))
    assert found[0].field == field


def test_both_transports_refuse_with_the_same_words(gateway: Gateway, client: Client, file_id: str) -> None:
    body: dict[str, Any] = {"model": MODEL, "training_file": file_id, "tunesmith": {"adapter": {"r": 513}}}
    with gateway.http() as http:
        error = http.post("/v1/fine_tuning/jobs", json=body).json()["error"]
    spec = spec_of(file_id, tunesmith=types_pb2.TunesmithSpec(adapter=types_pb2.AdapterSpec(r=513)))
    with refused(grpc.StatusCode.INVALID_ARGUMENT) as found:
        client.jobs.CreateJob(jobs_pb2.CreateJobRequest(spec=spec))
    assert (found[0].message, found[0].field, found[0].reason) == (error["message"], error["param"], error["code"])


def test_settings_that_the_server_does_not_know_are_refused(client: Client, file_id: str) -> None:
    spec = spec_of(file_id, tunesmith=types_pb2.TunesmithSpec(training=types_pb2.TrainingSpec(overlong=77)))  # type: ignore[arg-type]
    with refused(grpc.StatusCode.INVALID_ARGUMENT) as found:
        client.jobs.CreateJob(jobs_pb2.CreateJobRequest(spec=spec))
    assert found[0].field == "tunesmith.training.overlong"
    newer = spec_of(file_id)
    newer.tunesmith.training.MergeFromString(b"\xc0\x3e\x01")  # field 1000
    with refused(grpc.StatusCode.INVALID_ARGUMENT) as found:
        client.jobs.CreateJob(jobs_pb2.CreateJobRequest(spec=newer))
    assert found[0].field == "tunesmith.training"
    assert "1000" in found[0].message


def test_jobs_are_listed_in_pages(client: Client, file_id: str) -> None:
    made = [create(client, file_id, metadata={"list": "me"}).id for _ in range(3)]
    first = client.jobs.ListJobs(jobs_pb2.ListJobsRequest(limit=2, metadata={"list": "me"}))
    assert ([job.id for job in first.jobs], first.has_more) == (made[:0:-1], True)
    rest = client.jobs.ListJobs(jobs_pb2.ListJobsRequest(limit=2, metadata={"list": "me"}, after=first.jobs[-1].id))
    assert ([job.id for job in rest.jobs], rest.has_more) == (made[:1], False)
    for bad, field in (
        ({"limit": 0}, "limit"),
        ({"limit": 1001}, "limit"),
        ({"after": "nobody"}, "after"),
        ({"after": "../x"}, "after"),
        ({"metadata": {"x" * 65: "y"}}, "metadata"),
        ({"metadata": {"x": "y\x1f"}}, "metadata"),
        ({"metadata": {"x": "y"}, "without_metadata": True}, "without_metadata"),
    ):
        with refused(grpc.StatusCode.INVALID_ARGUMENT) as found:
            client.jobs.ListJobs(jobs_pb2.ListJobsRequest(**bad))
        assert found[0].field == field
    plain = create(client, file_id).id
    assert [job.id for job in client.jobs.ListJobs(jobs_pb2.ListJobsRequest(limit=1, without_metadata=True)).jobs] == [plain]
    for job_id in (*made, plain):
        client.jobs.CancelJob(jobs_pb2.CancelJobRequest(job_id=job_id))


def test_pause_resume_and_cancel(gateway: Gateway, client: Client, file_id: str) -> None:
    gateway.runtime.total = Capacity(cpus=0, gpus=0, nodes=1)
    try:
        job_id = create(client, file_id).id
        until(lambda: job_of(client, job_id).status == types_pb2.JOB_STATUS_QUEUED)
        assert job_of(client, job_id).queue_position >= 1
        assert client.jobs.PauseJob(jobs_pb2.PauseJobRequest(job_id=job_id)).job.status == types_pb2.JOB_STATUS_PAUSED
        assert client.jobs.ResumeJob(jobs_pb2.ResumeJobRequest(job_id=job_id)).job.status == types_pb2.JOB_STATUS_QUEUED
        with refused(grpc.StatusCode.INVALID_ARGUMENT) as found:
            client.jobs.ResumeJob(jobs_pb2.ResumeJobRequest(job_id=job_id))
        assert found[0].field == "job_id"
        assert client.jobs.CancelJob(jobs_pb2.CancelJobRequest(job_id=job_id)).job.status == types_pb2.JOB_STATUS_CANCELLED
        with refused(grpc.StatusCode.INVALID_ARGUMENT):
            client.jobs.CancelJob(jobs_pb2.CancelJobRequest(job_id=job_id))
    finally:
        gateway.runtime.total = Capacity(cpus=64, gpus=0, nodes=32)


def test_a_failed_job_says_why(client: Client) -> None:
    bad = upload(client, b'{"nothing": 1}\n' * 12).file.id
    job_id = create(client, bad).id
    until(lambda: job_of(client, job_id).status == types_pb2.JOB_STATUS_FAILED)
    error = job_of(client, job_id).error
    assert (error.code, error.param, error.cause) == ("invalid_training_file", "training_file", types_pb2.ERROR_CAUSE_DATA)
    assert error.details["report"]["faults"][0]["line"] == 1


def test_checkpoints_and_artifacts(client: Client, finished: Finished, file_id: str) -> None:
    page = client.jobs.ListCheckpoints(jobs_pb2.ListCheckpointsRequest(job_id=finished.job_id))
    [checkpoint] = page.checkpoints
    assert (checkpoint.step, checkpoint.job_id, page.has_more) == (2, finished.job_id, False)
    assert checkpoint.metrics["train_loss"] == 1.5
    listed = client.jobs.ListArtifacts(jobs_pb2.ListArtifactsRequest(job_id=finished.job_id)).artifacts
    assert {a.name: (a.bytes, a.sha256) for a in listed}[ADAPTER] == (
        len(finished.artifact),
        sha256(finished.artifact),
    )
    unfinished = create(client, file_id).id
    with refused(grpc.StatusCode.INVALID_ARGUMENT) as found:
        client.jobs.ListArtifacts(jobs_pb2.ListArtifactsRequest(job_id=unfinished))
    assert found[0].field == "job_id"
    client.jobs.CancelJob(jobs_pb2.CancelJobRequest(job_id=unfinished))


@pytest.mark.parametrize("offset", [0, 1, 2**20 + 7, 3 * 2**20 + 4])
def test_an_artifact_is_downloaded_from_any_offset(client: Client, finished: Finished, offset: int) -> None:
    request = jobs_pb2.DownloadArtifactRequest(job_id=finished.job_id, name=ADAPTER, offset=offset)
    content, data = downloaded(client.jobs.DownloadArtifact(request), offset)
    assert (content.filename, content.bytes, content.sha256) == (
        "adapter_model.safetensors",
        len(finished.artifact),
        sha256(finished.artifact),
    )
    assert data == finished.artifact[offset:]


def test_an_offset_at_and_behind_the_end(client: Client, finished: Finished) -> None:
    size = len(finished.artifact)
    request = jobs_pb2.DownloadArtifactRequest(job_id=finished.job_id, name=ADAPTER, offset=size)
    assert downloaded(client.jobs.DownloadArtifact(request), size)[1] == b""
    request.offset += 1
    with refused(grpc.StatusCode.OUT_OF_RANGE) as found:
        list(client.jobs.DownloadArtifact(request))
    assert found[0].reason == "out_of_range"
    for name in ("", "../metrics.csv", "/etc/passwd", "adapter//x", "nothing", "\0"):
        with refused(grpc.StatusCode.NOT_FOUND):
            list(client.jobs.DownloadArtifact(jobs_pb2.DownloadArtifactRequest(job_id=finished.job_id, name=name)))


def test_a_watch_tells_everything_once_and_ends(client: Client, finished: Finished) -> None:
    updates = list(client.jobs.WatchJob(jobs_pb2.WatchJobRequest(job_id=finished.job_id)))
    events = [update.event for update in updates if update.WhichOneof("update") == "event"]
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    assert events[0].message == f"Created fine-tuning job: {finished.job_id}"
    assert events[0].level == types_pb2.EVENT_LEVEL_INFO
    [first, second] = [event for event in events if event.type == types_pb2.EVENT_TYPE_METRICS]
    assert first.data["step"] == 1
    assert first.data.fields["train_loss"].HasField("null_value")
    assert second.data["train_loss"] == 1.5
    assert updates[-1].job.status == types_pb2.JOB_STATUS_SUCCEEDED
    again = list(client.jobs.WatchJob(jobs_pb2.WatchJobRequest(job_id=finished.job_id, after_seq=events[-2].seq)))
    assert [update.event.seq for update in again if update.WhichOneof("update") == "event"] == [events[-1].seq]
    last = list(client.jobs.WatchJob(jobs_pb2.WatchJobRequest(job_id=finished.job_id, after_seq=-2)))
    assert [update.event.seq for update in last if update.WhichOneof("update") == "event"] == [events[-2].seq, events[-1].seq]


def test_a_watch_follows_a_job(client: Client, file_id: str) -> None:
    job_id = create(client, file_id).id
    seen: list[str] = []
    for update in client.jobs.WatchJob(jobs_pb2.WatchJobRequest(job_id=job_id), timeout=30):
        if update.WhichOneof("update") == "event":
            seen.append(update.event.message)
            if len(seen) == 1:
                client.jobs.CancelJob(jobs_pb2.CancelJobRequest(job_id=job_id))
    assert update.job.status == types_pb2.JOB_STATUS_CANCELLED
    assert seen[-1] == "The job has been cancelled"


def test_a_cancelled_watch_leaves_nothing_behind(gateway: Gateway, client: Client, file_id: str) -> None:
    job_id = create(client, file_id).id
    before = gateway.app.watches.open
    streams = [client.jobs.WatchJob(jobs_pb2.WatchJobRequest(job_id=job_id)) for _ in range(20)]
    for stream in streams:
        next(stream)
    assert gateway.app.watches.open == before + 20
    for stream in streams:
        stream.cancel()
    until(lambda: gateway.app.watches.open == before)
    client.jobs.CancelJob(jobs_pb2.CancelJobRequest(job_id=job_id))


def test_an_estimate(client: Client, file_id: str) -> None:
    estimate = client.jobs.EstimateJob(jobs_pb2.EstimateJobRequest(spec=spec_of(file_id))).estimate
    assert estimate.ok
    assert estimate.training.rows > 100
    assert estimate.plan.memory.total > estimate.plan.memory.weights > 0
    assert list(estimate.plan.reasons)
    assert estimate.resolved.steps > 0
    assert estimate.placement.fits
    counts = reports_pb2.DataCounts(rows=100, tokens=10_000, trained_tokens=5_000, longest=200)
    spec = spec_of("file-not-here")
    counted = client.jobs.EstimateJob(jobs_pb2.EstimateJobRequest(spec=spec, data=reports_pb2.CountedData(training=counts))).estimate
    assert counted.ok
    assert not counted.HasField("training")
    with refused(grpc.StatusCode.INVALID_ARGUMENT) as found:
        counts.rows = 0
        client.jobs.EstimateJob(jobs_pb2.EstimateJobRequest(spec=spec, data=reports_pb2.CountedData(training=counts)))
    assert found[0].field == "data.training.rows"


# Files


def test_a_file_goes_up_and_comes_down(client: Client) -> None:
    data = os.urandom(2 * uploads.PART_BYTES + 12345)
    answer = upload(client, data, filename="dir/../rows.jsonl")
    assert answer.received_bytes == len(data)
    file = answer.file
    assert (file.filename, file.purpose, file.bytes, file.sha256) == ("rows.jsonl", "fine-tune", len(data), sha256(data))
    assert not file.HasField("expire_time")
    assert client.files.GetFile(files_pb2.GetFileRequest(file_id=file.id)).file == file
    content, back = downloaded(client.files.DownloadFile(files_pb2.DownloadFileRequest(file_id=file.id)))
    assert (content.sha256, back) == (sha256(data), data)
    offset = len(data) - 100
    assert downloaded(client.files.DownloadFile(files_pb2.DownloadFileRequest(file_id=file.id, offset=offset)), offset)[1] == data[-100:]
    client.files.DeleteFile(files_pb2.DeleteFileRequest(file_id=file.id))
    with refused(grpc.StatusCode.NOT_FOUND) as found:
        client.files.GetFile(files_pb2.GetFileRequest(file_id=file.id))
    assert (found[0].field, found[0].reason) == ("file_id", "file_not_found")


def test_an_upload_goes_on_where_it_was_broken_off(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "PART_BYTES", 2**20)
    data = os.urandom(5 * 2**20 + 1)
    begun = start(data)
    sent = threading.Event()

    def broken() -> Iterator[files_pb2.UploadFileRequest]:
        yield files_pb2.UploadFileRequest(start=begun)
        yield from chunks(data[: 3 * 2**20 + 17])
        sent.set()
        time.sleep(30)

    call = client.files.UploadFile.future(broken())
    upload_id = dict(call.initial_metadata())["x-upload-id"]
    assert sent.wait(10)
    until(lambda: status(client, upload_id).received_bytes == 3 * 2**20)
    call.cancel()
    facts = status(client, upload_id)
    assert (facts.status, facts.bytes, facts.HasField("file")) == (files_pb2.UPLOAD_STATUS_PENDING, len(data), False)
    begun.upload_id = upload_id
    asked = client.files.UploadFile(iter([files_pb2.UploadFileRequest(start=begun)]))
    assert (asked.upload_id, asked.received_bytes, asked.HasField("file")) == (upload_id, 3 * 2**20, False)
    answer = send(client, begun, data, asked.received_bytes)
    assert (answer.file.bytes, answer.file.sha256) == (len(data), sha256(data))
    facts = status(client, upload_id)
    assert (facts.status, facts.received_bytes, facts.file.id) == (files_pb2.UPLOAD_STATUS_COMPLETED, len(data), answer.file.id)
    repeated = client.files.UploadFile(iter([files_pb2.UploadFileRequest(start=begun)]))
    assert repeated.file == answer.file


def test_an_upload_in_two_calls_that_both_end(client: Client) -> None:
    data = os.urandom(1000)
    begun = start(data)
    half = client.files.UploadFile(iter([files_pb2.UploadFileRequest(start=begun), *chunks(data[:400])]))
    assert (half.received_bytes, half.HasField("file")) == (400, False)
    begun.upload_id = half.upload_id
    assert send(client, begun, data, 400).file.sha256 == sha256(data)


def test_bytes_of_another_hash_are_not_kept(client: Client) -> None:
    files = len(client.files.ListFiles(files_pb2.ListFilesRequest()).files)
    begun = start(b"what was meant")
    with refused(grpc.StatusCode.INVALID_ARGUMENT) as found:
        send(client, begun, b"what was sent!")
    assert found[0].field == "sha256"
    assert len(client.files.ListFiles(files_pb2.ListFilesRequest()).files) == files


def test_an_upload_that_is_wrong(client: Client) -> None:
    begun = start(b"0123456789")

    def wrong(field: str, code: grpc.StatusCode, *messages: files_pb2.UploadFileRequest, **changes: Any) -> None:
        first = files_pb2.UploadStart()
        first.CopyFrom(begun)
        first.MergeFrom(files_pb2.UploadStart(**changes))
        with refused(code) as found:
            client.files.UploadFile(iter([files_pb2.UploadFileRequest(start=first), *messages]))
        assert found[0].field == field

    def chunk(offset: int, data: bytes) -> files_pb2.UploadFileRequest:
        return files_pb2.UploadFileRequest(chunk=types_pb2.Chunk(offset=offset, data=data))

    bad = grpc.StatusCode.INVALID_ARGUMENT
    wrong("sha256", bad, sha256="ABC")
    wrong("purpose", bad, purpose="vision")
    wrong("bytes", bad, bytes=2**40)
    wrong("chunk.offset", bad, chunk(1, b"0"))
    wrong("chunk.offset", bad, chunk(0, b"01"), chunk(3, b"3"))
    wrong("bytes", bad, chunk(0, b"0123456789x"))
    wrong("chunk", bad, files_pb2.UploadFileRequest(start=begun))
    wrong("chunk.data", grpc.StatusCode.RESOURCE_EXHAUSTED, chunk(0, bytes(2**20 + 1)))
    wrong("upload_id", grpc.StatusCode.NOT_FOUND, upload_id="upload_unknown")
    wrong("upload_id", grpc.StatusCode.NOT_FOUND, upload_id="../x")
    with refused(bad) as found:
        client.files.UploadFile(iter([chunk(0, b"0")]))
    assert found[0].field == "start"
    with refused(bad):
        client.files.UploadFile(iter([]))
    half = client.files.UploadFile(iter([files_pb2.UploadFileRequest(start=begun)]))
    wrong("upload_id", bad, upload_id=half.upload_id, bytes=11)


def test_a_file_may_go_by_itself(client: Client) -> None:
    expires = duration_pb2.Duration(seconds=7200)
    file = upload(client, TINY_ROWS, expires_after=expires).file
    assert abs(file.expire_time.ToSeconds() - file.create_time.ToSeconds() - 7200) <= 1
    with refused(grpc.StatusCode.INVALID_ARGUMENT):
        upload(client, TINY_ROWS, expires_after=duration_pb2.Duration(seconds=1))
    with refused(grpc.StatusCode.INVALID_ARGUMENT):
        upload(client, TINY_ROWS, expires_after=duration_pb2.Duration(seconds=315_576_000_001))


def test_files_are_listed_in_pages(stranger: Client) -> None:
    made = [upload(stranger, TINY_ROWS, filename=f"{n}.jsonl").file.id for n in range(3)]
    first = stranger.files.ListFiles(files_pb2.ListFilesRequest(limit=2))
    assert ([file.id for file in first.files], first.has_more) == (made[:0:-1], True)
    rest = stranger.files.ListFiles(files_pb2.ListFilesRequest(limit=2, after=first.files[-1].id, purpose="fine-tune"))
    assert ([file.id for file in rest.files], rest.has_more) == (made[:1], False)
    oldest = stranger.files.ListFiles(files_pb2.ListFilesRequest(order=files_pb2.FILE_ORDER_ASCENDING, limit=1))
    assert [file.id for file in oldest.files] == made[:1]
    for bad, field in (({"limit": 10_001}, "limit"), ({"order": 9}, "order"), ({"purpose": "A"}, "purpose"), ({"after": "\n"}, "after")):
        with refused(grpc.StatusCode.INVALID_ARGUMENT) as found:
            stranger.files.ListFiles(files_pb2.ListFilesRequest(**bad))
        assert found[0].field == field


def test_a_dataset_is_validated(client: Client, file_id: str) -> None:
    request = files_pb2.ValidateDatasetRequest(file_id=file_id, model=MODEL, preview=2)
    report = client.files.ValidateDataset(request).report
    assert report.ok
    assert report.rows == report.examples > 100
    assert report.failure == reports_pb2.CHECK_FAILURE_UNSPECIFIED
    assert report.param == reports_pb2.DATASET_PURPOSE_TRAINING_FILE
    assert [any(part.trained for part in row.parts) for row in report.preview] == [True, True]
    faulty = upload(client, b"not json\n" + TINY_ROWS).file.id
    report = client.files.ValidateDataset(files_pb2.ValidateDatasetRequest(file_id=faulty, model=MODEL)).report
    assert (report.ok, report.fault_count, report.faults[0].line, report.faults[0].rule) == (False, 1, 1, "bad_json")
    assert dict(report.faults_by_rule) == {"bad_json": 1}
    for bad, field in (
        ({"model": ""}, "model"),
        ({"method": "magic"}, "method"),
        ({"preview": 6}, "preview"),
        ({"purpose": 9}, "purpose"),
        ({"training": types_pb2.TrainingSpec(max_length=131_073)}, "training.max_length"),
    ):
        with refused(grpc.StatusCode.INVALID_ARGUMENT) as found:
            client.files.ValidateDataset(files_pb2.ValidateDatasetRequest(**{"file_id": file_id, "model": MODEL} | bad))
        assert found[0].field == field


# Models


def test_models(client: Client, finished: Finished) -> None:
    models = {model.id: model for model in client.models.ListModels(models_pb2.ListModelsRequest()).models}
    assert {MODEL, finished.model} <= models.keys()
    assert models[finished.model].job_id == finished.job_id
    assert (models[MODEL].base_model, models[MODEL].HasField("job_id")) == (MODEL, False)
    assert client.models.GetModel(models_pb2.GetModelRequest(model=finished.model)).model == models[finished.model]
    with refused(grpc.StatusCode.PERMISSION_DENIED):
        client.models.DeleteModel(models_pb2.DeleteModelRequest(model=MODEL))
    for name in ("", "nobody", "a b", "\0", "x" * 600):
        with refused(grpc.StatusCode.NOT_FOUND) as found:
            client.models.GetModel(models_pb2.GetModelRequest(model=name))
        assert found[0].field == "model"


# Every method


def names_of(method: MethodDescriptor) -> set[str]:
    return {field.name for field in method.input_type.fields}


def is_streaming(method: MethodDescriptor) -> tuple[bool, bool]:
    return method.client_streaming, method.server_streaming


def call(channel: grpc.Channel, method: MethodDescriptor, request: Any, key: str | None = None) -> Any:
    """The method, whatever its kind, with one message; the answer, or the list of them."""
    kinds = {
        (False, False): channel.unary_unary,
        (False, True): channel.unary_stream,
        (True, False): channel.stream_unary,
        (True, True): channel.stream_stream,
    }
    stub = kinds[is_streaming(method)](
        f"/{method.containing_service.full_name}/{method.name}",
        request_serializer=lambda message: message.SerializeToString(),
        response_deserializer=GetMessageClass(method.output_type).FromString,
    )
    metadata = [] if key is None else [("authorization", f"Bearer {key}")]
    answer = stub(iter([request]) if method.client_streaming else request, metadata=metadata, timeout=20)
    return list(answer) if method.server_streaming else answer


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
@pytest.mark.parametrize("key", [None, "nonsense", "ts_0123456789ab_" + "0" * 64 + "_00000000"])
def test_no_method_answers_without_a_key(gateway: Gateway, client: Client, method: MethodDescriptor, key: str | None) -> None:
    with refused(grpc.StatusCode.UNAUTHENTICATED) as found:
        call(client.channel, method, GetMessageClass(method.input_type)(), key)
    assert found[0].reason == "invalid_api_key"


READS = {"GetJob", "ListJobs", "ListCheckpoints", "ListArtifacts", "DownloadArtifact", "WatchJob"}
READS |= {"GetUpload", "GetFile", "ListFiles", "DownloadFile", "ListModels", "GetModel"}


@pytest.fixture(scope="module")
def keys(gateway: Gateway) -> dict[str, str]:
    """Keys of a project of their own, by the one scope they have."""
    return {scope: gateway.other_key((scope,)) for scope in ("read", "write")}


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_every_method_needs_its_scope(client: Client, keys: dict[str, str], method: MethodDescriptor) -> None:
    key = keys["write" if method.name in READS else "read"]
    with refused(grpc.StatusCode.PERMISSION_DENIED) as found:
        call(client.channel, method, request_of(method, "unknown"), key)
    assert found[0].reason == "permission_denied"


def request_of(method: MethodDescriptor, name: str) -> Any:
    """A request of the method that would do, were there a thing of this name."""
    request = GetMessageClass(method.input_type)()
    fields = names_of(method)
    for field in fields & {"job_id", "file_id", "upload_id", "model", "name"}:
        setattr(request, field, name)
    if method.name == "ValidateDataset":
        request.model = MODEL
    if "spec" in fields:
        request.spec.CopyFrom(spec_of(name))
    if method.name == "UploadFile":
        request.start.CopyFrom(start(b"x"))
    return request


@pytest.mark.parametrize("method", [m for m in METHODS if not m.name.startswith("List") or "job_id" in names_of(m)], ids=lambda m: m.name)
def test_a_foreign_id_answers_as_an_unknown_one(
    client: Client, stranger: Client, finished: Finished, file_id: str, method: MethodDescriptor
) -> None:
    begun = start(b"x")
    upload_id = client.files.UploadFile(iter([files_pb2.UploadFileRequest(start=begun)])).upload_id
    foreign = {"job_id": finished.job_id, "file_id": file_id, "upload_id": upload_id, "model": finished.model}
    said = []
    for ids in (foreign, {name: value[:-4] + "0000" for name, value in foreign.items()}):
        request = request_of(method, "metrics.csv")
        for name in foreign.keys() & names_of(method):
            if not (method.name == "ValidateDataset" and name == "model"):
                setattr(request, name, ids[name])
        if method.name == "UploadFile":
            request.start.upload_id = ids["upload_id"]
        if "spec" in names_of(method):
            request.spec.training_file = ids["file_id"]
        wanted = grpc.StatusCode.INVALID_ARGUMENT if "spec" in names_of(method) else grpc.StatusCode.NOT_FOUND
        with refused(wanted) as found:
            call(stranger.keyed, method, request)
        message = found[0].message
        for value in ids.values():
            message = message.replace(value, "…")
        said.append((found[0].code, message, found[0].reason, found[0].field))
    assert said[0] == said[1]


@pytest.mark.parametrize("bad", ["", "../x", "5" * 5000, "a\0b", "ü", "a b", "x" * 129])
@pytest.mark.parametrize("method", [m for m in METHODS if {"job_id", "file_id", "upload_id"} & names_of(m)], ids=lambda m: m.name)
def test_an_id_that_none_could_have_is_not_found(client: Client, method: MethodDescriptor, bad: str) -> None:
    request = request_of(method, "metrics.csv")
    [name] = {"job_id", "file_id", "upload_id"} & names_of(method)
    setattr(request, name, bad)
    with refused(grpc.StatusCode.NOT_FOUND) as found:
        call(client.keyed, method, request)
    assert found[0].field == name


# Runs, health, reflection


def test_runs_take_only_the_token_of_a_run(gateway: Gateway, client: Client, finished: Finished) -> None:
    request = runs_pb2.ReportRequest(job_id=finished.job_id, epoch=1)
    with refused(grpc.StatusCode.UNAUTHENTICATED):
        client.runs.Report(request)
    with connected(gateway.rpc_address, "wrong") as worker, refused(grpc.StatusCode.UNAUTHENTICATED):
        worker.runs.Report(request)


def test_a_run_whose_job_went_on_is_stale(gateway: Gateway, client: Client, file_id: str) -> None:
    job_id = create(client, file_id).id
    until(lambda: f"{job_id}-1" in gateway.runtime.runs)
    token = gateway.parts.storage.get(f"runs/{job_id}/1/token").decode()
    client.jobs.CancelJob(jobs_pb2.CancelJobRequest(job_id=job_id))
    until(lambda: job_of(client, job_id).status == types_pb2.JOB_STATUS_CANCELLED)
    with connected(gateway.rpc_address, token) as worker, refused(grpc.StatusCode.FAILED_PRECONDITION) as found:
        worker.runs.Report(runs_pb2.ReportRequest(job_id=job_id, epoch=1))
    assert found[0].reason == "stale"


def test_health_follows_readiness_and_needs_no_key(gateway: Gateway, client: Client) -> None:
    names = ["", "tunesmith.v1.Jobs", "tunesmith.v1.Files", "tunesmith.v1.Models", "tunesmith.v1.Runs"]
    serving, away = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
    for name in names:
        assert client.health.Check(health_pb2.HealthCheckRequest(service=name)).status == serving
    assert set(client.health.List(health_pb2.HealthListRequest()).statuses) == set(names)
    with refused(grpc.StatusCode.NOT_FOUND):
        client.health.Check(health_pb2.HealthCheckRequest(service="nobody"))
    watch = client.health.Watch(health_pb2.HealthCheckRequest(service="tunesmith.v1.Jobs"), timeout=30)
    assert next(watch).status == serving
    gateway.runtime.away = True
    try:
        assert next(watch).status == away
        assert client.health.Check(health_pb2.HealthCheckRequest()).status == away
    finally:
        gateway.runtime.away = False
    assert next(watch).status == serving
    watch.cancel()
    unknown = client.health.Watch(health_pb2.HealthCheckRequest(service="nobody"))
    assert next(unknown).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
    unknown.cancel()


def test_reflection_needs_no_key_and_describes_every_method(client: Client) -> None:
    database = ProtoReflectionDescriptorDatabase(client.channel)
    assert {"tunesmith.v1.Jobs", "tunesmith.v1.Files", "tunesmith.v1.Models", "tunesmith.v1.Runs"} <= set(database.get_services())
    described = database.FindFileContainingSymbol("tunesmith.v1.Jobs")
    assert [method.name for method in described.service[0].method] == [m.name for m in METHODS if m.containing_service.name == "Jobs"]


# The example


def test_the_example(gateway: Gateway, client: Client, tmp_path: Path) -> None:
    environment = {**os.environ, "TUNESMITH_API_KEY": gateway.key, "PYTHONPATH": str(ROOT)}
    command = [
        sys.executable,
        "examples/grpc_client.py",
        str(TWEETS),
        "--model",
        MODEL,
        "--address",
        gateway.rpc_address,
        "--out",
        str(tmp_path),
    ]
    known = {job.id for job in client.jobs.ListJobs(jobs_pb2.ListJobsRequest(limit=1000)).jobs}
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as example:
        until(lambda: newest(client) not in known or example.poll() is not None)
        artifact = finish(gateway, newest(client))
        said, _ = example.communicate(timeout=60)
    assert example.returncode == 0, said
    assert (tmp_path / "adapter_model.safetensors").read_bytes() == artifact
    assert "The job has successfully completed" in said


def newest(client: Client) -> str:
    return client.jobs.ListJobs(jobs_pb2.ListJobsRequest(limit=1)).jobs[0].id


# What the tests are made of


def spec_of(file_id: str, **fields: Any) -> types_pb2.JobSpec:
    """A job that fits beside the others of these tests."""
    tunesmith = types_pb2.TunesmithSpec(resources=types_pb2.ResourceSpec(cpus_per_worker=1))
    return types_pb2.JobSpec(**{"model": MODEL, "training_file": file_id, "tunesmith": tunesmith} | fields)


def create(client: Client, file_id: str, **fields: Any) -> types_pb2.Job:
    return client.jobs.CreateJob(jobs_pb2.CreateJobRequest(spec=spec_of(file_id, **fields))).job


def job_of(client: Client, job_id: str) -> types_pb2.Job:
    return client.jobs.GetJob(jobs_pb2.GetJobRequest(job_id=job_id)).job


def start(data: bytes, filename: str = "rows.jsonl", **fields: Any) -> files_pb2.UploadStart:
    return files_pb2.UploadStart(filename=filename, purpose="fine-tune", bytes=len(data), sha256=sha256(data), **fields)


def chunks(data: bytes, offset: int = 0, size: int = 2**20) -> Iterator[files_pb2.UploadFileRequest]:
    for at in range(offset, len(data), size):
        yield files_pb2.UploadFileRequest(chunk=types_pb2.Chunk(offset=at, data=data[at : at + size]))


def send(client: Client, begun: files_pb2.UploadStart, data: bytes, offset: int = 0) -> files_pb2.UploadFileResponse:
    def messages() -> Iterator[files_pb2.UploadFileRequest]:
        yield files_pb2.UploadFileRequest(start=begun)
        yield from chunks(data, offset)

    return client.files.UploadFile(messages())


def upload(client: Client, data: bytes, filename: str = "rows.jsonl", **fields: Any) -> files_pb2.UploadFileResponse:
    return send(client, start(data, filename, **fields), data)


def status(client: Client, upload_id: str) -> files_pb2.GetUploadResponse:
    return client.files.GetUpload(files_pb2.GetUploadRequest(upload_id=upload_id))


def downloaded(stream: Any, offset: int = 0) -> tuple[types_pb2.Content, bytes]:
    first = next(stream)
    assert first.WhichOneof("body") == "content"
    data = bytearray()
    for message in stream:
        assert message.chunk.offset == offset + len(data)
        assert 0 < len(message.chunk.data) <= 2**20
        data += message.chunk.data
    return first.content, bytes(data)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def until(holds: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)
