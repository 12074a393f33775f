"""Whoever follows a job: its stream message by message, its log, both in the background; and a run to follow."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from service.runtime import Capacity
from tests.fake_run import FakeRun, until
from tests.gateway import Gateway, running_gateway

TWEETS = Path(__file__).parents[1] / "examples" / "tweets"


@contextmanager
def gateway_of_many_runs(directory: Path) -> Iterator[Gateway]:
    """A gateway with room for the runs and the watchers of a whole file of tests."""
    with running_gateway(directory, max_streams=300, retry_backoff=0.05) as gateway:
        gateway.runtime.total = Capacity(cpus=64, gpus=0, nodes=32)
        yield gateway


def launched(gateway: Gateway, *others: Gateway) -> FakeRun:
    """A run that was just launched, by whichever gateway claimed it."""
    client = gateway.client()
    file = client.files.create(file=TWEETS / "tweets-test.jsonl", purpose="fine-tune")
    resources = {"resources": {"cpus_per_worker": 1}}
    job_id = client.fine_tuning.jobs.create(model="tiny", training_file=file.id, extra_body={"tunesmith": resources}).id
    everywhere = (gateway, *others)
    at = until("the run", lambda: next((g for g in everywhere if f"{job_id}-1" in g.runtime.runs), None))
    return FakeRun.of(at, job_id)


@dataclass(frozen=True)
class Message:
    """One message of a stream."""

    event: str
    id: str
    data: Any


def messages(response: httpx.Response) -> Iterator[Message]:
    """The messages of a stream as they come; comments are passed over."""
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
    """Numbers of the job's events among what was heard."""
    return [int(message.id) for message in heard if message.event == "event"]


def listed(gateway: Gateway, job_id: str) -> list[dict[str, Any]]:
    """The job's events as the list has them, the oldest first."""
    with gateway.http() as http:
        return http.get(f"/v1/fine_tuning/jobs/{job_id}/events", params={"limit": 1000, "order": "asc"}).json()["data"]


def watching(gateway: Gateway) -> int:
    """Streams that are open."""
    return gateway.app.watches.open


def text_of(gateway: Gateway, url: str) -> str:
    """The text at `url`, to its end."""
    with gateway.http() as http:
        return http.get(url, timeout=60).text
