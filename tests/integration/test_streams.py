"""Streams, curves and logs of jobs on whole gateways; what a run would report is told through `App.report`."""

from __future__ import annotations

import asyncio
import csv
import hashlib
import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa

from protos.tunesmith.v1 import runs_pb2 as pb
from service import watches
from service.jobs import JobStatus, JobUpdate
from service.runtime import Capacity, RunState
from tests.gateway import Gateway, running_gateway
from trainers.run_log import RunLog, piece_key
from trainers.spec import logs_prefix

TWEETS = Path(__file__).parents[2] / "examples" / "tweets"


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with running_gateway(tmp_path_factory.mktemp("streams"), max_streams=300, retry_backoff=0.05) as running:
        running.runtime.total = Capacity(cpus=64, gpus=0, nodes=32)
        yield running


def until(holds: Callable[[], Any], what: str, seconds: float = 30) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := holds()):
        assert time.monotonic() < deadline, f"{what} did not come"
        time.sleep(0.02)
    return found


@dataclass
class Run:
    """A job with a run that does what the test says."""

    gateway: Gateway
    job_id: str
    epoch: int = 1
    seq: int = 0
    messages: list[str] = field(default_factory=list)

    def tell(self, *bodies: pb.RunReport) -> None:
        for body in bodies:
            self.seq += 1
            body.seq = self.seq
        token = self.gateway.parts.storage.get(f"runs/{self.job_id}/{self.epoch}/token").decode()
        request = pb.ReportRequest(job_id=self.job_id, epoch=self.epoch, reports=bodies)
        self.gateway.do(self.gateway.app.report(token, request))

    def start(self, resumed: int = 0, total: int = 100) -> None:
        self.tell(pb.RunReport(started=pb.Started(world_size=1, total_steps=total, resumed_step=resumed)))

    def steps(self, first: int, last: int, loss: float = 1.0) -> None:
        self.tell(*(step(number, loss) for number in range(first, last + 1)))

    def finish(self) -> None:
        prefix, body = f"models/{self.job_id}/{self.epoch}", b"step\n"
        entry = {"name": "metrics.csv", "bytes": len(body), "sha256": hashlib.sha256(body).hexdigest()}
        manifest = json.dumps({"files": [entry]}).encode()
        self.gateway.parts.storage.put(f"{prefix}/metrics.csv", body)
        self.gateway.parts.storage.put(f"{prefix}/manifest.json", manifest)
        finished = pb.Finished(last_step=4, manifest_sha256=hashlib.sha256(manifest).hexdigest(), trained_tokens=256)
        self.tell(pb.RunReport(finished=finished))
        self.gateway.runtime.ends(f"{self.job_id}-{self.epoch}", RunState.SUCCEEDED)

    def lose(self) -> None:
        """The run dies; the next one is there when this returns."""
        self.gateway.runtime.ends(f"{self.job_id}-{self.epoch}", RunState.FAILED, "killed")
        self.epoch, self.seq = self.epoch + 1, 0
        until(lambda: f"{self.job_id}-{self.epoch}" in self.gateway.runtime.runs, "the next run")

    def get(self) -> dict[str, Any]:
        with self.gateway.http() as http:
            return http.get(f"/v1/fine_tuning/jobs/{self.job_id}").raise_for_status().json()

    def ended(self) -> dict[str, Any]:
        return until(lambda: (job := self.get())["finished_at"] and job, "the end")

    @property
    def url(self) -> str:
        return f"/v1/fine_tuning/jobs/{self.job_id}"


def step(number: int, loss: float = 1.0) -> pb.RunReport:
    measured = {"train_mean_token_accuracy": 0.5, "learning_rate": 1e-4, "grad_norm": 2.0, "tokens_per_second": 99.0}
    return pb.RunReport(step=pb.StepDone(step=number, train_loss=loss, **measured))


def evaluated(number: int, loss: float) -> pb.RunReport:
    return pb.RunReport(evaluated=pb.Evaluated(step=number, valid_loss=loss, valid_mean_token_accuracy=0.25, full=True))


