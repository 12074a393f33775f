"""How often a job is tried again: three budgets that do not mix."""

from __future__ import annotations

from typing import Any

import pytest

from service.conclude import Budget, given_up, requeued_job, stalls
from service.jobs import Job, JobSpec, JobStatus, MethodSpec
from service.store.runs import Run
from trainers.spec import BaseModelRef

BASE = BaseModelRef(id="m", revision="1", prefix="base/m/1", licence="mit")
BUDGET = Budget(max_retries=3, quarantine_after=3, max_preemptions=1)


def run(resumed: int | None, last: int, code: str | None = "worker_lost", **place: Any) -> Run:
    outcome = code and {"kind": "lost", "code": code, "message": "why", "cause": "infrastructure", "log_tail": ["last"], **place}
    return Run("ftjob-1", 1, "", 0.0, 0.0, 0, resumed, last, outcome or None, 1.0, None)


def job(failures: int = 0) -> Job:
    spec = JobSpec(model="m", training_file="file-1", seed=1, method=MethodSpec(type="supervised"))
    return Job("ftjob-1", "proj_1", "org-1", spec, JobStatus.RUNNING, 1, 0.0, BASE, epoch=3, infra_failures=failures)


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
