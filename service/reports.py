"""What runs tell: checks that a report is from the current run, and writes it into the job's history.

Called by `App.report`; says what the run should do next. The scheduler, not this module, ends jobs:
a run's last word is only noted here, as the run's outcome.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

from protos.tunesmith.v1 import runs_pb2 as pb
from service.errors import ErrorCode, TunesmithError, invalid
from service.jobs import ON_RAY, Job, JobStatus, Notice, advance, checkpoint_model_name, tuned_model_name
from service.store import Store, Transaction
from service.store.runs import Run
from trainers.spec import model_prefix
from trainers.storage import Storage

DIRECTIVES = {
    JobStatus.CANCELLING: pb.DIRECTIVE_STOP,
    JobStatus.PAUSING: pb.DIRECTIVE_CHECKPOINT_AND_STOP,
}
"""What a run is told for the state its job is in; anything else means go on."""
LOSSES = {"train_loss": "training loss", "valid_loss": "validation loss", "full_valid_loss": "full validation loss"}
"""OpenAI's words for the numbers in a step's event."""


NOT_OF_CHECKPOINTS = ("total_steps", "learning_rate", "grad_norm", "tokens_per_second")
"""What a step's event says that is no measure of the model at that step."""


class StepMeter(Protocol):
    """The part of the metrics that follows runs."""

    def observe_step(self, job_id: str, step: int, loss: float, lr: float, tokens_per_second: float, new_tokens: int, /) -> None:
        """One optimizer step of a job."""
        ...


def stale(message: str) -> TunesmithError:
    """The caller is not, or no longer, the job's current run."""
    return TunesmithError(ErrorCode.STALE, message)


@dataclass
class _Update:
    """What a batch of reports comes to, gathered before it is written."""

    job: Job
    notices: list[Notice]
    run: dict[str, Any]
    checkpoints: list[pb.CheckpointSaved]
    outcome: dict[str, Any] | None
    """The run's last word, if it has said one before."""
    held: dict[str, Any] | None
    """Numbers of a step whose evaluation is going on: OpenAI tells of both in one event."""
    micro_batch: int | None
    """Most rows of one forward pass that the run is known to have."""


class RunReports:
    """Takes the reports of all runs."""

    def __init__(self, store: Store, storage: Storage, meter: StepMeter, wake: Callable[[], None]) -> None:
        self._store, self._storage, self._meter, self._wake = store, storage, meter, wake

    async def take(self, bearer: str, request: pb.ReportRequest) -> pb.ReportResponse:
        """Write the reports that are new and answer with what to do.

        Raises TunesmithError: UNAUTHENTICATED for a wrong token, STALE when the run is no longer the
        job's current one, INVALID_REQUEST when a number is missing before the first new report.
        """
        result = await self._published(request)
        async with self._store.begin() as tx:
            run = await self._authentic_run(tx, bearer, request)
            job = await tx.any_job(request.job_id, lock=True)
            new = [report for report in request.reports if report.seq > run.last_seq]
            if new or not request.reports:
                _refuse_stale(job, run)
            if new and new[0].seq != run.last_seq + 1:
                raise invalid(f"report {new[0].seq} came, {run.last_seq + 1} is missing", "reports")
            update = _gather(job, run, request.stage, new, result)
            await self._write(tx, job, run, update)
        self._meter_steps(job, new)
        if "outcome" in update.run or update.job.status is not job.status:
            self._wake()
        return pb.ReportResponse(acknowledged=update.run.get("last_seq", run.last_seq), directive=_directive(job, run))

    async def _authentic_run(self, tx: Transaction, bearer: str, request: pb.ReportRequest) -> Run:
        run = await tx.run(request.job_id, request.epoch)
        digest = hashlib.sha256(bearer.encode()).hexdigest()
        if run is None or not hmac.compare_digest(run.token_sha256, digest):
            raise TunesmithError(ErrorCode.UNAUTHENTICATED, "This token is not that of the run.")
        return run

    async def _write(self, tx: Transaction, job: Job, run: Run, update: _Update) -> None:
        await tx.update_run(run.job_id, run.epoch, reported_at=tx.time, **update.run)
        if update.notices or update.job is not job:
            if update.job.started_at is None and update.job.status is JobStatus.RUNNING:
                update.job = replace(update.job, started_at=tx.time)
            await tx.apply(job, update.job, update.notices)
        for saved in update.checkpoints:
            at_step = await tx.metrics_at(job.id, saved.step)
            metrics = {key: value for key, value in at_step.items() if key not in NOT_OF_CHECKPOINTS and _finite(value)}
            name = checkpoint_model_name(planned_model_name(job), saved.step, job.resolved.steps if job.resolved else -1)
            await tx.put_checkpoint(job.id, run.epoch, saved.step, saved.prefix, name, metrics, rules=job.spec.tunesmith.checkpoints)

    async def _published(self, request: pb.ReportRequest) -> dict[str, Any]:
        """Facts of the result file, read from the manifest that the run says it has published."""
        finished = [report.finished for report in request.reports if report.WhichOneof("body") == "finished"]
        if not finished:
            return {}
        prefix = model_prefix(request.job_id, request.epoch)
        raw = await asyncio.to_thread(self._storage.get, f"{prefix}/manifest.json")
        if hashlib.sha256(raw).hexdigest() != finished[-1].manifest_sha256:
            raise invalid("the published manifest is not the one that was reported", "reports")
        entries = {entry["name"]: entry for entry in json.loads(raw)["files"]}
        csv = entries["metrics.csv"]
        return {"key": f"{prefix}/metrics.csv", "bytes": csv["bytes"], "sha256": csv["sha256"]}

    def _meter_steps(self, job: Job, reports: list[pb.RunReport]) -> None:
        for report in reports:
            if report.WhichOneof("body") == "step":
                s = report.step
                self._meter.observe_step(job.id, s.step, s.train_loss, s.learning_rate, s.tokens_per_second, s.step_tokens)


