"""The training loop; the only one. It is read from top to bottom.

Knows no Ray, no gRPC, no storage and no model: rows come from `data`, steps run on an `Engine`, checkpoints and reports
go where `LoopParts` says. Every rank runs it; ranks other than 0 have nobody to report to and nothing to save.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from time import monotonic, perf_counter
from typing import Protocol

import numpy as np

from protos.tunesmith.v1 import runs_pb2 as pb
from trainers.checkpoint import Checkpoints
from trainers.data import Batch, Indices, Layout, Sampler, TokenisedDataset, collate, micro_batches
from trainers.engine import Engine, StepResult, Sums
from trainers.failure import Stopped, TrainingFailed
from trainers.leaving import DIRECTIVES, Leaving, Wish
from trainers.method import Method
from trainers.report import Reporter, last_word
from trainers.schedule import learning_rate
from trainers.spec import RunSpec
from trainers.state import MetricsRow, TrainingState, seed_step
from trainers.watch import Watch

PACE = 0.1
"""Weight of the newest step in the running mean of the speed."""


class Modes(Protocol):
    """The part of model.TrainingModel that turns dropout on and off."""

    def train(self) -> None:
        """Dropout on."""
        ...

    def eval(self) -> None:
        """Dropout off."""
        ...


@dataclass(frozen=True, slots=True)
class LoopParts:
    """What one rank trains with."""

    spec: RunSpec
    method: Method
    model: Modes
    state: TrainingState
    engine: Engine
    layout: Layout
    training: TokenisedDataset
    validation: TokenisedDataset | None
    reporter: Reporter
    checkpoints: Checkpoints | None
    """None on ranks other than 0."""
    leaving: Leaving
    watch: Watch


def train(parts: LoopParts) -> bool:
    """Carry `parts.state` on from its step to the last; every checkpoint is written when this returns.

    False when the run was left after a checkpoint, which only ranks other than 0 come to hear this way: rank 0, which must be
    the last to go, raises Stopped. Raises Stopped when the gateway asks to stop at once, TrainingFailed when the loss is no
    longer a number, or memory does not suffice for single rows.
    """
    spec, state, engine, reporter, watch = parts.spec, parts.state, parts.engine, parts.reporter, parts.watch
    layout = parts.layout
    cursor, lengths = state.cursor, parts.training.lengths
    sampler = Sampler(lengths, spec.resolved.batch_size, spec.seed, spec.resolved.n_epochs)
    pace, saved_at = Pace(), monotonic()
    parts.model.train()
    while cursor.step < sampler.steps and not cursor.stopped_early:
        reporter.stage = "training"
        began, doing = perf_counter(), f"step {cursor.step + 1}"
        watch.mark(doing, "step")
        rows = sampler.batch(cursor.step)
        seed_step(spec.seed, cursor.step, engine.rank)
        rate = learning_rate(cursor.step, sampler.steps, spec.resolved.learning_rate, spec.tunesmith.training)
        mine = micro_batches(rows, lengths, layout.replica, layout.replicas, cursor.micro_batch)
        batches = (layout.part(collate(parts.training, piece)) for piece in mine)
        weight = float(parts.training.trained[rows].sum(dtype=np.float64))
        arriving, wish = watch.arriving(batches, doing, "step"), _wish(parts, monotonic() - saved_at)
        result = engine.step(arriving, parts.method, weight=weight, learning_rate=rate, signal=wish)

        if result.out_of_memory:
            halve_micro_batch(parts, doing, len(rows))
            continue
        if not result.finite:
            raise _diverged(cursor.step + 1, result)
        cursor.step += 1
        cursor.tokens += int(result.sums.tokens)
        cursor.trained_tokens += int(result.sums.labels)
        state.history.append(MetricsRow(cursor.step, result.sums.mean_loss, result.sums.accuracy))
        pace.stepped(perf_counter() - began, result.sums.tokens)
        reporter.tell(pb.RunReport(step=_step_done(parts, result, rate, pace, sampler.steps)))
        if result.signal == Wish.LEAVE:
            raise Stopped("the gateway asked the run to stop")

        leaving = result.signal in (Wish.SAVE_AND_LEAVE, Wish.YIELD)
        last = cursor.step == sampler.steps
        if parts.validation is not None and (last or cursor.step % spec.tunesmith.evaluation.every_steps == 0):
            pace.evaluated(_evaluate(parts, parts.validation))
        due = cursor.step % spec.tunesmith.checkpoints.every_steps == 0 or result.signal == Wish.SAVE
        if last or due or leaving or cursor.stopped_early:
            watch.mark(f"saving the checkpoint of {doing}")
            saved_at = monotonic()
            _save(parts)
        if leaving:
            _leave(parts, Wish(result.signal))
            return False
    _finish_saving(parts)
    return True


def probe(parts: LoopParts) -> None:
    """Make the micro-batch one that the longest rows fit in, before the first step rather than somewhere on the way.

    Every rank takes the same rows. Raises TrainingFailed when not even one of them fits.
    """
    longest_first: Indices = np.argsort(-parts.training.lengths, kind="stable")
    fits = False
    while not fits:
        parts.watch.mark("the longest batch")
        size = parts.state.cursor.micro_batch
        batch = parts.layout.part(collate(parts.training, longest_first[:size]))
        fits = parts.engine.probe(parts.watch.arriving([batch], "the longest batch", "other"), parts.method)
        if not fits:
            halve_micro_batch(parts, "the longest batch", size * parts.layout.replicas)


def halve_micro_batch(parts: LoopParts, doing: str, rows: int) -> None:
    """Go on with half of it; the global batch and the order of rows stay. Raises TrainingFailed when single rows were too large.

    `rows` of all replicas were tried: a micro-batch that is larger than a replica's share was no larger than that share.
    """
    cursor = parts.state.cursor
    tried = min(cursor.micro_batch, -(-rows // parts.layout.replicas))
    if tried == 1:
        failed = TrainingFailed("out_of_memory", f"memory does not suffice for {doing}, even with a micro-batch of 1 row", "resource")
        failed.micro_batch = tried
        raise failed
    cursor.micro_batch = tried // 2
    whole = parts.spec.resolved.batch_size
    message = f"Out of memory at {doing}: micro-batch halved from {tried} to {cursor.micro_batch}, the global batch stays {whole}"
    parts.reporter.tell(pb.RunReport(notice=pb.Notice(level="warn", message=message, micro_batch=cursor.micro_batch)))


def _wish(parts: LoopParts, since_saved: float) -> Wish:
    """What this rank wants at the end of the step. Checkpoints by time are rank 0's wish, for clocks differ."""
    told = DIRECTIVES.get(parts.reporter.directive(), Wish.GO_ON)
    every = parts.spec.tunesmith.checkpoints.every_seconds
    due = Wish.SAVE if every is not None and parts.checkpoints is not None and since_saved >= every else Wish.GO_ON
    return max(told, due, Wish.YIELD if parts.leaving.why() else Wish.GO_ON)


