"""Quotas: the project's own over the service's, the calendar month, places for running jobs."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from pydantic import ValidationError

from service.jobs import Job, JobSpec, JobStatus, MethodSpec
from service.places import Places
from service.quotas import Quotas, month
from service.settings import Settings
from trainers.spec import BaseModelRef

JOB = Job(
    "ftjob-1",
    "proj_1",
    "org-1",
    JobSpec(model="m", training_file="f", seed=1, method=MethodSpec(type="supervised")),
    JobStatus.RUNNING,
    1,
    0.0,
    BaseModelRef(id="m", revision="1", prefix="p", licence="mit"),
)


def test_the_settings_give_every_quota_a_value(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNESMITH_QUOTA_RUNNING_JOBS", "2")
    monkeypatch.setenv("TUNESMITH_QUOTA_GPU_HOURS", "1.5")
    monkeypatch.setenv("TUNESMITH_QUOTA_REQUESTS_PER_MINUTE", "unlimited")
    defaults = Quotas.of(Settings(data_dir=tmp_path))
    assert None not in defaults.model_dump().values()
    assert [defaults.limit(name) for name in Quotas.model_fields] == [2, None, 1.5, None, None, None]


def test_a_projects_own_quotas_come_first() -> None:
    defaults = Quotas(running_jobs=2, queued_jobs=10, gpu_hours="unlimited", stored_bytes=5, requests_per_minute=60, priority=0)
    held = Quotas(running_jobs=4, stored_bytes="unlimited", queued_jobs=0).over(defaults)
    assert [held.limit(name) for name in Quotas.model_fields] == [4, 0, None, None, 60, 0]
    assert Quotas(running_jobs=4).changed({"running_jobs": None}) == Quotas()


@pytest.mark.parametrize(
    "wrong", [{"running_jobs": -1}, {"running_jobs": 1.5}, {"gpu_hours": "none"}, {"requests_per_minute": 0}, {"priority": 101}]
)
def test_what_is_no_quota(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Quotas(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(("day", "begin", "end"), [("2026-11-24", "2026-11-01", "2026-12-01"), ("2025-12-31", "2025-12-01", "2026-01-01")])
def test_the_month_is_the_calendars_in_utc(day: str, begin: str, end: str) -> None:
    at, *ends = (datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp() for text in (day, begin, end))
    assert list(month(at + 86399)) == ends
    assert list(month(ends[0])) == ends


def test_places_are_counted_by_project() -> None:
    busy = [JOB, replace(JOB, id="ftjob-2"), replace(JOB, id="ftjob-3", project_id="proj_2")]
    places = Places(Quotas(running_jobs=2), {"proj_2": Quotas(running_jobs="unlimited")}, busy)
    assert places.shortage("proj_1") == "the project runs 2 of 2 jobs"
    assert [places.shortage("proj_2"), places.shortage("proj_3")] == ["", ""]
    places.take("proj_3")
    places.take("proj_3")
    assert places.shortage("proj_3") == "the project runs 2 of 2 jobs"
