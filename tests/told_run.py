"""Speaks for a run that FakeRuntime only pretends to have launched: its reports and its bytes go where a real one's would."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from openai import OpenAI

from protos.tunesmith.v1 import runs_pb2 as pb
from service.runtime import RunState
from tests.gateway import Gateway
from trainers.spec import RunSpec


@dataclass
class ToldRun:
    """One run of a job."""

    gateway: Gateway
    spec: RunSpec
    seq: int = 0

    def tell(self, *reports: pb.RunReport) -> int:
        """Report these; what the gateway wants done."""
        for report in reports:
            self.seq += 1
            report.seq = self.seq
        token = self.gateway.parts.storage.get(f"{self.spec.run_prefix}/token").decode()
        request = pb.ReportRequest(job_id=self.spec.job_id, epoch=self.spec.epoch, reports=reports, stage="training")
        return self.gateway.do(self.gateway.app.report(token, request)).directive

    def start(self, resumed_step: int = 0) -> None:
        self.tell(pb.RunReport(started=pb.Started(world_size=1, total_steps=self.spec.resolved.steps, resumed_step=resumed_step)))

    def step(self, number: int, loss: float = 0.5) -> None:
        done = pb.StepDone(step=number, train_loss=loss, train_mean_token_accuracy=0.75, learning_rate=1e-4, eta_seconds=100)
        self.tell(pb.RunReport(step=done))

    def evaluate(self, step: int, loss: float = 0.25) -> None:
        self.tell(pb.RunReport(evaluated=pb.Evaluated(step=step, valid_loss=loss, valid_mean_token_accuracy=0.5, full=True)))

    def checkpoint(self, step: int) -> str:
        """Write a checkpoint and tell of it; its prefix."""
        prefix = f"{self.spec.run_prefix}/checkpoints/step-{step}"
        digest = self._write(prefix, {"adapter/adapter_model.safetensors": f"weights at {step}".encode(), "state/cursor.json": b"{}"})
        self.tell(pb.RunReport(checkpoint=pb.CheckpointSaved(step=step, prefix=prefix, manifest_sha256=digest, bytes=1)))
        return prefix

    def finish(self) -> None:
        """Publish, say so, and go."""
        files = {"adapter/adapter_model.safetensors": b"the weights", "metrics.csv": b"step\n"}
        digest = self._write(self.spec.model_prefix, files)
        finished = pb.Finished(last_step=self.spec.resolved.steps, manifest_sha256=digest, trained_tokens=256)
        self.tell(pb.RunReport(finished=finished))
        self.leave()

    def leave(self) -> None:
        """Its processes are gone."""
        self.gateway.runtime.ends(self.spec.run_id, RunState.FAILED)

    def _write(self, prefix: str, files: dict[str, bytes]) -> str:
        storage = self.gateway.parts.storage
        entries = [{"name": name, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in files.items()]
        for name, data in files.items():
            storage.put(f"{prefix}/{name}", data)
        manifest = json.dumps({"format": 1, "files": entries}).encode()
        storage.put(f"{prefix}/manifest.json", manifest)
        return hashlib.sha256(manifest).hexdigest()


def launched(gateway: Gateway, job_id: str, epoch: int = 1) -> ToldRun:
    """The run of the job, once it is launched."""
    spec = until("the launch", lambda: next((s for s in gateway.runtime.launched if s.run_id == f"{job_id}-{epoch}"), None))
    return ToldRun(gateway, spec)


def in_phase(client: OpenAI, job_id: str, phase: str) -> Any:
    """The job, once it is in that phase."""

    def there() -> Any:
        answer = client.fine_tuning.jobs.with_raw_response.retrieve(job_id).http_response.json()
        return answer if answer["tunesmith"]["phase"] == phase else None

    return until(f"the phase {phase}", there)


def until(what: str, found: Callable[[], Any], timeout: float = 60) -> Any:
    """What `found` gives once it is true."""
    deadline = time.monotonic() + timeout
    while not (value := found()):
        assert time.monotonic() < deadline, f"{what} did not come"
        time.sleep(0.02)
    return value
