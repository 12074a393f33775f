"""Numbers on their way to Weights & Biases: what is sent, and that its absence costs a warning and no second."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from protos.tunesmith.v1 import runs_pb2 as pb
from trainers import integrations
from trainers.integrations import with_integrations
from trainers.report import Silent
from trainers.spec import BaseModelRef, DatasetRef, IntegrationSpec, Resolved, RunSpec, TunesmithSpec, WandbSpec

STEP = pb.RunReport(step=pb.StepDone(step=4, train_loss=0.5, train_mean_token_accuracy=0.75, learning_rate=1e-4, grad_norm=2.0))
SCORE = pb.RunReport(evaluated=pb.Evaluated(step=4, valid_loss=0.25, valid_mean_token_accuracy=0.5, full=True))
LIBRARY = """
import json, os, pathlib, time
SEEN = pathlib.Path(__file__).with_name("seen.json")
def note(*what):
    SEEN.write_text(json.dumps((json.loads(SEEN.read_text()) if SEEN.exists() else []) + [what]))
class Run:
    def log(self, numbers, step): note("log", step, numbers)
    def finish(self): note("finish")
def init(**given):
    given.pop("dir")
    note("init", given)
    {trouble}
    return Run()
"""
"""What the library documents of itself, as far as it is used."""


class Told(Silent):
    def __init__(self) -> None:
        super().__init__()
        self.reports: list[pb.RunReport] = []

    def tell(self, report: pb.RunReport) -> None:
        self.reports.append(report)

    @property
    def warnings(self) -> list[str]:
        return [report.notice.message for report in self.reports if report.WhichOneof("body") == "notice"]


def spec(*settings: WandbSpec) -> RunSpec:
    data = DatasetRef(prefix="datasets/d", sha256="d", rows=32, tokens=900, trained_tokens=64, longest=40)
    resolved = Resolved(n_epochs=1, batch_size=8, learning_rate_multiplier=1.0, learning_rate=2e-4, engine="torch", steps=4)
    return RunSpec(
        job_id="ftjob-1",
        epoch=2,
        method="supervised",
        seed=1,
        base_model=BaseModelRef(id="tiny", revision="1", prefix="base/tiny/1", licence="mit"),
        dataset=data,
        validation=None,
        resolved=resolved,
        tunesmith=TunesmithSpec(),
        storage_url="file:///nowhere",
        report_address="127.0.0.1:1",
        tuned_model="ft:tiny:org::1",
        integrations=[IntegrationSpec(type="wandb", wandb=each) for each in settings],
    )


def send(settings: WandbSpec, *reports: pb.RunReport) -> Told:
    """Tell the reports of one run, and what came back through the reporter behind."""
    told = Told()
    with ExitStack() as stack:
        reporter = with_integrations(spec(settings), told, stack)
        reporter.stage = "training"
        for report in reports:
            reporter.tell(report)
            assert reporter.directive() == pb.DIRECTIVE_CONTINUE
        reporter.deliver()
    assert told.stage == "training"
    return told


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Callable[[], list[Any]]]:
    """Puts a library of that name on the path; gives what it was asked."""

    def install(trouble: str = "") -> Callable[[], list[Any]]:
        (tmp_path / "wandb.py").write_text(LIBRARY.replace("{trouble}", trouble))
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, "wandb", raising=False)
        monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
        return lambda: json.loads((tmp_path / "seen.json").read_text())

    return install


def test_numbers_reach_the_project_and_nothing_else_does(library: Callable[..., Callable[[], list[Any]]]) -> None:
    seen = library()
    settings = WandbSpec(project="tweets", entity="team", tags=["first", "tunesmith"])
    told = send(settings, pb.RunReport(started=pb.Started(total_steps=4)), STEP, SCORE)
    assert [report.WhichOneof("body") for report in told.reports] == ["started", "step", "evaluated"]
    (_, asked), step, score, finish = seen()
    assert (asked["project"], asked["entity"], asked["name"], asked["id"]) == ("tweets", "team", "ftjob-1", "ftjob-1-1")
    assert (asked["resume"], asked["tags"]) == ("allow", ["tunesmith", "ftjob-1", "tiny", "first"])
    assert (asked["config"]["learning_rate"], asked["config"]["tunesmith"]["adapter"]["r"]) == (2e-4, 16)
    assert step[:2] == ["log", 4]
    assert (step[2]["train_loss"], step[2]["grad_norm"]) == (0.5, 2.0)
    assert score == ["log", 4, {"valid_loss": 0.25, "valid_mean_token_accuracy": 0.5}]
    assert finish == ["finish"]


def test_without_integrations_the_reporter_is_the_gateways() -> None:
    told = Told()
    assert with_integrations(spec(), told, ExitStack()) is told


@pytest.mark.parametrize(
    ("key", "words"), [("", "WANDB_API_KEY is not set"), ("k" * 40, "No module named 'wandb'")], ids=["no key", "no library"]
)
def test_what_is_not_there_is_one_warning(key: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", key)
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    told = send(WandbSpec(project="p"), STEP, SCORE)
    assert [report.WhichOneof("body") for report in told.reports if report.WhichOneof("body") != "notice"] == ["step", "evaluated"]
    (warning,) = told.warnings
    assert words in warning
    assert warning.endswith("Training goes on.")


@pytest.mark.parametrize("trouble", ["raise ConnectionError('refused')", "raise SystemExit(1)"])
def test_a_service_that_fails_is_one_warning(library: Callable[..., Callable[[], list[Any]]], trouble: str) -> None:
    seen = library(trouble)
    told = send(WandbSpec(project="p"), *[STEP] * 50)
    assert len(told.warnings) == 1
    assert [what[0] for what in seen()] == ["init"]


def test_a_service_that_hangs_is_not_waited_for(library: Callable[..., Callable[[], list[Any]]], monkeypatch: pytest.MonkeyPatch) -> None:
    library("time.sleep(5)")
    monkeypatch.setattr(integrations, "CLOSE_SECONDS", 0.2)
    began = time.monotonic()
    told = send(WandbSpec(project="p"), *[STEP] * 1000)
    assert time.monotonic() - began < 4
    assert told.warnings == []