def launched(gateway: Gateway, *others: Gateway) -> Run:
    """A run that was just launched, by whichever gateway claimed it."""
    client = gateway.client()
    file = client.files.create(file=TWEETS / "tweets-test.jsonl", purpose="fine-tune")
    resources = {"resources": {"cpus_per_worker": 1}}
    job_id = client.fine_tuning.jobs.create(model="tiny", training_file=file.id, extra_body={"tunesmith": resources}).id
    everywhere = (gateway, *others)
    at = until(lambda: next((g for g in everywhere if f"{job_id}-1" in g.runtime.runs), None), "the run", 60)
    return Run(at, job_id)


@dataclass(frozen=True)
class Message:
    event: str
    id: str
    data: Any


def messages(response: httpx.Response) -> Iterator[Message]:
    fields: dict[str, str] = {}
    for line in response.iter_lines():
        name, _, value = line.partition(": ")
        if line:
            fields[name] = value
        elif fields.keys() & {"event", "data"}:
            yield Message(fields["event"], fields.get("id", ""), json.loads(fields["data"]))
            fields = {}
        else:
            fields = {}


def follow(gateway: Gateway, job_id: str, at_most: int | None = None, **asked: Any) -> list[Message]:
    """What a client hears, to the end of the stream or to `at_most` messages."""
    heard: list[Message] = []
    with gateway.http() as http, http.stream("GET", f"/v1/fine_tuning/jobs/{job_id}/stream", timeout=60, **asked) as response:
        assert response.status_code == 200, response.read()
        for message in messages(response):
            heard.append(message)
            if len(heard) == at_most:
                break
    return heard


def in_background(work: Callable[[], Any]) -> Callable[[], Any]:
    """Start it; call what comes back to wait for its result."""
    pool = ThreadPoolExecutor(1)
    future = pool.submit(work)
    pool.shutdown(wait=False)
    return lambda: future.result(60)


def events_of(heard: list[Message]) -> list[int]:
    return [int(message.id) for message in heard if message.event == "event"]


def listed(gateway: Gateway, job_id: str) -> list[dict[str, Any]]:
    with gateway.http() as http:
        return http.get(f"/v1/fine_tuning/jobs/{job_id}/events", params={"limit": 1000, "order": "asc"}).json()["data"]


def watching(gateway: Gateway) -> int:
    return gateway.app.watches.open


def test_a_stream_tells_history_then_news_then_the_end(gateway: Gateway) -> None:
    run = launched(gateway)
    run.start()
    run.steps(1, 3)
    heard = in_background(lambda: follow(gateway, run.job_id))
    until(lambda: watching(gateway) == 1, "the watcher")
    run.steps(4, 5, loss=0.5)
    run.finish()
    told = heard()
    data = [message.data for message in told if message.event == "event"]
    assert data == listed(gateway, run.job_id)
    assert events_of(told) == list(range(1, len(data) + 1))
    assert told[-1].event == "done"
    assert told[-1].data["status"] == "succeeded"
    assert [message.event for message in told].count("done") == 1
    progress = [message.data["progress"]["step"] for message in told if message.event == "progress"]
    assert progress[0] == 3
    assert progress[-1] == 5
    assert told[-1].data["tunesmith"]["attempts"][0]["last_step"] == 5
    assert watching(gateway) == 0


def test_a_client_goes_on_where_it_was_cut(gateway: Gateway) -> None:
    run = launched(gateway)
    run.start()
    run.steps(1, 20)
    first = follow(gateway, run.job_id, at_most=9)
    last = [message.id for message in first if message.event == "event"][-1]
    until(lambda: watching(gateway) == 0, "the end of the cut stream", 5)
    run.steps(21, 25)
    heard = in_background(lambda: follow(gateway, run.job_id, headers={"last-event-id": last}, params={"after": 1}))
    run.finish()
    assert events_of(first) + events_of(heard()) == list(range(1, len(listed(gateway, run.job_id)) + 1))
    count = len(listed(gateway, run.job_id))
    assert events_of(follow(gateway, run.job_id, params={"after": -3})) == [count - 2, count - 1, count]
    assert events_of(follow(gateway, run.job_id, params={"after": 10**15})) == []
    assert events_of(follow(gateway, run.job_id, params={"after": -(10**6)})) == list(range(1, count + 1))


