"""What befalls a run that needs no gateway to be seen: one test for each row of the table in README.md, all in this process."""

from __future__ import annotations

import errno
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from protos.tunesmith.v1 import runs_pb2 as pb
from service import objects
from tests.small_run import Recorder, SmallRun, small_run
from trainers import checkpoint, manifest
from trainers.checkpoint import Checkpoints
from trainers.failure import Stopped, TrainingFailed, classify
from trainers.forms import AdapterForm, Form
from trainers.local_storage import LocalStorage
from trainers.loop import probe
from trainers.manifest import ManifestBroken
from trainers.model import TrainingModel
from trainers.spec import RunSpec
from trainers.state import Cursor, MetricsRow, Snapshot, TrainingState
from trainers.storage import open_storage

FORM = AdapterForm(b"{}")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    return small_run(tmp_path_factory.mktemp("alone"))


@pytest.fixture(scope="module")
def undisturbed(small: SmallRun) -> tuple[RunSpec, Recorder]:
    spec = small.spec(job="ftjob-undisturbed", adapter={"dropout": 0.0})
    return spec, small.execute(spec)


class Killed(BaseException):
    """The process is gone: nothing after it happens, and nothing catches it."""


class Dying(LocalStorage):
    """Dies at its n-th change, counted from 1, before it takes effect; everything after that dies too."""

    def __init__(self, directory: Path, at: int) -> None:
        super().__init__(directory)
        self.at, self.changes = at, 0

    def _change(self) -> None:
        self.changes += 1
        if self.changes >= self.at:
            raise Killed

    def put(self, key: str, data: bytes, *, if_absent: bool = False) -> None:
        self._change()
        super().put(key, data, if_absent=if_absent)

    def put_file(self, key: str, path: Path) -> None:
        self._change()
        super().put_file(key, path)

    def delete(self, key: str) -> None:
        self._change()
        super().delete(key)


def snapshot(step: int, losses: dict[int, float] | None = None) -> Snapshot:
    """A state that has `step` in all its numbers; `losses` are those of the validation."""
    tensors = {"w": torch.full((4,), float(step))}
    rows = tuple(MetricsRow(n, 1.0, 0.5, (losses or {}).get(n)) for n in range(1, step + 1))
    return Snapshot(tensors, dict(tensors), Cursor(step=step), rows)


def save(storage: LocalStorage, spec: RunSpec, steps: list[int], told: list[int], losses: dict[int, float] | None = None) -> None:
    """Write checkpoints one after the other, as a run does. Raises what befell it."""
    saves = Checkpoints(storage, spec, FORM, lambda step, *_: told.append(step), [])
    for step in steps:
        saves.save(snapshot(step, losses))
        saves.wait()


def resumed(storage: LocalStorage, spec: RunSpec) -> int:
    """The step that the next run goes on from; its bytes are checked."""
    prefixes = objects.checkpoint_prefixes(storage, spec.job_id, spec.epoch + 1)
    found = [checkpoint.load(storage, prefix, spec, FORM) for prefix in prefixes]  # what looks complete is complete, the older ones too
    assert [float(taken.weights["w"][0]) for taken in found] == [taken.cursor.step for taken in found]
    return found[0].cursor.step if found else 0


def test_08_a_run_killed_while_it_writes_goes_on_from_the_checkpoint_before(small: SmallRun, tmp_path: Path) -> None:
    """At every boundary: each file of the checkpoint, then the manifest, then nothing."""
    spec, seen = small.spec(job="ftjob-row8"), []
    save(counted := Dying(tmp_path / "count", 10**6), spec, [4], [])
    for at in range(1, counted.changes + 2):
        root, told = tmp_path / str(at), list[int]()
        save(LocalStorage(root), spec, [4], told)
        dying = Dying(root, at)
        try:
            save(dying, spec, [8], told)
        except Killed:
            assert told == [4], "what is not complete is not told"
        seen.append(resumed(LocalStorage(root), spec))
    assert seen == [4] * counted.changes + [8]


