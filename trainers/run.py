"""One run on one rank, from its spec to a published and proven adapter or model. Plain Python: Ray or not is the caller's choice.

Called by `worker` on Ray, and by the benchmarks without it. Puts the other modules together and decides nothing else.
"""

from __future__ import annotations

import ctypes
import gc
import logging
import os
import tempfile
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.distributed as dist
from transformers.utils.logging import disable_progress_bar

from protos.tunesmith.v1 import runs_pb2 as pb
from trainers import checkpoint, manifest, plan, registry
from trainers.base_model import fetch_base
from trainers.checkpoint import Checkpoints, patiently
from trainers.data import DatasetUnreadable, Layout, TokenisedDataset, fetch_dataset
from trainers.engine import Engine, TorchEngine, adamw
from trainers.failure import Stopped, TrainingFailed, classify, is_peer_gone
from trainers.forms import ADAPTER_CONFIG, AdapterForm, Form, ModelForm
from trainers.leaving import Leaving
from trainers.loop import LoopParts, probe, train
from trainers.manifest import ManifestBroken
from trainers.mapped import state_directory
from trainers.model import TrainingModel
from trainers.model_files import measure
from trainers.publish import Published, final_metrics, publish
from trainers.report import Reporter, last_word
from trainers.sequence import Exchange
from trainers.spec import DatasetRef, RunSpec
from trainers.state import Holder, PlainHolder, Snapshot, TrainingState, require_moments
from trainers.storage import Storage
from trainers.verify import Expectation, expectation, fingerprints, verify
from trainers.watch import Watch

EXIT_STUCK = 75
"""Status of a rank 0 that ends itself because the run hangs."""
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a rank runs."""

    rank: int
    world_size: int
    device: torch.device
    cache: Path
    """Directory on the node for copies of base models and datasets."""
    leaving: Leaving = field(default_factory=Leaving)
    nvme: Path | None = None
    """Directory on the node for optimizer state that is to lie on NVMe, where the operator named one."""


def execute(spec: RunSpec, storage: Storage, reporter: Reporter, place: Place) -> None:
    """Train and, on rank 0, publish, verify and report Finished.

    Raises TrainingFailed or whatever else went wrong, see failure.classify; Stopped when the run was asked to leave.
    """
    # Libraries import DeepSpeed where they find it, and it guesses by what is installed unless it is told.
    os.environ["DS_ACCELERATOR"] = "cuda" if place.device.type == "cuda" else "cpu"
    disable_progress_bar()
    state_dir = _state_dir(spec, place)
    reporter.stage = "loading the base model"
    base_dir = patiently(lambda: fetch_base(spec.base_model, storage, place.cache))
    layout = Layout(place.rank, place.world_size, spec.tunesmith.resources.sequence_parallel)
    model = _model(spec, base_dir, place, layout)
    initial = fingerprints(model.adapter_state()) if place.rank == 0 else {}
    form = _form(spec, model, base_dir, storage)
    training = _dataset(storage, spec.dataset, place.cache)
    validation = _dataset(storage, spec.validation, place.cache) if spec.validation else None
    found, kept = _resume(spec, storage, reporter, place, model, form)
    trainable = sum(parameter.numel() for parameter in model.trainable_parameters())  # ZeRO-3 leaves empty ones
    engine, holder = _engine(spec, model, place, state_dir)
    _give_back()  # ZeRO 3 has divided what was loaded whole
    state = TrainingState(holder)
    if found is not None:
        state.restore(found)
    if state.cursor.micro_batch == 0:
        state.cursor.micro_batch = _micro_batch(spec, base_dir, place)
    if spec.micro_batch is not None:  # an earlier run found no memory for more
        state.cursor.micro_batch = min(state.cursor.micro_batch, spec.micro_batch)
    _tell_started(spec, reporter, place, trainable, state)
    saves = Checkpoints(storage, spec, form, _on_saved(reporter), kept) if place.rank == 0 else None
    method = registry.get(spec.method)
    with _watched(reporter, place) as watch:
        parts = LoopParts(spec, method, model, state, engine, layout, training, validation, reporter, saves, place.leaving, watch)
        # Elsewhere the longest batch costs a step for nothing: a processor's memory ends in a kill, which nobody can catch.
        if place.device.type != "cpu" and state.cursor.step == 0:
            probe(parts)
        if not train(parts):
            return
        watch.mark("gathering what was trained")
        snapshot = state.outcome()
        expected = expectation(model, engine.score, training, initial, rounded=_rounds_weights(spec))
    engine.close()
    del parts, model, state, holder, engine
    _give_back()  # `verify` loads the model once more
    if place.rank == 0:
        _conclude(spec, storage, reporter, snapshot, form, expected, base_dir)


def _conclude(
    spec: RunSpec, storage: Storage, reporter: Reporter, snapshot: Snapshot, form: Form, expected: Expectation, base_dir: Path
) -> None:
    reporter.stage = f"publishing the {form.folder}"
    with tempfile.TemporaryDirectory(prefix="tunesmith-publish-") as scratch:
        published = publish(storage, spec, snapshot, form, expected.dtype, base_dir, Path(scratch))
    reporter.stage = f"verifying the {form.folder}"
    verify(storage, published, form, base_dir, expected)
    reporter.tell(_finished(snapshot, published))
    reporter.deliver()


def _model(spec: RunSpec, base_dir: Path, place: Place, layout: Layout) -> TrainingModel:
    return TrainingModel.load(
        base_dir,
        spec.tunesmith.adapter,
        seed=spec.seed,
        device=place.device,
        engine=spec.resolved.engine,
        activation_checkpointing=spec.tunesmith.training.activation_checkpointing,
        exchange=Exchange(layout, place.device) if layout.sequence_parallel > 1 else None,
    )


def _form(spec: RunSpec, model: TrainingModel, base_dir: Path, storage: Storage) -> Form:
    if spec.tunesmith.adapter.type == "full":
        return ModelForm(base_dir)
    return AdapterForm(_adapter_config(model, _base_name(spec, storage)))


def _state_dir(spec: RunSpec, place: Place) -> Path | None:
    """Where the job's optimizer state lies in files; None where it lies in memory."""
    settings = spec.tunesmith.resources.deepspeed
    return state_directory(place.nvme) if settings is not None and settings.on_nvme else None


