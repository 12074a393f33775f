"""Streams of jobs on whole gateways: everything once, in order, to the end, and for those alone who may."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa

from service import watches
from service.jobs import JobStatus, JobUpdate
from tests.fake_run import until
from tests.followers import events_of, follow, gateway_of_many_runs, in_background, launched, listed, messages, text_of, watching
from tests.gateway import Gateway, running_gateway


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with gateway_of_many_runs(tmp_path_factory.mktemp("streams")) as running:
        yield running


def test_a_stream_tells_history_then_news_then_the_end(gateway: Gateway) -> None:
    run = launched(gateway)
    run.start()
    run.steps(1, 3)
    heard = in_background(lambda: follow(gateway, run.job_id))
    until("the watcher", lambda: watching(gateway) == 1)
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
    until("the end of the cut stream", lambda: watching(gateway) == 0, 5)
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
    until("the watcher's end", lambda: watching(gateway) == 0, 2)


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
    run.until_is("running")
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
    until("200 watchers", lambda: len(gateway.app.watches._watchers_of(run.job_id)) == 200, 60)
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
    until("the watcher", lambda: gateway.app.watches._watchers_of(run.job_id))
    run.steps(1, 1)
    listening()
    [watcher] = gateway.app.watches._watchers_of(run.job_id)
    for number in range(2, 40):  # a look each, for the commit wakes the poller
        run.steps(number, number)
        assert len(watcher._news) <= watches.BACKLOG
    assert watcher.behind
    run.finish()
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
    until("the watcher", lambda: gateway.app.watches._watchers_of(run.job_id))
    run.steps(1, 1)
    until("the first news", lambda: gateway.app.watches._watched[run.job_id].mark.seq == len(listed(gateway, run.job_id)))
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
        until("the watchers", lambda: watching(gateway) == 2)
        began = time.monotonic()
        stack.close()
        heard = stream()
        log()
        assert time.monotonic() - began < 4
    assert {message.event for message in heard} == {"event", "progress"}, "no done: the client connects again"


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
        until("both watchers", lambda: watching(one) == watching(two) == 1)
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