def test_09_a_checkpoint_that_was_never_told_is_adopted(small: SmallRun, undisturbed: tuple[RunSpec, Recorder]) -> None:
    """Killed between manifest and row: storage is the truth about bytes, so the next run finds it, goes on from it and counts it."""

    class Mute(Recorder):
        def tell(self, report: pb.RunReport) -> None:
            if report.WhichOneof("body") == "checkpoint" and report.checkpoint.step == 8:
                raise Killed
            super().tell(report)

    first = small.spec(job="ftjob-row9", adapter={"dropout": 0.0})
    mute = Mute()
    with pytest.raises(Killed):
        small.execute(first, mute)
    assert [saved.step for saved in mute.of("checkpoint")] == [4]
    known = objects.checkpoint_prefixes(small.storage, first.job_id, 2)
    second = small.spec(job="ftjob-row9", epoch=2, adapter={"dropout": 0.0}, resume_from=known)
    assert small.execute(second).of("started")[0].resumed_step == 8
    assert small.adapter_sha256(second) == small.adapter_sha256(undisturbed[0])
    steps = [checkpoint.step_of(prefix) for prefix in objects.checkpoint_prefixes(small.storage, first.job_id, 3)]
    assert steps == [10, 8], "it is one of those that are kept"


def test_10_whatever_is_deleted_a_good_checkpoint_remains(small: SmallRun, tmp_path: Path) -> None:
    """Killed at every boundary of a deletion, the best one kept beside the newest."""
    spec = small.spec(job="ftjob-row10", checkpoints={"every_steps": 4, "keep": 1})
    losses = {4: 0.5, 8: 0.1, 12: 0.3}
    save(counted := Dying(tmp_path / "count", 10**6), spec, [4, 8, 12], [], losses)
    for at in range(1, counted.changes + 2):
        root = tmp_path / str(at)
        told: list[int] = []
        with suppress(Killed):
            save(Dying(root, at), spec, [4, 8, 12], told, losses)
        assert resumed(LocalStorage(root), spec) >= max(told, default=0)
    left = {checkpoint.step_of(prefix) for prefix in objects.checkpoint_prefixes(LocalStorage(root), spec.job_id, 2)}
    assert left == {8, 12}


