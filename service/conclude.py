"""The values a job ends with, and the lines that tell of it. Pure."""

from __future__ import annotations

import secrets
from typing import Any

from service.jobs import Job, JobError, JobStatus, Notice, advance
from service.records import File
from service.store.runs import Run


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


def paused_job(job: Job, last_saved: int) -> tuple[Job, list[Notice]]:
    """The job PAUSED, nothing of its run left; `last_saved` is the step of its newest checkpoint, 0 when there is none."""
    onward = f"go on from step {last_saved}" if last_saved else "start afresh"
    paused = advance(
        job,
        JobStatus.PAUSED,
        reason=f"paused: once resumed it will {onward}",
        lease_owner=None,
        progress=job.progress.model_copy(update={"stage": "", "eta_seconds": None}),
    )
    return paused, [Notice("The job has been paused")]


def requeued_job(job: Job, run: Run, cause: str, last_saved: int, backoff: float, now: float) -> tuple[Job, list[Notice]]:
    """The job back in the queue after its run was lost; a run that made progress gives the budget back."""
    progressed = last_saved > (run.resumed_step or 0)
    queued = advance(
        job,
        JobStatus.QUEUED,
        infra_failures=1 if progressed else job.infra_failures + 1,
        not_before=now + backoff,
        queued_at=now,
        reason=f"waiting to be tried again: {cause}",
        lease_owner=None,
        progress=job.progress.model_copy(update={"stage": "", "eta_seconds": None}),
    )
    onward = f"It will resume from step {last_saved}" if last_saved else "It will start afresh"
    return queued, [Notice(f"Run {run.epoch} was lost: {cause}. {onward} in {backoff:.0f} s.", level="warn")]
