"""Every pair of states, and the names of models."""

from __future__ import annotations

import itertools

import pytest

from service.jobs import (
    FINAL,
    ON_RAY,
    TRANSITIONS,
    IllegalTransition,
    Job,
    JobSpec,
    JobStatus,
    MethodSpec,
    advance,
    checkpoint_model_name,
    tuned_model_name,
)
from trainers.spec import BaseModelRef

EDGES = {(old, new) for old, onward in TRANSITIONS.items() for new in onward}


def job(status: JobStatus) -> Job:
    spec = JobSpec(model="m", training_file="file-1", seed=1, method=MethodSpec(type="supervised"))
    base = BaseModelRef(id="m", revision="1", prefix="base/m/1", licence="mit")
    return Job("ftjob-1", "proj_1", "org-1", spec, status, 1, 0.0, base)


@pytest.mark.parametrize(("old", "new"), list(itertools.product(JobStatus, JobStatus)))
def test_advance_walks_exactly_the_table(old: JobStatus, new: JobStatus) -> None:
    if (old, new) in EDGES:
        assert advance(job(old), new, reason="because").status is new
    else:
        with pytest.raises(IllegalTransition):
            advance(job(old), new)


def test_every_state_is_in_the_table_and_leads_to_an_end() -> None:
    assert set(TRANSITIONS) == set(JobStatus)
    assert {JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELLED} == set(FINAL)
    for start in JobStatus:
        reached = {start}
        for _ in JobStatus:
            reached |= {new for old in reached for new in TRANSITIONS[old]}
        assert reached & FINAL


def test_a_job_on_ray_cannot_be_cancelled_without_waiting_for_its_processes() -> None:
    for status in ON_RAY - {JobStatus.CANCELLING}:
        assert (status, JobStatus.CANCELLED) not in EDGES


def test_model_names_have_openais_form() -> None:
    assert tuned_model_name("davinci-002", "org", None, "ftjob-8AO3Tcpr") == "ft:davinci-002:org::8AO3Tcpr"
    assert checkpoint_model_name("ft:m:o:s:1", 20, 40) == "ft:m:o:s:1:ckpt-step-20"
    assert checkpoint_model_name("ft:m:o:s:1", 40, 40) == "ft:m:o:s:1"
