"""Jobs over gRPC: what is made, refused, listed, watched, downloaded and estimated; the example in examples/."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import grpc
import pytest

from protos.tunesmith.v1 import jobs_pb2, reports_pb2, types_pb2
from service.runtime import Capacity
from tests.gateway import MODEL, Gateway
from tests.rpc_calls import (
    ADAPTER,
    ROOT,
    TWEETS,
    Finished,
    create,
    downloaded,
    finish,
    job_of,
    sha256,
    spec_of,
    until,
    upload,
)
from tests.rpc_client import Client, refused


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
