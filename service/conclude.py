"""The values a job ends with, and the lines that tell of it. Pure."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from service.jobs import Departure, Job, JobError, JobStatus, Notice, Progress, advance
from service.records import File
from service.store.runs import Run

PREEMPTED = "preempted"
"""Code of a run whose node went away: no fault of anybody, so it costs none of the retries."""
OUT_OF_MEMORY = "out_of_memory"
"""Code of a run that found no memory: the next one has half its micro-batch, which bounds how often that happens."""

_ASKED = {
    Departure.OUTRANKED: ("A job of higher priority needs the workers", "making room for a job of higher priority"),
    Departure.GROWING: ("There is room for more workers", "leaving to go on with more workers"),
    Departure.MAX_DURATION: ("The job's time is used up", "its time is used up"),
    Departure.DEADLINE: ("The job's time is used up", "its time is used up"),
}
"""What is told while a run that was asked to leave does so: the event, and the job's reason."""
_YIELDS = {
    Departure.OUTRANKED: "made room for a job of higher priority",
    Departure.GROWING: "left to go on with more workers",
}
_NO_LOSS = frozenset({*_YIELDS, OUT_OF_MEMORY})
"""Codes of runs after which the job goes on and that say nothing about whether the next one will be lost."""
_OUT_OF_TIME = {
    Departure.MAX_DURATION: ("its runs have held their workers for the {limits.max_duration} s that it was given", "max_duration"),
    Departure.DEADLINE: ("it has not succeeded within the {limits.deadline} s that it was given", "deadline"),
}


def result_file(job: Job, result: dict[str, Any]) -> File:
    """The job's metrics CSV as a file of the project."""
    name = f"{job.id}-metrics.csv"
    return File(
        f"file-{secrets.token_hex(12)}", job.project_id, name, "fine-tune-results", result["bytes"], result["sha256"], result["key"], 0.0
    )


def succeeded_notices(model_name: str, *, stopped_early: bool) -> list[Notice]:
    """The last lines of a job that succeeded."""
    early = [Notice("Stopped early: the validation loss no longer fell")] if stopped_early else []
    return [*early, Notice(f"New fine-tuned model created: {model_name}"), Notice("The job has successfully completed")]


def failed_job(job: Job, error: JobError, now: float) -> tuple[Job, list[Notice]]:
    """The job FAILED, with the line that says why."""
    failed = advance(job, JobStatus.FAILED, error=error, finished_at=now, reason="", lease_owner=None)
    return failed, [Notice(f"The job failed due to {error.code}: {error.message}", level="error")]


def after_failure(job: Job, run: Run, last_saved: int, now: float) -> tuple[Job, list[Notice]]:
    """The job after its run, whose outcome is no loss of infrastructure's.

    Where that found no memory for more than single rows while it trained, it goes on, or rests, with half the micro-batch; it is
    FAILED otherwise, for loading and proving take as much whatever the rows.
    """
    assert job.resolved is not None
    outcome, rows, reached = run.outcome or {}, micro_batch(job, run), max(run.last_step, run.resumed_step or 0)
    trained = run.resumed_step is not None and reached < job.resolved.steps
    if outcome["code"] != OUT_OF_MEMORY or rows == 1 or not trained:
        return failed_job(job, failure(outcome), now)
    if run.leaving in _OUT_OF_TIME:
        return failed_job(job, limit_error(Departure(run.leaving), job, last_saved), now)
    half = rows // 2
    where = f"after step {reached}" if reached else "before the first step was done"
    halved = f"micro-batch halved from {rows} to {half}, the global batch stays {job.resolved.batch_size}"
    told = Notice(f"Out of memory {where}: {halved}. The job will {_onward(last_saved)}.", level="warn")
    if job.status is JobStatus.PAUSING:
        paused, notices = paused_job(job, last_saved)
        return paused, [told, *notices]
    reason = f"out of memory: it will {_onward(last_saved)}, with a micro-batch of {half}"
    return advance(job, JobStatus.QUEUED, not_before=now, reason=reason, lease_owner=None, progress=_idle(job.progress)), [told]


def micro_batch(job: Job, run: Run) -> int:
    """Rows for which the run found no memory, if that is what it ended of. Of an older release's run the most that there can be."""
    assert job.resolved is not None
    return run.micro_batch or job.resolved.batch_size


