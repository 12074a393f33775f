"""Curves and logs of jobs, their attempts and their places in the queue, on whole gateways."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from protos.tunesmith.v1 import runs_pb2 as pb
from service.runtime import Capacity, RunState
from tests.fake_run import FakeRun, in_phase, until
from tests.followers import TWEETS, gateway_of_many_runs, in_background, launched, text_of, watching
from tests.gateway import Gateway, running_gateway
from trainers.run_log import RunLog, piece_key
from trainers.spec import logs_prefix


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with gateway_of_many_runs(tmp_path_factory.mktemp("streams")) as running:
        yield running


def test_curves_are_columns_in_which_the_newest_run_wins(gateway: Gateway) -> None:
    run = launched(gateway)
    run.start()
    run.steps(1, 6, loss=3.0)
    run.evaluate(4, 2.5)
    run.evaluate(6, 2.0)
    run = run.lose()
    run.start(resumed_step=4)
    run.steps(5, 7, loss=1.0)
    with gateway.http() as http:
        answer = http.get(f"{run.url}/metrics").json()
        assert (answer["object"], answer["fine_tuning_job_id"], answer["total_rows"]) == ("fine_tuning.job.metrics", run.job_id, 7)
        data = answer["data"]
        assert data["step"] == [1, 2, 3, 4, 5, 6, 7]
        assert data["train_loss"] == [3.0] * 4 + [1.0] * 3
        assert data["valid_loss"] == [None, None, None, 2.5, None, None, None], "the score of a step that was repeated is gone"
        assert (data["grad_norm"][0], data["learning_rate"][0], data["tokens_per_second"][6]) == (2.0, 1e-4, 100.0)
        assert http.get(f"{run.url}/metrics", params={"after_step": 5}).json()["data"]["step"] == [6, 7]
        for asked in ({"params": {"format": "csv"}}, {"headers": {"accept": "text/csv"}}):
            table = http.get(f"{run.url}/metrics", **asked)
            assert table.headers["content-type"].startswith("text/csv")
            rows = list(csv.DictReader(io.StringIO(table.text)))
            assert [(row["step"], row["train_loss"], row["valid_loss"]) for row in rows][3:5] == [("4", "3.0", "2.5"), ("5", "1.0", "")]
        assert http.get(f"{run.url}/metrics", params={"format": "json"}, headers={"accept": "text/csv"}).json()["total_rows"] == 7


def test_many_steps_are_thinned_to_their_extremes(gateway: Gateway) -> None:
    run = launched(gateway)
    run.start(total_steps=200)
    run.steps(1, 100)
    run.step(101, loss=9.0)
    run.step(102, loss=float("nan"))
    run.steps(103, 200)
    with gateway.http() as http:
        answer = http.get(f"{run.url}/metrics", params={"max_points": 20}).json()
    steps = answer["data"]["step"]
    assert (answer["total_rows"], steps[0], steps[-1]) == (200, 1, 200)
    assert len(steps) <= 20
    assert answer["data"]["train_loss"][steps.index(101)] == 9.0
    assert steps == sorted(steps)


def write(run: FakeRun, writer: str, *lines: str) -> None:
    kept = RunLog(run.gateway.parts.storage, logs_prefix(run.job_id, run.spec.epoch), writer, 2**20)
    for line in lines:
        kept.add(line)
    kept.save()


def test_logs_by_attempt_and_rank(gateway: Gateway) -> None:
    run = launched(gateway)
    with gateway.http() as http:
        assert http.get(f"{run.url}/logs").text == ""
        write(run, "driver", "the driver")
        assert http.get(f"{run.url}/logs").headers["x-tunesmith-log"] == "driver"
        write(run, "rank-0", *(f"line {number}" for number in range(10)))
        run.start()
        run = run.lose()
        write(run, "rank-0", "again")
        write(run, "rank-1", "beside it")
        latest = http.get(f"{run.url}/logs")
        assert (latest.text, latest.headers["x-tunesmith-attempt"]) == ("again\n", "2")
        assert latest.headers["x-tunesmith-logs"] == "rank-0, rank-1"
        assert http.get(f"{run.url}/logs", params={"rank": 1}).text == "beside it\n"
        assert http.get(f"{run.url}/logs", params={"attempt": 1, "tail": 2}).text == "line 8\nline 9\n"
        assert http.get(f"{run.url}/logs", params={"attempt": 1, "rank": "driver"}).text == "the driver\n"
        run.start()
        run.finish()
        assert http.get(f"{run.url}/logs", params={"attempt": 1, "tail": 1}).text == "line 9\n", "logs outlive what else a lost run left"
        until("the rest of the lost run to go", lambda: not list(gateway.parts.storage.list(f"runs/{run.job_id}/1/spec")), 5)
        assert http.get(f"{run.url}/logs", params={"attempt": 1, "tail": 1}).text == "line 9\n"


def test_a_log_is_followed_to_the_end_of_its_run(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.app.streams.FOLLOW_SECONDS", 0.05)
    run = launched(gateway)
    kept = RunLog(gateway.parts.storage, logs_prefix(run.job_id, 1), "rank-0", 2**20)
    kept.add("first")
    kept.save()
    text = in_background(lambda: text_of(gateway, f"{run.url}/logs?follow=true"))
    until("the follower", lambda: watching(gateway) == 1)
    for number in range(3):
        kept.add(f"line {number}")
        kept.save()
        time.sleep(0.1)
    run.start()
    run.finish()
    assert text() == "first\nline 0\nline 1\nline 2\n"
    until("the follower's end", lambda: watching(gateway) == 0, 2)


def test_a_long_log_lacks_its_middle(gateway: Gateway) -> None:
    run = launched(gateway)
    storage, prefix = gateway.parts.storage, logs_prefix(run.job_id, 1)
    kept = RunLog(storage, prefix, "rank-0", 4096)
    for number in range(2000):
        kept.add(f"line {number}")
        if number % 40 == 0:
            kept.save()
    kept.save()
    assert sum(info.bytes for info in storage.list(prefix)) <= 4096
    assert storage.head(piece_key(prefix, "rank-0", 3)) is None
    with gateway.http() as http:
        lines = http.get(f"{run.url}/logs").text.splitlines()
        assert http.get(f"{run.url}/logs", params={"tail": 3}).text.splitlines() == ["line 1997", "line 1998", "line 1999"]
    assert (lines[0], lines[-1]) == ("line 0", "line 1999")
    [marker] = [line for line in lines if "were dropped here" in line]
    assert lines[lines.index(marker) - 1].startswith("line")


def test_attempts_and_places_in_the_queue(gateway: Gateway) -> None:
    run = launched(gateway)
    run.start()
    run.steps(1, 3)
    run.tell(checkpoint=pb.CheckpointSaved(step=2, prefix="p"))
    run = run.lose()
    run.start(resumed_step=2)
    write(run, "rank-1", *(f"line {number}" for number in range(80)))
    run.tell(failed=pb.Failed(code="diverged", message="not a number", cause="config", rank=1))
    run.leave(RunState.FAILED)
    job = in_phase(gateway.client(), run.job_id, "failed")
    lost, failed = job["tunesmith"]["attempts"]
    assert (lost["epoch"], lost["outcome"], lost["last_step"], lost["cause"], lost["rank"]) == (1, "lost", 3, "infrastructure", None)
    assert lost["log_tail"] == ["the last line"]
    assert (failed["epoch"], failed["outcome"], failed["resumed_step"], failed["code"], failed["rank"]) == (2, "failed", 2, "diverged", 1)
    assert failed["log_tail"] == [f"line {number}" for number in range(30, 80)]
    assert failed["ended_at"] >= failed["started_at"] >= lost["ended_at"]
    with gateway.http() as http:
        listed = {job["id"]: job for job in http.get("/v1/fine_tuning/jobs", params={"limit": 100}).json()["data"]}
    attempts = listed[run.job_id]["tunesmith"]["attempts"]
    assert [(attempt["outcome"], attempt["log_tail"]) for attempt in attempts] == [("lost", []), ("failed", [])]


def test_a_queued_job_says_how_many_are_ahead(tmp_path: Path) -> None:
    with running_gateway(tmp_path) as gateway:
        gateway.runtime.total = Capacity(cpus=1, gpus=0, nodes=1)
        client = gateway.client()
        file = client.files.create(file=TWEETS / "tweets-test.jsonl", purpose="fine-tune").id

        def create(priority: int) -> str:
            return client.fine_tuning.jobs.create(model="tiny", training_file=file, extra_body={"tunesmith": {"priority": priority}}).id

        first = create(0)
        until("the first run", lambda: gateway.runtime.launched)
        waiting = [create(priority) for priority in (0, 0, 5)]

        def places() -> list[Any]:
            return [client.fine_tuning.jobs.retrieve(job_id).model_extra["tunesmith"]["queue_position"] for job_id in waiting]  # type: ignore[index]

        until("the queue", lambda: places() == [2, 3, 1])
        assert client.fine_tuning.jobs.retrieve(first).model_extra["tunesmith"]["queue_position"] is None  # type: ignore[index]
        assert client.fine_tuning.jobs.retrieve(waiting[1]).model_extra["tunesmith"]["jobs_ahead"] == 2  # type: ignore[index]