def _rounds_weights(spec: RunSpec) -> bool:
    settings = spec.tunesmith.resources.deepspeed
    return settings is not None and settings.rounds_weights


def _engine(spec: RunSpec, model: TrainingModel, place: Place, state_dir: Path | None) -> tuple[Engine, Holder]:
    """The engine that was resolved, and where it holds what is trained."""
    training, keeps = spec.tunesmith.training, place.rank == 0
    if spec.resolved.engine == "torch":
        optimizer = adamw(model.trainable_parameters(), training.weight_decay)
        plain = TorchEngine(
            model,
            model.trainable_parameters(),
            optimizer,
            max_grad_norm=training.max_grad_norm,
            rank=place.rank,
            world_size=place.world_size,
            passes_meet=spec.tunesmith.resources.sequence_parallel > 1,
        )
        return plain, PlainHolder(model, optimizer, keeps=keeps)
    from trainers.deepspeed_engine import DeepSpeedEngine, ZeroHolder  # imports slowly, and is not needed for plain torch

    engine = DeepSpeedEngine(
        model,
        stage=int(spec.resolved.engine.removeprefix("zero")),
        settings=spec.tunesmith.resources.deepspeed,
        weight_decay=training.weight_decay,
        max_grad_norm=training.max_grad_norm,
        device=place.device,
        rank=place.rank,
        world_size=place.world_size,
        state_dir=state_dir,
    )
    return engine, ZeroHolder(engine, model, keeps=keeps)


@contextmanager
def _watched(reporter: Reporter, place: Place) -> Generator[Watch]:
    """Training under watch. Of peers that are gone the failure names the first, where rank 0 can tell."""

    def stuck(failed: TrainingFailed) -> None:
        log.error("%s", failed)
        reporter.tell(last_word(failed))
        with suppress(Stopped, TrainingFailed):
            reporter.deliver()
        os._exit(EXIT_STUCK)  # the main thread hangs where no exception reaches it

    watch = Watch(place.rank, place.world_size, _StoreExchange() if place.world_size > 1 else None, stuck)
    try:
        yield watch
    except Exception as error:
        gone = watch.silent() if place.rank == 0 and place.world_size > 1 and is_peer_gone(error) else ()
        if gone:
            raise watch.lost(gone, classify(error).message) from error
        raise
    finally:
        watch.close()


class _StoreExchange:
    """Beats through the store by which the ranks found each other: it needs no collective. A connection of its own, for calls block."""

    def __init__(self) -> None:
        shared = dist.distributed_c10d._get_default_store()
        self._store = dist.PrefixStore("tunesmith/beats", shared.clone())

    def put(self, rank: int, text: str) -> None:
        self._store.set(str(rank), text)

    def get(self, rank: int) -> str | None:
        return self._store.get(str(rank)).decode() if self._store.check([str(rank)]) else None


def _base_name(spec: RunSpec, storage: Storage) -> str:
    """What the adapter names as its base: where others can get it when it came from a hub, else the catalogue's name."""
    source = manifest.read(storage, spec.base_model.prefix).facts.get("source") or {}
    return source.get("hub", spec.base_model.id)