@dataclass(slots=True)
class Pace:
    """How fast the run is, as running means; seconds and tokens."""

    step_seconds: float = 0.0
    step_tokens: float = 0.0
    evaluation_seconds: float = 0.0

    def stepped(self, seconds: float, tokens: float) -> None:
        """A step is done."""
        weight = PACE if self.step_seconds else 1.0
        self.step_seconds += weight * (seconds - self.step_seconds)
        self.step_tokens += weight * (tokens - self.step_tokens)

    def evaluated(self, seconds: float) -> None:
        """The validation file was scored."""
        self.evaluation_seconds = seconds

    @property
    def tokens_per_second(self) -> float:
        """Non-padding tokens of all workers."""
        return self.step_tokens / self.step_seconds if self.step_seconds else 0.0

    def eta(self, steps: int, evaluations: int) -> float:
        """Seconds for that many further steps and evaluations."""
        return steps * self.step_seconds + evaluations * self.evaluation_seconds


def _evaluate(parts: LoopParts, validation: TokenisedDataset) -> float:
    """Score the validation file, note it, decide on early stopping; the seconds it took."""
    began, cursor = perf_counter(), parts.state.cursor
    parts.reporter.stage = "evaluating"
    parts.model.eval()
    doing = f"the evaluation after step {cursor.step}"
    parts.watch.mark(doing, "evaluation")
    batches = _batches(validation, parts.layout, cursor.micro_batch)
    sums = parts.engine.evaluate(parts.watch.arriving(batches, doing, "evaluation"), parts.method)
    parts.model.train()
    row = parts.state.history[-1]
    parts.state.history[-1] = MetricsRow(row.step, row.train_loss, row.train_accuracy, sums.mean_loss, sums.accuracy)
    _judge(parts, sums)
    evaluated = pb.Evaluated(step=cursor.step, valid_loss=sums.mean_loss, valid_mean_token_accuracy=sums.accuracy, full=True)
    parts.reporter.tell(pb.RunReport(evaluated=evaluated))
    return perf_counter() - began


