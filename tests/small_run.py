"""A run of the tiny model on made-up conversations, with real storage, ready to be executed in a test's own process."""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from protos.tunesmith.v1 import runs_pb2 as pb
from tests.tiny_model import write_tiny_model
from trainers import manifest
from trainers.registry import DatasetWriter, open_tokenizer
from trainers.report import Silent
from trainers.run import Place, execute
from trainers.spec import BaseModelRef, DatasetRef, Resolved, RunSpec, TunesmithSpec
from trainers.storage import Storage, open_storage

TWEETS = Path(__file__).parents[1] / "examples" / "tweets"


class Recorder(Silent):
    """Keeps what is told; `stop_at` gives a directive at a step."""

    def __init__(self, stop_at: dict[int, int] | None = None) -> None:
        super().__init__()
        self.reports: list[pb.RunReport] = []
        self.stop_at = stop_at or {}

    def tell(self, report: pb.RunReport) -> None:
        self.reports.append(report)

    def directive(self) -> int:
        steps = self.of("step")
        return self.stop_at.get(steps[-1].step + 1 if steps else 1, pb.DIRECTIVE_CONTINUE)

    def of(self, kind: str) -> list[Any]:
        """The reports of one kind."""
        return [getattr(report, kind) for report in self.reports if report.WhichOneof("body") == kind]


@dataclass
class SmallRun:
    """A storage with a base model and two datasets."""

    directory: Path
    storage_url: str
    storage: Storage
    base: BaseModelRef
    training: DatasetRef
    validation: DatasetRef

    def spec(self, epoch: int = 1, job: str = "ftjob-small", **changes: Any) -> RunSpec:
        """A RunSpec; `changes` go to the sections of `tunesmith`, to `resolved` (a dict) or to the spec itself."""
        resolved = {"n_epochs": 2, "batch_size": 8, "learning_rate_multiplier": 1.0, "learning_rate": 5e-3, "engine": "torch"}
        resolved |= changes.pop("resolved", {})
        resolved["steps"] = resolved["n_epochs"] * -(-self.training.rows // resolved["batch_size"])
        sections = {
            "checkpoints": {"every_steps": 4, "keep": 2},
            "evaluation": {"every_steps": 4},
            "adapter": {"r": 4, "alpha": 8, "dropout": 0.1},
        }
        for name in ("checkpoints", "evaluation", "adapter", "training", "resources"):
            sections[name] = sections.get(name, {}) | changes.pop(name, {})
        values: dict[str, Any] = {
            "job_id": job,
            "epoch": epoch,
            "method": "supervised",
            "seed": 7,
            "base_model": self.base,
            "dataset": self.training,
            "validation": self.validation,
            "resolved": Resolved(**resolved),
            "tunesmith": TunesmithSpec.model_validate(sections),
            "storage_url": self.storage_url,
            "report_address": "127.0.0.1:1",
            "tuned_model": "ft:tiny:org::small",
        }
        return RunSpec(**(values | changes))

    def execute(self, spec: RunSpec, reporter: Recorder | None = None) -> Recorder:
        """Run it here, alone; what it told."""
        reporter = reporter or Recorder()
        try:
            execute(spec, self.storage, reporter, Place(0, 1, torch.device("cpu"), self.directory / "cache"))
        finally:
            for thread in threading.enumerate():
                if thread.name == "checkpoint":
                    thread.join()  # as the end of a process does: one that was stopped may still be writing
        return reporter

    def adapter_sha256(self, spec: RunSpec) -> str:
        """Hash of the published adapter."""
        return manifest.read(self.storage, spec.model_prefix).sha256_of("adapter/adapter_model.safetensors")


def small_run(directory: Path, rows: int = 40, storage_url: str | None = None) -> SmallRun:
    """Make the storage, below `directory` unless an address is given."""
    storage_url = storage_url or (directory / "objects").as_uri()
    storage = open_storage(storage_url)
    model = write_tiny_model(directory / "tiny")
    manifest.write(storage, "base/tiny/1", model, {})
    tokenizer = open_tokenizer(model)
    conversations = [json.loads(line)["messages"] for line in (TWEETS / "tweets-train.jsonl").read_text().splitlines()[: rows + 8]]
    encoded = [tokenizer.encode(messages[1:]) for messages in conversations]
    refs = [_dataset(storage, directory, name, part) for name, part in (("train", encoded[:rows]), ("valid", encoded[rows:]))]
    return SmallRun(directory, storage_url, storage, BaseModelRef(id="tiny", revision="1", prefix="base/tiny/1", licence="mit"), *refs)


def _dataset(storage: Storage, directory: Path, name: str, rows: list[Any]) -> DatasetRef:
    with DatasetWriter(directory / name) as writer:
        for row in rows:
            writer.append(row)
    manifest.write(storage, f"datasets/{name}", directory / name, {})
    tokens, trained = sum(len(row) for row in rows), sum(int(np.count_nonzero(row.weights)) for row in rows)
    return DatasetRef(
        prefix=f"datasets/{name}", sha256=name, rows=len(rows), tokens=tokens, trained_tokens=trained, longest=max(len(row) for row in rows)
    )
