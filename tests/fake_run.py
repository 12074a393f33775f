"""What a run tells the gateway, without a run: the reports of rank 0 over the real internal gRPC call, and the real bytes they speak of."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import grpc
from openai import OpenAI

from protos.tunesmith.v1 import runs_pb2 as pb
from protos.tunesmith.v1.runs_pb2_grpc import RunsStub
from service.runtime import RunState
from tests.gateway import Gateway
from trainers.spec import RunSpec


def _adapter(weights: bytes) -> dict[str, bytes]:
    return {"adapter/adapter_config.json": b"{}", "adapter/adapter_model.safetensors": weights}


PUBLISHED = _adapter(b"the weights") | {"metrics.csv": b"step,train_loss\n1,2.5\n"}
"""What a run that finishes has published."""


@dataclass
class FakeRun:
    """The newest run of a job. Reports are numbered in the order of the calls."""

    gateway: Gateway
    spec: RunSpec
    seq: int = 0
    token: str = ""

    @classmethod
    def of(cls, gateway: Gateway, job_id: str, epoch: int = 1) -> FakeRun:
        """Wait until the scheduler has launched this run."""

        def launched() -> RunSpec | None:
            return next((spec for spec in gateway.runtime.launched if (spec.job_id, spec.epoch) == (job_id, epoch)), None)

        return cls(gateway, until(f"run {epoch} of {job_id}", launched))

    @property
    def job_id(self) -> str:
        return self.spec.job_id

    @property
    def url(self) -> str:
        """The job's path over REST."""
        return f"/v1/fine_tuning/jobs/{self.job_id}"

    def tell(self, **body: Any) -> pb.ReportResponse:
        """One report, e.g. `step=pb.StepDone(…)`; none is a heartbeat."""
        return self._report([pb.RunReport(**body)] if body else [])

    def _report(self, reports: list[pb.RunReport]) -> pb.ReportResponse:
        for report in reports:
            self.seq += 1
            report.seq = self.seq
        self.token = self.token or self.gateway.parts.storage.get(f"{self.spec.run_prefix}/token").decode()
        request = pb.ReportRequest(job_id=self.job_id, epoch=self.spec.epoch, reports=reports, stage="training")
        with grpc.insecure_channel(self.gateway.rpc_address) as channel:
            return RunsStub(channel).Report(request, timeout=10, metadata=[("authorization", f"Bearer {self.token}")])

    def start(self, resumed_step: int = 0, total_steps: int | None = None) -> None:
        """The workers are up."""
        total = total_steps or self.spec.resolved.steps
        self.tell(started=pb.Started(world_size=1, engine="torch", device="cpu", total_steps=total, resumed_step=resumed_step))

    def step(self, step: int, loss: float = 0.5) -> None:
        """One optimizer step."""
        self.steps(step, step, loss)

    def steps(self, first: int, last: int, loss: float = 1.0) -> None:
        """Optimizer steps that are told of together."""
        measured = {"train_mean_token_accuracy": 0.75, "learning_rate": 1e-4, "grad_norm": 2.0, "step_tokens": 64}
        speed = {"tokens_per_second": 100, "eta_seconds": 100}
        done = [pb.StepDone(step=step, train_loss=loss, **measured, **speed) for step in range(first, last + 1)]
        self._report([pb.RunReport(step=step) for step in done])

    def evaluate(self, step: int, loss: float = 0.25) -> None:
        """The validation file was scored."""
        self.tell(evaluated=pb.Evaluated(step=step, valid_loss=loss, valid_mean_token_accuracy=0.5, full=True))

    def checkpoint(self, step: int) -> str:
        """A checkpoint whose bytes lie in storage; its prefix."""
        prefix = f"{self.spec.run_prefix}/checkpoints/step-{step}"
        digest = self._write(prefix, _adapter(f"weights at {step}".encode()) | {"state/cursor.json": b"{}"})
        self.tell(checkpoint=pb.CheckpointSaved(step=step, prefix=prefix, manifest_sha256=digest, bytes=1))
        return prefix

    def finish(self) -> None:
        """Publish, say so, leave; returns when the job has succeeded."""
        digest = self._write(self.spec.model_prefix, PUBLISHED)
        self.tell(finished=pb.Finished(last_step=self.spec.resolved.steps, manifest_sha256=digest, trained_tokens=256))
        self.leave()
        self.until_is("succeeded")

    def leave(self, state: RunState = RunState.SUCCEEDED) -> None:
        """The run's processes end."""
        self.gateway.runtime.ends(self.spec.run_id, state)

    def lose(self) -> FakeRun:
        """The run dies; the next one, which is there when this returns."""
        self.gateway.runtime.ends(self.spec.run_id, RunState.FAILED, "killed")
        return FakeRun.of(self.gateway, self.job_id, self.spec.epoch + 1)

    def until_is(self, status: str) -> None:
        """Wait for the job's status on the wire."""
        client = self.gateway.client()
        until(f"{self.job_id} {status}", lambda: client.fine_tuning.jobs.retrieve(self.job_id).status == status)

    def _write(self, prefix: str, files: dict[str, bytes]) -> str:
        listed = [{"name": name, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in files.items()]
        for name, data in files.items():
            self.gateway.parts.storage.put(f"{prefix}/{name}", data)
        manifest = json.dumps({"files": listed, "facts": {}}).encode()
        self.gateway.parts.storage.put(f"{prefix}/manifest.json", manifest)
        return hashlib.sha256(manifest).hexdigest()


def in_phase(client: OpenAI, job_id: str, phase: str) -> Any:
    """The job, once it is in that phase."""

    def there() -> Any:
        answer = client.fine_tuning.jobs.with_raw_response.retrieve(job_id).http_response.json()
        return answer if answer["tunesmith"]["phase"] == phase else None

    return until(f"the phase {phase}", there)


def until(what: str, holds: Callable[[], Any], timeout: float = 120, pause: float = 0.02) -> Any:
    """Wait until `holds` gives something true, and give it."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if value := holds():
            return value
        time.sleep(pause)
    raise AssertionError(f"{what} did not come within {timeout:.0f} s")