def micro_batch_limit(job: Job, runs: Sequence[Run]) -> int | None:
    """Most rows of one forward pass in the job's next run; None unless a run found no memory."""
    scarce = [micro_batch(job, run) for run in runs if (run.outcome or {}).get("code") == OUT_OF_MEMORY]
    return max(1, min(scarce) // 2) if scarce else None


def paused_job(job: Job, last_saved: int) -> tuple[Job, list[Notice]]:
    """The job PAUSED, nothing of its run left; `last_saved` is the step of its newest checkpoint, 0 when there is none."""
    reason = f"paused: once resumed it will {_onward(last_saved)}"
    paused = advance(job, JobStatus.PAUSED, reason=reason, lease_owner=None, progress=_idle(job.progress))
    return paused, [Notice("The job has been paused")]


def _onward(last_saved: int) -> str:
    return f"go on from step {last_saved}" if last_saved else "start afresh"


def _idle(progress: Progress) -> Progress:
    """Of a job that has no run."""
    return progress.model_copy(update={"stage": "", "eta_seconds": None})


def leaving_job(job: Job, why: Departure) -> tuple[Job, list[Notice]]:
    """The job while its run, which was asked to leave, writes a checkpoint and does so."""
    words, reason = _ASKED[why]
    told = f"{words}: waiting for the run to write a checkpoint and leave"
    return replace(job, reason=reason), [Notice(told, level="info" if why in _YIELDS else "warn")]


def limit_error(limit: Departure, job: Job, last_saved: int) -> JobError:
    """The error of a job that has used up the time it was given; `last_saved` is the step of its newest checkpoint."""
    words, name = _OUT_OF_TIME[limit]
    kept = f"The checkpoint at step {last_saved} is kept. " if last_saved else ""
    return JobError(
        code=limit.value,
        message=words.format(limits=job.spec.tunesmith.limits),
        param=f"tunesmith.limits.{name}",
        cause="config",
        hint=f"{kept}Give a new job a larger {name}, more workers or fewer epochs.",
        last_good_step=last_saved if job.epoch else None,
    )


def yielded_job(job: Job, run: Run, why: Departure, last_saved: int, now: float) -> tuple[Job, list[Notice]]:
    """The job back in the queue, at its old place, after its run has left for the sake of a job of higher priority, or of more workers."""
    onward = _onward(last_saved)
    reason = f"{_YIELDS[why]}: it will {onward}"
    queued = advance(job, JobStatus.QUEUED, not_before=now, reason=reason, lease_owner=None, progress=_idle(job.progress))
    return queued, [Notice(f"Run {run.epoch} has {_YIELDS[why]}. The job will {onward}.")]


@dataclass(frozen=True, slots=True)
class Budget:
    """How often a job is tried again."""

    max_retries: int
    quarantine_after: int
    max_preemptions: int


def stalls(runs: Sequence[Run], last_saved: int, *, preempted: bool) -> int:
    """How many runs in a row, the newest last, were lost (or `preempted`) and brought neither a further step nor a further checkpoint.

    `last_saved` is the step of the job's newest checkpoint. Runs that were lost in the other way, or paused, break no row.
    """
    streak = furthest = 0
    for number, run in enumerate(runs, 1):
        saved = next((later.resumed_step for later in runs[number:] if later.resumed_step is not None), last_saved)
        gained = run.last_step > furthest or saved > (run.resumed_step or 0)
        furthest = max(furthest, run.last_step)
        code = (run.outcome or {}).get("code")
        counts = run.outcome is not None and code not in _NO_LOSS and (code == PREEMPTED) is preempted
        streak = 0 if gained else streak + counts
    return streak


def given_up(job: Job, runs: Sequence[Run], last_saved: int, budget: Budget) -> JobError | None:
    """Why the job is not tried again after its newest run was lost; None when it is. The budgets of both kinds of loss are apart."""
    run = runs[-1]
    outcome = run.outcome or {}
    message = f"{outcome['message']}. Gave up after {job.epoch} runs"
    if outcome["code"] == PREEMPTED:
        spent = stalls(runs, last_saved, preempted=True) > budget.max_preemptions
        return failure(outcome, message=f"{message}, for no node stayed long enough to get any further.") if spent else None
    stalled = stalls(runs, last_saved, preempted=False)
    if stalled >= budget.quarantine_after:
        message = f"{stalled} runs in a row got no further; the last one: {outcome['code']}: {outcome['message']}"
        hint = "Something at this very point kills the run: its log has the last lines. A new job with other settings is tried afresh."
        details = {"code": outcome["code"], "log_tail": outcome["log_tail"]}
        return failure(outcome, code="quarantined", message=message, hint=hint, details=details)
    if job.infra_failures >= budget.max_retries and last_saved <= (run.resumed_step or 0):
        return failure(outcome, message=f"{message}.", details={"log_tail": outcome["log_tail"]})
    return None


def failure(outcome: Mapping[str, Any], **changes: Any) -> JobError:
    """The job's error after a run with that outcome."""
    names = ("code", "message", "cause", "hint", "rank", "node", "last_good_step")
    return JobError(**{name: outcome[name] for name in names if outcome.get(name) is not None} | changes)


def requeued_job(job: Job, run: Run, last_saved: int, backoff: float, now: float) -> tuple[Job, list[Notice]]:
    """The job back in the queue after its run was lost; one that made progress gives the budget back, a preempted one takes none."""
    outcome = run.outcome or {}
    cause, preempted = outcome["message"], outcome["code"] == PREEMPTED
    progressed = last_saved > (run.resumed_step or 0)
    queued = advance(
        job,
        JobStatus.QUEUED,
        infra_failures=job.infra_failures if preempted else 1 if progressed else job.infra_failures + 1,
        not_before=now + backoff,
        reason=f"waiting to be tried again: {cause}",
        lease_owner=None,
        progress=_idle(job.progress),
    )
    onward = f"It will resume from step {last_saved}" if last_saved else "It will start afresh"
    return queued, [
        Notice(f"Run {run.epoch} was {'preempted' if preempted else 'lost'}: {cause}. {onward} in {backoff:.0f} s.", level="warn")
    ]
