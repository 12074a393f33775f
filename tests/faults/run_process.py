"""A light run: rank 0 without torch. It speaks the real internal call and leaves real checkpoints in real storage.

Its training is a chain of hashes, one link a step, so that what it publishes tells whether every step was done once and
in order, whoever was killed meanwhile. Started by `process_runtime`; says how it ended in the file `exit`.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from hashlib import sha256
from pathlib import Path

from protos.tunesmith.v1 import runs_pb2 as pb
from service.runtime import RunState
from trainers import manifest, report
from trainers.failure import Stopped
from trainers.manifest import ManifestBroken
from trainers.spec import RunSpec
from trainers.storage import Storage, StorageUnavailable, open_storage

STEP_SECONDS = float(os.environ.get("FAULTS_STEP_SECONDS", "0.02"))
report.HEARTBEAT_SECONDS = 0.2


def link(before: str, step: int) -> str:
    """The state after one more step."""
    return sha256(f"{before}/{step}".encode()).hexdigest()


def chain(job_id: str, steps: int) -> str:
    """What a job that was never disturbed publishes."""
    state = job_id
    for step in range(1, steps + 1):
        state = link(state, step)
    return state


def main(home: Path) -> RunState:
    spec = RunSpec.model_validate_json((home / "spec.json").read_text())
    storage = open_storage(spec.storage_url)
    token = patiently(lambda: storage.get(f"{spec.run_prefix}/token")).decode()
    reporter = report.GatewayReporter(spec.report_address, token, spec.job_id, spec.epoch)
    try:
        return train(spec, storage, reporter)
    except Stopped:
        return RunState.STOPPED
    finally:
        reporter.close()


def train(spec: RunSpec, storage: Storage, reporter: report.GatewayReporter) -> RunState:
    first, state = resumed(spec, storage)
    steps, every = spec.resolved.steps, spec.tunesmith.checkpoints.every_steps
    reporter.stage = "training"
    reporter.tell(pb.RunReport(started=pb.Started(world_size=1, engine="torch", device="cpu", total_steps=steps, resumed_step=first)))
    for step in range(first + 1, steps + 1):
        time.sleep(STEP_SECONDS)
        state = link(state, step)
        reporter.tell(pb.RunReport(step=pb.StepDone(step=step, train_loss=1 / step, learning_rate=1e-4, step_tokens=1)))
        asked = reporter.directive()
        if asked == pb.DIRECTIVE_STOP:
            return RunState.STOPPED
        if step % every == 0 or step == steps or asked == pb.DIRECTIVE_CHECKPOINT_AND_STOP:
            save(spec, storage, reporter, step, state)
        if asked == pb.DIRECTIVE_CHECKPOINT_AND_STOP:
            reporter.deliver()
            return RunState.STOPPED
    digest, _ = written(storage, spec.model_prefix, state, {"step": steps})
    reporter.tell(pb.RunReport(finished=pb.Finished(last_step=steps, manifest_sha256=digest, trained_tokens=steps)))
    reporter.deliver()
    return RunState.SUCCEEDED


def resumed(spec: RunSpec, storage: Storage) -> tuple[int, str]:
    """Step and state of the newest checkpoint that its manifest bears out."""
    for prefix in spec.resume_from:
        with tempfile.TemporaryDirectory() as scratch:
            try:
                found = patiently(lambda prefix=prefix: manifest.read(storage, prefix))
                manifest.fetch(storage, prefix, found.files, Path(scratch))
            except ManifestBroken:
                continue
            return found.facts["step"], (Path(scratch) / "adapter" / "adapter_model.safetensors").read_text()
    return 0, spec.job_id


def save(spec: RunSpec, storage: Storage, reporter: report.GatewayReporter, step: int, state: str) -> None:
    prefix = f"{spec.run_prefix}/checkpoints/step-{step}"
    digest, size = written(storage, prefix, state, {"step": step})
    reporter.tell(pb.RunReport(checkpoint=pb.CheckpointSaved(step=step, prefix=prefix, manifest_sha256=digest, bytes=size)))


def written(storage: Storage, prefix: str, state: str, facts: dict[str, int]) -> tuple[str, int]:
    with tempfile.TemporaryDirectory() as scratch:
        adapter = Path(scratch) / "adapter"
        adapter.mkdir()
        (adapter / "adapter_config.json").write_text("{}")
        (adapter / "adapter_model.safetensors").write_text(state)
        (Path(scratch) / "metrics.csv").write_text("step,train_loss\n1,2.5\n")
        return patiently(lambda: manifest.write(storage, prefix, Path(scratch), facts))


def patiently(action, seconds: float = 60):  # type: ignore[no-untyped-def]
    """As a real run does: storage that is away is waited for."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return action()
        except StorageUnavailable:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


if __name__ == "__main__":
    home = Path(sys.argv[1])
    ended = main(home)
    (home / "exit").write_text(ended.value)