def _judge(parts: LoopParts, sums: Sums) -> None:
    """Early stopping: every rank sees the same sums and comes to the same answer."""
    cursor, rule = parts.state.cursor, parts.spec.tunesmith.evaluation.early_stopping
    least_gain = rule.min_delta if rule else 0.0
    if cursor.best_valid_loss is None or sums.mean_loss < cursor.best_valid_loss - least_gain:
        cursor.best_valid_loss, cursor.evaluations_without_gain = sums.mean_loss, 0
    else:
        cursor.evaluations_without_gain += 1
    cursor.stopped_early = rule is not None and cursor.evaluations_without_gain >= rule.patience


def _batches(dataset: TokenisedDataset, layout: Layout, micro_batch: int) -> Iterator[Batch]:
    """This rank's share of a dataset, rows of near-equal length together; empty pieces so that all ranks have equally many."""
    by_length: Indices = np.argsort(-dataset.lengths, kind="stable")
    pieces = [by_length[start : start + micro_batch] for start in range(0, len(by_length), micro_batch)]
    pieces += [by_length[:0]] * (-len(pieces) % layout.replicas)
    return (layout.part(collate(dataset, piece)) for piece in pieces[layout.replica :: layout.replicas])


def _save(parts: LoopParts) -> None:
    """Every rank takes part, for each may hold a part. The copy before this one is gone first: a host need not have room for two."""
    if parts.checkpoints is not None:
        parts.checkpoints.wait()
    snapshot = parts.state.snapshot()
    if parts.checkpoints is not None:
        parts.checkpoints.save(snapshot)


def _finish_saving(parts: LoopParts) -> None:
    if parts.checkpoints is not None:
        parts.reporter.stage = "saving the checkpoint"
        parts.checkpoints.wait()


def _leave(parts: LoopParts, wish: Wish) -> None:
    """Other ranks return without a word: an error of theirs would end the run while rank 0 still writes and tells."""
    _finish_saving(parts)
    if parts.checkpoints is None:
        return
    words = "the gateway asked the run to stop after a checkpoint"
    if wish is Wish.YIELD:
        words = f"a node of the run goes away ({parts.leaving.why() or 'told to another rank'})"
        parts.reporter.tell(last_word(TrainingFailed("preempted", words, "infrastructure")))
    parts.reporter.deliver()
    raise Stopped(words)


def _step_done(parts: LoopParts, result: StepResult, rate: float, pace: Pace, steps: int) -> pb.StepDone:
    cursor, every = parts.state.cursor, parts.spec.tunesmith.evaluation.every_steps
    evaluations = 0 if parts.validation is None else -(-steps // every) - cursor.step // every
    return pb.StepDone(
        step=cursor.step,
        train_loss=result.sums.mean_loss,
        train_mean_token_accuracy=result.sums.accuracy,
        learning_rate=rate,
        grad_norm=result.grad_norm,
        tokens=cursor.tokens,
        tokens_per_second=pace.tokens_per_second,
        eta_seconds=pace.eta(steps - cursor.step, evaluations),
        trained_tokens=cursor.trained_tokens,
        step_tokens=int(result.sums.tokens),
    )


def _diverged(step: int, result: StepResult) -> TrainingFailed:
    message = (
        f"training diverged at step {step}: the loss is {result.sums.mean_loss:g}, the gradient norm {result.grad_norm:g}. "
        "Nothing of this run is published."
    )
    return TrainingFailed("diverged", message, "config")