def _adapter_config(model: TrainingModel, base_name: str) -> bytes:
    """adapter_config.json, the same for every checkpoint of the run."""
    with tempfile.TemporaryDirectory(prefix="tunesmith-config-") as scratch:
        model.save_adapter(Path(scratch), base_model=base_name)
        return (Path(scratch) / ADAPTER_CONFIG).read_bytes()


def _dataset(storage: Storage, ref: DatasetRef, cache: Path) -> TokenisedDataset:
    try:
        return patiently(lambda: fetch_dataset(ref, storage, cache))
    except (DatasetUnreadable, ManifestBroken) as error:
        raise TrainingFailed("dataset_unreadable", f"the tokenised dataset is damaged: {error}", "service") from error


def _resume(
    spec: RunSpec, storage: Storage, reporter: Reporter, place: Place, model: TrainingModel, form: Form
) -> tuple[Snapshot | None, list[str]]:
    """The newest checkpoint that verifies; and the prefixes of it and those before it."""
    if not spec.resume_from:
        return None, []
    reporter.stage = "reading the last checkpoint"

    def refused(why: str) -> None:
        reporter.tell(pb.RunReport(notice=pb.Notice(level="warn", message=f"A checkpoint was refused, the one before is tried: {why}")))

    # Rank 0 chooses, the others follow: two ranks that chose for themselves could disagree.
    found = checkpoint.first_good(storage, spec.resume_from, spec, form, refused) if place.rank == 0 else None
    prefix = _from_rank_0(found[0] if found else None, place)
    if prefix is None:
        return None, []
    snapshot = found[1] if found else patiently(lambda: checkpoint.load(storage, prefix, spec, form))
    try:
        model.require_fit(snapshot.weights)
        require_moments(snapshot.optimizer, [parameter.shape for parameter in model.trainable_parameters()])
    except (ValueError, KeyError) as error:
        raise TrainingFailed("checkpoint_unreadable", f"{prefix} does not fit the model: {error}", "service") from error
    return snapshot, [known for known in spec.resume_from if checkpoint.step_of(known) <= snapshot.cursor.step]


def _from_rank_0(value: str | None, place: Place) -> str | None:
    if place.world_size == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def _give_back() -> None:
    """Memory that nothing refers to goes back to the system: modules refer to themselves, and glibc keeps small pieces in its heap."""
    gc.collect()
    with suppress(OSError, AttributeError):  # another library of C
        ctypes.CDLL(None).malloc_trim(0)


def _micro_batch(spec: RunSpec, base_dir: Path, place: Place) -> int:
    on_cpu = place.device.type == "cpu"
    whole = plan.host_memory_bytes() if on_cpu else torch.cuda.mem_get_info(place.device)[1]
    memory = plan.worker_memory(whole, spec.tunesmith.resources)
    assert memory is not None
    longest = max(spec.dataset.longest, spec.validation.longest if spec.validation else 0)
    load = plan.Load.of(measure(base_dir), spec.tunesmith, spec.resolved.engine, on_cpu=on_cpu)
    return _least_of_all(load.micro_batch(longest=longest, rows=spec.rows_per_replica, memory_bytes=memory), place)


def _least_of_all(number: int, place: Place) -> int:
    """Over the ranks, whose nodes may differ: with micro-batches of their own they would not meet at the same collectives."""
    if place.world_size == 1:
        return number
    least = torch.tensor(number, device=place.device)
    dist.all_reduce(least, dist.ReduceOp.MIN)
    return int(least)


def _on_saved(reporter: Reporter) -> checkpoint.OnSaved:
    def saved(step: int, prefix: str, digest: str, size: int) -> None:
        reporter.tell(pb.RunReport(checkpoint=pb.CheckpointSaved(step=step, prefix=prefix, manifest_sha256=digest, bytes=size)))

    return saved


def _tell_started(spec: RunSpec, reporter: Reporter, place: Place, trainable: int, state: TrainingState) -> None:
    reporter.tell(
        pb.RunReport(
            started=pb.Started(
                world_size=place.world_size,
                engine=spec.resolved.engine,
                device=str(place.device),
                total_steps=spec.resolved.steps,
                resumed_step=state.cursor.step,
                trainable_parameters=trainable,
                micro_batch=min(state.cursor.micro_batch, spec.rows_per_replica),
            )
        )
    )


def _finished(snapshot: Snapshot, published: Published) -> pb.RunReport:
    metrics = final_metrics(snapshot)
    return pb.RunReport(
        finished=pb.Finished(
            last_step=snapshot.cursor.step,
            manifest_sha256=published.manifest_sha256,
            trained_tokens=snapshot.cursor.trained_tokens,
            final_train_loss=metrics["train_loss"],
            final_valid_loss=metrics.get("valid_loss"),
            final_valid_mean_token_accuracy=metrics.get("valid_mean_token_accuracy"),
            stopped_early=snapshot.cursor.stopped_early,
        )
    )
