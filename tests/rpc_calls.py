"""What tests of the gRPC API are made of: requests, uploads and downloads message by message, and a job that a worker finishes."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from protos.tunesmith.v1 import files_pb2, jobs_pb2, runs_pb2, types_pb2
from service.runtime import RunState
from tests.gateway import MODEL, Gateway
from tests.rpc_client import Client, connected

ROOT = Path(__file__).parents[1]
TWEETS = ROOT / "examples" / "tweets" / "tweets-test.jsonl"
ADAPTER = "adapter/adapter_model.safetensors"
TINY_ROWS = b'{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}\n' * 12


@dataclass(frozen=True)
class Finished:
    """A job that has succeeded, and its one artifact."""

    job_id: str
    model: str
    artifact: bytes


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