def planned_model_name(job: Job) -> str:
    """The name the job's model has, or will have once it succeeds."""
    return tuned_model_name(job.spec.model, job.organization_id, job.spec.suffix, job.id)


def _directive(job: Job, run: Run) -> pb.Directive:
    asked = pb.DIRECTIVE_CONTINUE if run.leaving is None else pb.DIRECTIVE_CHECKPOINT_AND_STOP
    return DIRECTIVES.get(job.status, asked)


def _refuse_stale(job: Job, run: Run) -> None:
    if run.epoch != job.epoch or job.status not in ON_RAY or run.ended_at is not None:
        raise stale(f"run {run.epoch} of {run.job_id} is over: the job is {job.status} at run {job.epoch}")


def _gather(job: Job, run: Run, stage: str, reports: list[pb.RunReport], result: dict[str, Any]) -> _Update:
    update = _Update(job, [], {}, [], run.outcome, run.held, run.micro_batch)
    if stage and stage != job.progress.stage:
        update.job = replace(update.job, progress=update.job.progress.model_copy(update={"stage": stage}))
    for report in reports:
        body = report.WhichOneof("body")
        if body is not None:
            _GATHER[body](update, getattr(report, body), result)
        update.run["last_seq"] = report.seq
    if update.held != run.held:
        update.run["held"] = update.held
    return update


def _progress(update: _Update, **changes: Any) -> None:
    update.job = replace(update.job, progress=update.job.progress.model_copy(update=changes))


def _fewer_rows(update: _Update, rows: int) -> None:
    """The micro-batch as the run tells it, 0 where it does not. It only falls, which is what bounds how often it is halved."""
    if rows:
        update.micro_batch = update.run["micro_batch"] = min(rows, update.micro_batch or rows)


def _started(update: _Update, started: pb.Started, result: dict[str, Any]) -> None:
    if update.job.status is JobStatus.STARTING:
        update.job = advance(update.job, JobStatus.RUNNING, reason="")
    _progress(update, step=started.resumed_step, total_steps=started.total_steps)
    update.run["resumed_step"] = started.resumed_step
    _fewer_rows(update, started.micro_batch)
    message = "Fine-tuning job started" if started.resumed_step == 0 else f"Fine-tuning resumed from step {started.resumed_step}"
    update.notices.append(Notice(message))


