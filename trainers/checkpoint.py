"""Checkpoints: written off the training thread with their manifest last, verified when read, the oldest deleted.

A checkpoint is the adapter in PEFT's own format (or the whole model in transformers') and, below `state/`, what else it
takes to go on: AdamW's moments, the cursor and the metrics so far. Random numbers need no place in it, see
state.seed_step. Called by the loop on rank 0 to save, by `run` on every rank to resume.
"""

from __future__ import annotations

import json
import random
import re
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from trainers import manifest
from trainers.forms import Form
from trainers.manifest import Manifest, ManifestBroken
from trainers.retention import kept_steps
from trainers.spec import RunSpec
from trainers.state import Cursor, Snapshot, read_metrics, write_metrics
from trainers.storage import Storage, StorageUnavailable

OPTIMIZER, CURSOR, METRICS = "state/optimizer.safetensors", "state/cursor.json", "state/metrics.csv"
PATIENCE_SECONDS = 600.0
"""How long the object store may be away before the run gives up."""
T = TypeVar("T")
_STEP = re.compile(r"/checkpoints/step-(\d+)$")
OnSaved = Callable[[int, str, str, int], None]
"""Called with step, prefix, the manifest's sha256 and the bytes of a checkpoint that is complete."""


class Checkpoints:
    """Writes the checkpoints of one run, one at a time, in a thread of its own."""

    def __init__(self, storage: Storage, spec: RunSpec, form: Form, on_saved: OnSaved, kept: Sequence[str] = ()) -> None:
        """`kept`: prefixes of complete checkpoints of earlier runs, which count among those that are kept."""
        self._storage, self._spec, self._form, self._on_saved = storage, spec, form, on_saved
        self._complete = sorted(kept, key=step_of)
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def save(self, snapshot: Snapshot) -> None:
        """Start writing; waits for the one before. Raises what that one ended with."""
        self.wait()
        self._thread = threading.Thread(target=self._save, args=(snapshot,), name="checkpoint")
        self._thread.start()

    def wait(self) -> None:
        """Until everything is written. Raises what writing ended with."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _save(self, snapshot: Snapshot) -> None:
        try:
            with tempfile.TemporaryDirectory(prefix="tunesmith-checkpoint-") as scratch:
                write_snapshot(snapshot, self._form, Path(scratch))
                patiently(lambda: self._store(snapshot.cursor.step, Path(scratch)))
            patiently(lambda: self._delete_old(snapshot))
        except BaseException as error:
            self._error = error

    def _store(self, step: int, directory: Path) -> None:
        prefix = f"{self._spec.run_prefix}/checkpoints/step-{step}"
        facts = {"step": step, "spec": self._spec.model_dump(mode="json")}
        digest, size = manifest.write(self._storage, prefix, directory, facts)
        self._complete = sorted({*self._complete, prefix}, key=step_of)
        self._on_saved(step, prefix, digest, size)

    def _delete_old(self, snapshot: Snapshot) -> None:
        """Only after a newer one is complete, and each one's manifest first: whatever happens meanwhile, good ones remain."""
        rules = self._spec.tunesmith.checkpoints
        scores = {row.step: row.valid_loss for row in snapshot.history if row.valid_loss is not None}
        losses = {step_of(prefix): scores.get(step_of(prefix)) for prefix in self._complete}
        kept = kept_steps(losses, rules.keep, keep_best=rules.keep_best)
        for prefix in [prefix for prefix in self._complete if step_of(prefix) not in kept]:
            manifest.remove(self._storage, prefix)
            self._complete.remove(prefix)


def patiently(action: Callable[[], T]) -> T:
    """`action`, again with growing jittered pauses while the object store does not answer, for PATIENCE_SECONDS."""
    deadline, pause = time.monotonic() + PATIENCE_SECONDS, 1.0
    while True:
        try:
            return action()
        except StorageUnavailable:
            if time.monotonic() + pause > deadline:
                raise
            time.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(2 * pause, 30.0)


def write_snapshot(snapshot: Snapshot, form: Form, directory: Path) -> None:
    """The files of a checkpoint; their bytes depend on the snapshot alone. Weights are float32 here, whatever is published."""
    (directory / "state").mkdir(parents=True)
    form.write(snapshot.weights, directory / form.folder, torch.float32)
    save_file(snapshot.optimizer, directory / OPTIMIZER)
    (directory / CURSOR).write_text(json.dumps(asdict(snapshot.cursor), sort_keys=True))
    (directory / METRICS).write_bytes(write_metrics(snapshot.history))


def load(storage: Storage, prefix: str, spec: RunSpec, form: Form) -> Snapshot:
    """The checkpoint below `prefix`. Raises ManifestBroken unless it is complete, undamaged and of this job."""
    found = manifest.read(storage, prefix)
    _require_same_job(found, prefix, spec)
    with tempfile.TemporaryDirectory(prefix="tunesmith-resume-") as scratch:
        manifest.fetch(storage, prefix, found.files, Path(scratch))
        return _read(Path(scratch), prefix, form)


def first_good(
    storage: Storage, prefixes: Iterable[str], spec: RunSpec, form: Form, refused: Callable[[str], None]
) -> tuple[str, Snapshot] | None:
    """The first checkpoint that verifies, with its prefix; `refused` is told why each one before it did not."""
    for prefix in prefixes:
        try:
            return prefix, load(storage, prefix, spec, form)
        except ManifestBroken as error:
            refused(str(error))
    return None


def _require_same_job(found: Manifest, prefix: str, spec: RunSpec) -> None:
    """A checkpoint of other data or settings would be continued without a word, and wrongly."""
    try:
        # Read as a RunSpec: an older release wrote none of the settings that are new, and meant their defaults.
        theirs = RunSpec.model_validate_json(json.dumps(found.facts.get("spec")))
    except ValidationError as error:
        raise ManifestBroken(f"{prefix} was made by another release, whose settings this one does not know") from error
    if _lasting(theirs) != _lasting(spec):
        raise ManifestBroken(f"{prefix} was made by a run with other settings")


def _lasting(spec: RunSpec) -> dict[str, Any]:
    """What no run of a job may change; where it runs, with how many workers and on which engine may."""
    passing = {"epoch", "resume_from", "report_address", "storage_url", "integrations", "log_bytes", "micro_batch"}
    partly = {"resolved": {"engine"}, "tunesmith": {"resources", "priority"}}
    return spec.model_dump(exclude={**dict.fromkeys(passing, True), **partly})


def _read(directory: Path, prefix: str, form: Form) -> Snapshot:
    try:
        return Snapshot(
            weights=form.read(directory / form.folder),
            optimizer=load_file(directory / OPTIMIZER),
            cursor=Cursor(**json.loads((directory / CURSOR).read_text())),
            history=tuple(read_metrics((directory / METRICS).read_bytes())),
        )
    except (OSError, ValueError, TypeError) as error:
        raise ManifestBroken(f"{prefix} can't be read: {error}") from error


def step_of(prefix: str) -> int:
    """The step in a checkpoint's prefix, -1 when it is none."""
    found = _STEP.search(prefix)
    return int(found[1]) if found else -1
