"""How often a job is tried again: three budgets that do not mix, and memory, which has none because each try takes less."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from service.conclude import Budget, after_failure, given_up, micro_batch_limit, requeued_job, stalls
from service.jobs import Departure, Job, JobSpec, JobStatus, MethodSpec
from service.store.runs import Run
from trainers.spec import BaseModelRef, LimitSpec, Resolved, TunesmithSpec

BASE = BaseModelRef(id="m", revision="1", prefix="base/m/1", licence="mit")
BUDGET = Budget(max_retries=3, quarantine_after=3, max_preemptions=1)


def run(resumed: int | None, last: int, code: str | None = "worker_lost", **place: Any) -> Run:
    outcome = code and {"kind": "lost", "code": code, "message": "why", "cause": "infrastructure", "log_tail": ["last"], **place}
    return Run("ftjob-1", 1, "", 0.0, 0.0, 0, resumed, last, outcome or None, 1.0, None)


def job(failures: int = 0, status: JobStatus = JobStatus.RUNNING) -> Job:
    spec = JobSpec(model="m", training_file="file-1", seed=1, method=MethodSpec(type="supervised"))
    resolved = Resolved(n_epochs=1, batch_size=32, learning_rate_multiplier=1.0, learning_rate=1e-4, engine="zero3", steps=40)
    return Job("ftjob-1", "proj_1", "org-1", spec, status, 1, 0.0, BASE, epoch=3, infra_failures=failures, resolved=resolved)


def starved(rows: int | None, resumed: int | None = 0, last: int = 0) -> Run:
    """A run that found no memory for so many rows."""
    return replace(run(resumed, last, "out_of_memory"), micro_batch=rows)


@pytest.mark.parametrize(
    ("runs", "saved", "stalled"),
    [
        ([run(None, 0)] * 3, 0, 3),
        ([run(0, 4)], 0, 0),
        ([run(0, 4), run(0, 4), run(0, 4)], 0, 2),
        ([run(0, 4), run(0, 5), run(0, 6)], 0, 0),
        ([run(0, 30), run(20, 25), run(20, 25)], 20, 2),
        ([run(0, 30), run(0, 25)], 20, 0),
        ([run(0, 30), run(0, 25), run(20, 22)], 20, 1),
        ([run(None, 0), run(None, 0, "preempted"), run(None, 0)], 0, 2),
        ([run(None, 0), run(None, 0, None), run(None, 0)], 0, 2),
        ([run(None, 0), starved(8, None), run(None, 0)], 0, 2),
    ],
    ids=[
        "never began",
        "began",
        "same step",
        "a step further",
        "same checkpoint",
        "saved",
        "saved, then not",
        "preempted between",
        "paused",
        "out of memory between",
    ],
)
def test_runs_that_got_no_further(runs: list[Run], saved: int, stalled: int) -> None:
    assert stalls(runs, saved, preempted=False) == stalled


def test_a_run_that_always_dies_is_quarantined_with_its_cause() -> None:
    runs = [run(None, 0, rank=1, node="node-b", hint="look", last_good_step=0)] * 3
    assert given_up(job(1), runs[:2], 0, BUDGET) is None
    error = given_up(job(2), runs, 0, BUDGET)
    assert error is not None
    assert (error.code, error.cause, error.rank, error.node, error.last_good_step) == ("quarantined", "infrastructure", 1, "node-b", 0)
    assert (error.details["code"], error.details["log_tail"]) == ("worker_lost", ["last"])


def test_steps_without_a_checkpoint_spend_the_retries() -> None:
    runs = [run(0, step) for step in (1, 2, 3, 4)]
    assert given_up(job(2), runs[:3], 0, BUDGET) is None
    error = given_up(job(3), runs, 0, BUDGET)
    assert error is not None
    assert (error.code, error.cause) == ("worker_lost", "infrastructure")


def test_preemption_has_its_own_budget() -> None:
    runs = [run(None, 0, "preempted")] * 2
    assert given_up(job(3), runs[:1], 0, BUDGET) is None
    error = given_up(job(3), runs, 0, BUDGET)
    assert error is not None
    assert error.code == "preempted"
    gained = [run(0, 5, "preempted"), run(5, 9, "preempted"), run(9, 12, "preempted")]
    assert given_up(job(3), gained, 12, BUDGET) is None
    queued, (notice,) = requeued_job(job(2), runs[0], 0, 1.0, 0.0)
    assert queued.infra_failures == 2
    assert notice.message.startswith("Run 1 was preempted: why.")


def test_out_of_memory_the_job_goes_on_with_half_the_micro_batch_at_once() -> None:
    queued, (notice,) = after_failure(job(2), starved(8, resumed=4, last=12), 8, 100.0)
    assert (queued.status, queued.not_before, queued.infra_failures, queued.lease_owner) == (JobStatus.QUEUED, 100.0, 2, None)
    assert (notice.level, notice.message) == (
        "warn",
        "Out of memory after step 12: micro-batch halved from 8 to 4, the global batch stays 32. The job will go on from step 8.",
    )


def test_out_of_memory_while_it_leaves_for_a_limit_the_job_has_used_it_up() -> None:
    limited = replace(job(), spec=job().spec.model_copy(update={"tunesmith": TunesmithSpec(limits=LimitSpec(deadline=60))}))
    failed, _ = after_failure(limited, replace(starved(8, last=12), leaving=Departure.DEADLINE), 8, 100.0)
    assert failed.error is not None
    assert (failed.status, failed.error.code, failed.error.last_good_step) == (JobStatus.FAILED, "deadline_exceeded", 8)


@pytest.mark.parametrize("at", [starved(8, resumed=None), starved(8, resumed=4, last=40)], ids=["loading", "proving"])
def test_out_of_memory_where_rows_have_no_part_in_it_the_job_has_failed(at: Run) -> None:
    failed, _ = after_failure(job(), at, 0, 100.0)
    assert failed.error is not None
    assert (failed.status, failed.error.code) == (JobStatus.FAILED, "out_of_memory")


def test_out_of_memory_with_single_rows_the_job_has_failed() -> None:
    failed, _ = after_failure(job(), starved(1), 0, 100.0)
    assert failed.status is JobStatus.FAILED
    assert failed.error is not None
    assert (failed.error.code, failed.finished_at) == ("out_of_memory", 100.0)


def test_out_of_memory_a_job_that_is_being_paused_rests_and_takes_less_when_it_is_resumed() -> None:
    paused, notices = after_failure(job(status=JobStatus.PAUSING), starved(8), 0, 100.0)
    assert paused.status is JobStatus.PAUSED
    assert [notice.message.partition(":")[0] for notice in notices] == [
        "Out of memory before the first step was done",
        "The job has been paused",
    ]
    assert micro_batch_limit(job(), [starved(8)]) == 4


def test_only_memory_is_worth_a_smaller_micro_batch() -> None:
    failed, _ = after_failure(job(), replace(run(0, 4, "diverged"), micro_batch=8), 0, 100.0)
    assert failed.status is JobStatus.FAILED
    assert micro_batch_limit(job(), [replace(run(0, 4, code), micro_batch=8) for code in ("diverged", "worker_lost", None)]) is None


@pytest.mark.parametrize("first", [None, 1, 3, 17, 32])
def test_halving_comes_to_an_end(first: int | None) -> None:
    """Whatever the first run was given; None is what a run of an older release says."""
    runs = [starved(first)]
    while after_failure(job(), runs[-1], 0, 0.0)[0].status is JobStatus.QUEUED:
        runs.append(starved(micro_batch_limit(job(), runs)))
    assert len(runs) == (first or 32).bit_length()
    assert runs[-1].micro_batch == 1