def _step(update: _Update, step: pb.StepDone, result: dict[str, Any]) -> None:
    _tell_held(update)
    total = update.job.progress.total_steps or step.step
    _progress(
        update,
        step=step.step,
        loss=_number(step.train_loss),
        learning_rate=step.learning_rate,
        tokens_per_second=_number(step.tokens_per_second),
        eta_seconds=_number(step.eta_seconds),
    )
    update.run["last_step"] = step.step
    data = {
        "step": step.step,
        "total_steps": total,
        "train_loss": _number(step.train_loss),
        "train_mean_token_accuracy": _number(step.train_mean_token_accuracy),
        "learning_rate": step.learning_rate,
        "grad_norm": _number(step.grad_norm),
        "tokens_per_second": _number(step.tokens_per_second),
    }
    update.held = data
    if not _is_evaluated_at(update.job, step.step):
        _tell_held(update)


def _is_evaluated_at(job: Job, step: int) -> bool:
    last = job.resolved is not None and step == job.resolved.steps
    return job.validation is not None and (last or step % job.spec.tunesmith.evaluation.every_steps == 0)


def _evaluated(update: _Update, score: pb.Evaluated, result: dict[str, Any]) -> None:
    if update.held is not None and update.held["step"] != score.step:
        _tell_held(update)
    total = update.job.progress.total_steps or score.step
    loss, accuracy = _number(score.valid_loss), _number(score.valid_mean_token_accuracy)
    data = (update.held or {"step": score.step, "total_steps": total}) | {"valid_loss": loss, "valid_mean_token_accuracy": accuracy}
    if score.full:
        data |= {"full_valid_loss": loss, "full_valid_mean_token_accuracy": accuracy}
    update.held = data
    _tell_held(update)


def _tell_held(update: _Update) -> None:
    """The event of a step, with its evaluation where that came; nothing when none is held."""
    if update.held is None:
        return
    data, update.held = update.held, None
    losses = [f"{words}={_shown(data[name])}" for name, words in LOSSES.items() if name in data]
    update.notices.append(Notice(f"Step {data['step']}/{data['total_steps']}: {', '.join(losses)}", type="metrics", data=data))


def _checkpoint(update: _Update, saved: pb.CheckpointSaved, result: dict[str, Any]) -> None:
    _tell_held(update)
    last = update.job.resolved.steps if update.job.resolved else -1
    name = checkpoint_model_name(planned_model_name(update.job), saved.step, last)
    update.checkpoints.append(saved)
    update.notices.append(Notice(f"Checkpoint created at step {saved.step} with Snapshot ID: {name}"))


def _finished(update: _Update, finished: pb.Finished, result: dict[str, Any]) -> None:
    words = {"trained_tokens": finished.trained_tokens, "result": result, "stopped_early": finished.stopped_early}
    _end(update, {"kind": "finished", **words})


def _failed(update: _Update, failed: pb.Failed, result: dict[str, Any]) -> None:
    _fewer_rows(update, failed.micro_batch)
    words = {name: getattr(failed, name) for name in ("code", "message", "cause", "rank", "traceback")}
    _end(update, {"kind": "failed", **words, "node": failed.node or None, "hint": failed.hint or None})


def _end(update: _Update, outcome: dict[str, Any]) -> None:
    """The run's last word, if it is the first: what its driver says after it, or its death makes others say, is the echo."""
    _tell_held(update)
    if update.outcome is None:
        update.outcome = update.run["outcome"] = outcome


def _notice(update: _Update, notice: pb.Notice, result: dict[str, Any]) -> None:
    _fewer_rows(update, notice.micro_batch)
    level = notice.level if notice.level in ("info", "warn", "error") else "info"
    update.notices.append(Notice(notice.message, level=level))  # type: ignore[arg-type]


_GATHER: dict[str, Callable[[_Update, Any, dict[str, Any]], None]] = {
    "started": _started,
    "step": _step,
    "evaluated": _evaluated,
    "checkpoint": _checkpoint,
    "finished": _finished,
    "failed": _failed,
    "notice": _notice,
}


def _finite(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _shown(value: float | None) -> str:
    return "nan" if value is None else f"{value:.2f}"


def _number(value: float) -> float | None:
    """JSON has no NaN or infinity: None says that there is no number."""
    return value if math.isfinite(value) else None