@pytest.fixture
def full_after_8(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scratch has no room for the files of a checkpoint at step 8 or later."""
    whole = checkpoint.write_snapshot

    def write(taken: Snapshot, form: Form, directory: Path) -> None:
        if taken.cursor.step >= 8:
            raise OSError(errno.ENOSPC, "No space left on device", str(directory))
        whole(taken, form, directory)

    monkeypatch.setattr(checkpoint, "write_snapshot", write)


def test_26_full_scratch_ends_the_run_and_keeps_the_last_checkpoint(small: SmallRun, full_after_8: None) -> None:
    spec = small.spec(job="ftjob-row26")
    before = set(Path(tempfile.gettempdir()).glob("tunesmith-checkpoint-*"))
    with pytest.raises(OSError, match="No space") as failure:
        small.execute(spec)
    failed = classify(failure.value)
    assert (failed.code, failed.cause) == ("storage_full", "resource")
    assert failed.hint
    known = objects.checkpoint_prefixes(small.storage, spec.job_id, 2)
    assert [checkpoint.step_of(prefix) for prefix in known] == [4]
    checkpoint.load(small.storage, known[0], spec, FORM)
    assert set(Path(tempfile.gettempdir()).glob("tunesmith-checkpoint-*")) <= before, "scratch is given back"


def flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


class Harming(LocalStorage):
    """Harms the published adapter on its way in (`put`) or out (`get`)."""

    def __init__(self, directory: Path, way: str, harm: Callable[[Path], None]) -> None:
        super().__init__(directory)
        self.way, self.harm = way, harm

    def put_file(self, key: str, path: Path) -> None:
        if self.way == "put" and key.startswith("models/") and key.endswith(".safetensors"):
            copy = path.with_suffix(".harmed")
            shutil.copyfile(path, copy)
            self.harm(copy)
            path = copy
        super().put_file(key, path)

    def get_file(self, key: str, path: Path) -> None:
        super().get_file(key, path)
        if self.way == "get" and key.startswith("models/") and key.endswith(".safetensors"):
            self.harm(path)


@pytest.mark.parametrize(("way", "harm"), [("put", flipped), ("get", cut)])
def test_30_bytes_harmed_on_their_way_are_never_published(small: SmallRun, way: str, harm: Callable[[Path], None]) -> None:
    """Of checkpoints: row 33. Of the S3 client itself: tests/integration/test_s3_faults.py."""
    spec, told = small.spec(job=f"ftjob-row30-{way}", resolved={"n_epochs": 1}), Recorder()
    harming = replace(small, storage=Harming(Path(small.storage_url.removeprefix("file://")), way, harm))
    with pytest.raises(TrainingFailed, match=r"adapter_model\.safetensors is not what the manifest says") as failure:
        harming.execute(spec, told)
    assert failure.value.code == "artifact_invalid"
    assert told.of("finished") == []


@pytest.mark.parametrize("name", ["state/optimizer.safetensors", "manifest.json"])
def test_33_a_checkpoint_that_was_changed_is_refused_and_named(small: SmallRun, undisturbed: tuple[RunSpec, Recorder], name: str) -> None:
    job = f"ftjob-row33-{name[0]}"
    with pytest.raises(Stopped):
        small.execute(small.spec(job=job, adapter={"dropout": 0.0}), Recorder({9: pb.DIRECTIVE_STOP}))
    known = objects.checkpoint_prefixes(small.storage, job, 2)
    damaged = bytearray(small.storage.get(f"{known[0]}/{name}"))
    damaged[-1] ^= 1
    small.storage.put(f"{known[0]}/{name}", bytes(damaged))
    second = small.spec(job=job, epoch=2, resume_from=known, adapter={"dropout": 0.0})
    told = small.execute(second)
    assert told.of("started")[0].resumed_step == 4
    assert (name if name.startswith("state") else "the manifest of") in told.of("notice")[0].message
    assert small.adapter_sha256(second) == small.adapter_sha256(undisturbed[0])


@pytest.fixture
def too_large(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, int]]:
    """Scoring finds no memory for more rows than `rows` says."""
    limit, score = {"rows": 100}, TrainingModel.score

    def scarce(self: Any, batch: Any) -> Any:
        if torch.is_grad_enabled() and len(batch.input_ids) > limit["rows"]:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried to allocate 2 GB")
        return score(self, batch)

    monkeypatch.setattr(TrainingModel, "score", scarce)
    return limit


class Tightening(Recorder):
    """Memory gets scarce once step 3 is done."""

    def __init__(self, limit: dict[str, int], rows: int) -> None:
        super().__init__()
        self.limit, self.rows = limit, rows

    def tell(self, report: pb.RunReport) -> None:
        super().tell(report)
        if report.WhichOneof("body") == "step" and report.step.step == 3:
            self.limit["rows"] = self.rows


def test_34_out_of_memory_halves_the_micro_batch_and_nothing_else(
    small: SmallRun, undisturbed: tuple[RunSpec, Recorder], too_large: dict[str, int]
) -> None:
    spec = small.spec(job="ftjob-row34", adapter={"dropout": 0.0})
    told = small.execute(spec, Tightening(too_large, 2))
    assert [notice.message for notice in told.of("notice")] == [
        "Out of memory at step 4: micro-batch halved from 8 to 4, the global batch stays 8",
        "Out of memory at step 4: micro-batch halved from 4 to 2, the global batch stays 8",
    ]
    whole = undisturbed[1]
    assert [s.train_loss for s in told.of("step")] == pytest.approx([s.train_loss for s in whole.of("step")], rel=1e-4)
    assert [s.tokens for s in told.of("step")] == [s.tokens for s in whole.of("step")]
    assert [s.step for s in told.of("step")] == list(range(1, 11))


def test_34_out_of_memory_ends_with_single_rows(small: SmallRun, too_large: dict[str, int]) -> None:
    told = Tightening(too_large, 0)
    with pytest.raises(TrainingFailed, match="even with a micro-batch of 1 row") as failure:
        small.execute(small.spec(job="ftjob-row34-end"), told)
    assert (failure.value.code, failure.value.cause) == ("out_of_memory", "resource")
    assert len(told.of("notice")) == 3


def test_34_the_longest_batch_is_tried_first_where_memory_can_be_refused(
    small: SmallRun, too_large: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU: the first word of it comes before the first step, and the probe changes nothing that is trained."""
    too_large["rows"] = 4
    before: list[dict[str, torch.Tensor]] = []

    def first(parts: Any) -> None:
        state = parts.model.adapter_state()
        before.append({name: tensor.clone() for name, tensor in state.items()})
        probe(parts)
        assert all(torch.equal(tensor, before[0][name]) for name, tensor in parts.model.adapter_state().items())
        assert parts.state.cursor.micro_batch == 4
        raise Killed

    monkeypatch.setattr("trainers.run.train", first)
    told = Recorder()
    with pytest.raises(Killed):
        small.execute(small.spec(job="ftjob-row34-probe"), told)
    assert [notice.message for notice in told.of("notice")] == [
        "Out of memory at the longest batch: micro-batch halved from 8 to 4, the global batch stays 8"
    ]


def test_36_a_loss_that_is_no_number_ends_the_run_with_nothing_published(small: SmallRun) -> None:
    spec = small.spec(job="ftjob-nan", resolved={"learning_rate": 1e30})
    with pytest.raises(TrainingFailed) as failure:
        small.execute(spec)
    assert (failure.value.code, failure.value.cause) == ("diverged", "config")
    with pytest.raises(ManifestBroken):
        manifest.read(small.storage, spec.model_prefix)


@pytest.mark.parametrize("harm", ["no tensors", "tensors without numbers", "as it was"])
def test_37_an_adapter_with_nothing_in_it_is_not_published(small: SmallRun, monkeypatch: pytest.MonkeyPatch, harm: str) -> None:
    whole, first = TrainingState.outcome, dict[str, torch.Tensor]()

    def hollow(self: TrainingState) -> Snapshot:
        taken = whole(self)
        weights = {"no tensors": {}, "tensors without numbers": {n: t[:0] for n, t in taken.weights.items()}, "as it was": first}
        return replace(taken, weights=weights[harm])

    loaded = TrainingModel.load

    def load(*args: Any, **options: Any) -> TrainingModel:
        model = loaded(*args, **options)
        first.update({name: tensor.detach().clone() for name, tensor in model.adapter_state().items()})
        return model

    monkeypatch.setattr(TrainingModel, "load", load)
    monkeypatch.setattr(TrainingState, "outcome", hollow)
    told = Recorder()
    with pytest.raises(TrainingFailed) as failure:
        small.execute(small.spec(job=f"ftjob-row37-{harm.partition(' ')[0]}{len(harm)}", resolved={"n_epochs": 1}), told)
    assert failure.value.code == "artifact_invalid"
    assert told.of("finished") == []


def test_checkpoints_come_by_time_and_the_best_one_stays(small: SmallRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rank 0's wish: a clock that goes 10 s a step asks for a checkpoint at every third one."""
    hands = iter(range(0, 10**6, 10))
    monkeypatch.setattr("trainers.loop.monotonic", lambda: float(next(hands)))
    spec = small.spec(job="ftjob-timed", checkpoints={"every_steps": 1000, "every_seconds": 25, "keep": 10})
    steps = [saved.step for saved in small.execute(spec).of("checkpoint")]
    assert len(steps) >= 3
    assert steps[-1] == 10
    assert objects.checkpoint_prefixes(open_storage(small.storage_url), spec.job_id, 2)[0].endswith("step-10")


def stored(storage: LocalStorage, spec: RunSpec, facts: Any) -> str:
    """A checkpoint of step 4 whose manifest says that a run with the settings `facts` wrote it."""
    with tempfile.TemporaryDirectory() as scratch:
        checkpoint.write_snapshot(snapshot(4), FORM, Path(scratch))
        prefix = f"{spec.run_prefix}/checkpoints/step-4"
        manifest.write(storage, prefix, Path(scratch), {"step": 4, "spec": facts})
    return prefix


def test_a_checkpoint_of_other_settings_is_refused_and_one_that_lacks_new_settings_is_not(small: SmallRun, tmp_path: Path) -> None:
    """An older release wrote no word of what came later; what it meant is the default."""
    spec, storage = small.spec(job="ftjob-settings"), LocalStorage(tmp_path)
    older = spec.model_dump(mode="json")
    del older["tunesmith"]["training"]["activation_checkpointing"]
    assert checkpoint.load(storage, stored(storage, spec, older), spec, FORM).cursor.step == 4
    elsewhere = {**older, "epoch": 9, "resolved": {**older["resolved"], "engine": "zero3"}}
    second = LocalStorage(tmp_path / "elsewhere")
    assert checkpoint.load(second, stored(second, spec, elsewhere), spec, FORM).cursor.step == 4
    for change in ({"seed": spec.seed + 1}, {"invented": 1}, {"tunesmith": None}):
        other = LocalStorage(tmp_path / next(iter(change)))
        prefix = stored(other, spec, older | change)
        with pytest.raises(ManifestBroken, match=r"other settings|another release"):
            checkpoint.load(other, prefix, spec, FORM)