def test_a_stream_says_when_to_come_back_and_is_not_kept_by_proxies(gateway: Gateway) -> None:
    run = launched(gateway)
    with gateway.http() as http, http.stream("GET", f"{run.url}/stream") as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        assert (response.headers["cache-control"], response.headers["x-accel-buffering"]) == ("no-cache", "no")
        lines = response.iter_lines()
        assert next(lines) == "retry: 1000"
        assert watching(gateway) == 1
    until(lambda: watching(gateway) == 0, "the watcher's end", 2)


def test_silence_is_filled_with_comments(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastapi.routing._PING_INTERVAL", 0.1)
    run = launched(gateway)
    with gateway.http() as http, http.stream("GET", f"{run.url}/stream") as response:
        assert any(line == ": ping" for line in response.iter_lines())


@pytest.mark.parametrize(
    ("path", "asked", "status"),
    [
        ("stream", {"headers": {"last-event-id": "x"}}, 400),
        ("stream", {"headers": {"last-event-id": "9" * 5000}}, 400),
        ("stream", {"params": {"after": "9" * 5000}}, 400),
        ("metrics", {"params": {"format": "xml"}}, 400),
        ("metrics", {"params": {"max_points": 3}}, 400),
        ("metrics", {"params": {"after_step": -1}}, 400),
        ("logs", {"params": {"rank": "all"}}, 400),
        ("logs", {"params": {"attempt": 0}}, 400),
        ("logs", {"params": {"attempt": 7}}, 404),
        ("logs", {"params": {"tail": "many"}}, 400),
    ],
)
def test_what_is_asked_wrongly_is_refused_before_anything_is_sent(gateway: Gateway, path: str, asked: Any, status: int) -> None:
    with gateway.http() as http:
        answer = http.get(f"{some_job(gateway)}/{path}", **asked)
    assert (answer.status_code, set(answer.json()["error"])) == (status, {"message", "type", "param", "code"})


def some_job(gateway: Gateway) -> str:
    return f"/v1/fine_tuning/jobs/{gateway.client().fine_tuning.jobs.list(limit=1).data[0].id}"


@pytest.mark.parametrize("path", ["stream", "metrics", "logs", "logs?follow=true"])
def test_another_project_sees_nothing(gateway: Gateway, path: str) -> None:
    job = some_job(gateway)
    with gateway.http(gateway.other_key()) as http:
        foreign, unknown = http.get(f"{job}/{path}"), http.get(f"/v1/fine_tuning/jobs/ftjob-none/{path}")
    assert (foreign.status_code, unknown.status_code) == (404, 404)
    assert foreign.text == unknown.text.replace("ftjob-none", job.rpartition("/")[2])
    assert watching(gateway) == 0


def test_200_watchers_of_one_job_hear_everything_and_cost_one_query_a_look(gateway: Gateway) -> None:
    run = launched(gateway)
    run.start()
    until(lambda: run.get()["status"] == "running", "the start")
    heard: list[list[tuple[int, str]]] = []

    async def watch_all() -> None:
        limits = httpx.Limits(max_connections=None)
        headers = {"authorization": f"Bearer {gateway.key}"}
        async with httpx.AsyncClient(base_url=gateway.url, headers=headers, limits=limits, timeout=60) as http:
            heard.extend(await asyncio.gather(*(watch(http) for _ in range(200))))

    async def watch(http: httpx.AsyncClient) -> list[tuple[int, str]]:
        async with http.stream("GET", f"{run.url}/stream") as response:
            text = (await response.aread()).decode()
        blocks = [dict(line.partition(": ")[::2] for line in block.splitlines()) for block in text.split("\n\n")]
        return [(int(block.get("id", 0)), block["event"]) for block in blocks if "event" in block and block["event"] != "progress"]

    thread = threading.Thread(target=lambda: asyncio.run(watch_all()))
    thread.start()
    until(lambda: len(gateway.app.watches._watchers_of(run.job_id)) == 200, "200 watchers", 60)
    time.sleep(0.3)
    with queries(gateway) as seen:
        time.sleep(2.5)
    assert 1 <= len(seen) <= 6, seen
    for first in range(1, 50, 5):
        run.steps(first, first + 4)
    run.finish()
    thread.join(60)
    everything = [(number, "event") for number in range(1, len(listed(gateway, run.job_id)) + 1)]
    assert heard == [[*everything, (0, "done")]] * 200
    assert watching(gateway) == 0


@contextmanager
def queries(gateway: Gateway) -> Iterator[list[str]]:
    """The poller's looks meanwhile, and whatever they ask besides."""
    seen: list[str] = []

    def note(connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
        if statement.startswith("SELECT jobs.id, jobs.event_seq"):
            seen.append(statement)

    engine = gateway.parts.store._engine.sync_engine
    sa.event.listen(engine, "before_cursor_execute", note)
    try:
        yield seen
    finally:
        sa.event.remove(engine, "before_cursor_execute", note)


def test_a_slow_watcher_loses_nothing_and_keeps_little(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watches, "BACKLOG", 4)
    run = launched(gateway)
    run.start()
    updates = gateway.app.watch_job(gateway.caller, run.job_id)
    told: list[JobUpdate] = []

    async def listen(holds: Callable[[], bool]) -> None:
        async for update in updates:
            told.append(update)
            if holds():
                return

    gateway.do(listen(lambda: told[-1].job is not None))
    listening = in_background(lambda: gateway.do(listen(lambda: True)))
    until(lambda: gateway.app.watches._watchers_of(run.job_id), "the watcher")
    run.steps(1, 1)
    listening()
    [watcher] = gateway.app.watches._watchers_of(run.job_id)
    for number in range(2, 40):  # a look each, for the commit wakes the poller
        run.steps(number, number)
        assert len(watcher._news) <= watches.BACKLOG
    assert watcher.behind
    run.finish()
    run.ended()
    gateway.do(listen(lambda: False))
    assert [update.event.seq for update in told if update.event] == list(range(1, len(listed(gateway, run.job_id)) + 1))
    assert told[-1].job is not None
    assert told[-1].job.status is JobStatus.SUCCEEDED


def test_what_happens_on_this_gateway_is_told_at_once(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watches, "BUSY", 60.0)
    monkeypatch.setattr(watches, "IDLE", 60.0)
    run = launched(gateway)
    run.start()
    heard = in_background(lambda: follow(gateway, run.job_id))
    until(lambda: gateway.app.watches._watchers_of(run.job_id), "the watcher")
    run.steps(1, 1)
    until(lambda: gateway.app.watches._watched[run.job_id].mark.seq == len(listed(gateway, run.job_id)), "the first news")
    time.sleep(0.2)  # from now on the poller looks once a minute
    began = time.monotonic()
    run.steps(2, 3)
    run.finish()
    assert heard()[-1].event == "done"
    assert time.monotonic() - began < 30


def test_more_streams_than_allowed_are_refused_and_told_when_to_come_back(tmp_path: Path) -> None:
    with running_gateway(tmp_path, max_streams=2) as gateway, ExitStack() as stack:
        run = launched(gateway)
        http = stack.enter_context(gateway.http())
        for path in ("stream", "logs?follow=true"):
            assert stack.enter_context(http.stream("GET", f"{run.url}/{path}")).status_code == 200
        for path in ("stream", "logs?follow=true"):
            refused = http.get(f"{run.url}/{path}")
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "too_many_streams")
            assert refused.headers["retry-after"] == "5"
        assert http.get(f"{run.url}/logs").status_code == 200
        scraped = http.get("/metrics").text
        assert "tunesmith_streams 2.0" in scraped
        route = 'route="/v1/fine_tuning/jobs/{fine_tuning_job_id}/stream"'
        assert f'tunesmith_http_request_duration_seconds_count{{method="GET",{route}}} 2.0' in scraped


def test_a_gateway_that_stops_ends_its_streams_in_time(tmp_path: Path) -> None:
    with ExitStack() as stack:
        gateway = stack.enter_context(running_gateway(tmp_path))
        run = launched(gateway)
        log = in_background(lambda: text_of(gateway, f"{run.url}/logs?follow=true"))
        stream = in_background(lambda: follow(gateway, run.job_id))
        until(lambda: watching(gateway) == 2, "the watchers")
        began = time.monotonic()
        stack.close()
        heard = stream()
        log()
        assert time.monotonic() - began < 4
    assert {message.event for message in heard} == {"event", "progress"}, "no done: the client connects again"


def text_of(gateway: Gateway, url: str) -> str:
    with gateway.http() as http:
        return http.get(url, timeout=60).text


def test_a_revoked_key_ends_its_streams(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watches, "REVIEW", 0.1)
    run = launched(gateway)

    async def second_key() -> tuple[str, str]:
        from service import tenancy

        key_id, key, digest = tenancy.new_key()
        async with gateway.parts.store.begin() as tx:
            await tx.insert_key(key_id, gateway_caller.project_id, "second", digest, ["read"])
        return key_id, key

    async def revoke(key_id: str) -> None:
        async with gateway.parts.store.begin() as tx:
            await tx.connection.execute(sa.text("UPDATE api_keys SET revoked_at = 1 WHERE id = :id"), {"id": key_id})

    gateway_caller = gateway.caller
    key_id, key = gateway.do(second_key())
    with gateway.http(key) as http, http.stream("GET", f"{run.url}/stream", timeout=30) as response:
        heard = messages(response)
        assert next(heard).event == "event"
        gateway.do(revoke(key_id))
        last = list(heard)[-1]
    assert (last.event, last.data["error"]["code"]) == ("error", "invalid_api_key")


def test_two_gateways_on_one_database_tell_the_same(tmp_path: Path, postgres_url: str) -> None:
    shared = {"database_url": postgres_url, "storage_url": (tmp_path / "objects").as_uri()}
    with ExitStack() as stack:
        one, two = (stack.enter_context(running_gateway(directory(tmp_path, name), **shared)) for name in ("one", "two"))
        run = launched(one, two)
        run.start()
        heard = [in_background(lambda gateway=gateway: follow(gateway, run.job_id)) for gateway in (one, two)]
        cut = follow(two, run.job_id, at_most=5)
        until(lambda: watching(one) == watching(two) == 1, "both watchers")
        run.steps(1, 10)
        mended = in_background(lambda: follow(one, run.job_id, headers={"last-event-id": str(events_of(cut)[-1])}))
        for first in range(11, 40, 3):
            run.steps(first, first + 2)
        run.finish()
        told = [each() for each in heard]
        everything = list(range(1, len(listed(one, run.job_id)) + 1))
        assert [events_of(each) for each in told] == [everything, everything]
        assert events_of(cut) + events_of(mended()) == everything
        assert [each[-1].event for each in told] == ["done", "done"]
        assert told[0][-1].data["tunesmith"]["attempts"][0]["outcome"] == "succeeded"
        with two.http() as http:
            assert http.get(f"{run.url}/metrics").json()["data"]["step"] == list(range(1, 41))
            assert http.get(f"{run.url}/metrics", params={"after_step": 38}).json()["data"]["step"] == [39, 40]


def directory(tmp_path: Path, name: str) -> Path:
    (tmp_path / name).mkdir()
    return tmp_path / name


def test_curves_are_columns_in_which_the_newest_run_wins(gateway: Gateway) -> None:
    run = launched(gateway)
    run.start()
    run.steps(1, 6, loss=3.0)
    run.tell(evaluated(4, 2.5), evaluated(6, 2.0))
    run.lose()
    run.start(resumed=4)
    run.steps(5, 7, loss=1.0)
    with gateway.http() as http:
        answer = http.get(f"{run.url}/metrics").json()
        assert (answer["object"], answer["fine_tuning_job_id"], answer["total_rows"]) == ("fine_tuning.job.metrics", run.job_id, 7)
        data = answer["data"]
        assert data["step"] == [1, 2, 3, 4, 5, 6, 7]
        assert data["train_loss"] == [3.0] * 4 + [1.0] * 3
        assert data["valid_loss"] == [None, None, None, 2.5, None, None, None], "the score of a step that was repeated is gone"
        assert (data["grad_norm"][0], data["learning_rate"][0], data["tokens_per_second"][6]) == (2.0, 1e-4, 99.0)
        assert http.get(f"{run.url}/metrics", params={"after_step": 5}).json()["data"]["step"] == [6, 7]
        for asked in ({"params": {"format": "csv"}}, {"headers": {"accept": "text/csv"}}):
            table = http.get(f"{run.url}/metrics", **asked)
            assert table.headers["content-type"].startswith("text/csv")
            rows = list(csv.DictReader(io.StringIO(table.text)))
            assert [(row["step"], row["train_loss"], row["valid_loss"]) for row in rows][3:5] == [("4", "3.0", "2.5"), ("5", "1.0", "")]
        assert http.get(f"{run.url}/metrics", params={"format": "json"}, headers={"accept": "text/csv"}).json()["total_rows"] == 7


def test_many_steps_are_thinned_to_their_extremes(gateway: Gateway) -> None:
    run = launched(gateway)
    run.start(total=200)
    run.steps(1, 100)
    run.tell(step(101, loss=9.0), step(102, loss=float("nan")))
    run.steps(103, 200)
    with gateway.http() as http:
        answer = http.get(f"{run.url}/metrics", params={"max_points": 20}).json()
    steps = answer["data"]["step"]
    assert (answer["total_rows"], steps[0], steps[-1]) == (200, 1, 200)
    assert len(steps) <= 20
    assert answer["data"]["train_loss"][steps.index(101)] == 9.0
    assert steps == sorted(steps)


def write(run: Run, writer: str, *lines: str) -> None:
    kept = RunLog(run.gateway.parts.storage, logs_prefix(run.job_id, run.epoch), writer, 2**20)
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
        run.lose()
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
        run.ended()
        assert http.get(f"{run.url}/logs", params={"attempt": 1, "tail": 1}).text == "line 9\n", "logs outlive what else a lost run left"
        until(lambda: not list(gateway.parts.storage.list(f"runs/{run.job_id}/1/spec")), "the rest of the lost run to go", 5)
        assert http.get(f"{run.url}/logs", params={"attempt": 1, "tail": 1}).text == "line 9\n"


def test_a_log_is_followed_to_the_end_of_its_run(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.app.streams.FOLLOW_SECONDS", 0.05)
    run = launched(gateway)
    kept = RunLog(gateway.parts.storage, logs_prefix(run.job_id, 1), "rank-0", 2**20)
    kept.add("first")
    kept.save()
    text = in_background(lambda: text_of(gateway, f"{run.url}/logs?follow=true"))
    until(lambda: watching(gateway) == 1, "the follower")
    for number in range(3):
        kept.add(f"line {number}")
        kept.save()
        time.sleep(0.1)
    run.start()
    run.finish()
    assert text() == "first\nline 0\nline 1\nline 2\n"
    until(lambda: watching(gateway) == 0, "the follower's end", 2)


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
    run.tell(pb.RunReport(checkpoint=pb.CheckpointSaved(step=2, prefix="p")))
    run.lose()
    run.start(resumed=2)
    write(run, "rank-1", *(f"line {number}" for number in range(80)))
    run.tell(pb.RunReport(failed=pb.Failed(code="diverged", message="not a number", cause="config", rank=1)))
    gateway.runtime.ends(f"{run.job_id}-2", RunState.FAILED)
    job = run.ended()
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
        until(lambda: gateway.runtime.launched, "the first run")
        waiting = [create(priority) for priority in (0, 0, 5)]

        def places() -> list[Any]:
            return [client.fine_tuning.jobs.retrieve(job_id).model_extra["tunesmith"]["queue_position"] for job_id in waiting]  # type: ignore[index]

        until(lambda: places() == [2, 3, 1], "the queue")
        assert client.fine_tuning.jobs.retrieve(first).model_extra["tunesmith"]["queue_position"] is None  # type: ignore[index]
        assert client.fine_tuning.jobs.retrieve(waiting[1]).model_extra["tunesmith"]["jobs_ahead"] == 2  # type: ignore[index]
