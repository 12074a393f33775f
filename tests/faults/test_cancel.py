"""Row 17: a job is cancelled in every state, and 200 times just when its run says that it has finished. Runs are reports without a run."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from protos.tunesmith.v1 import runs_pb2 as pb
from service.errors import TunesmithError
from service.runtime import Capacity
from tests.fake_run import PUBLISHED, FakeRun, until
from tests.faults.posting import JOBS, job_body, post, upload
from tests.gateway import Gateway, running_gateway
from tests.soundness import ENDS
from tests.tiny_chat import chat_row, write_rows

RACES, BATCH = 200, 40
BOUND = 20.0
"""Seconds to the end, of which the grace is a tenth of one: generous to a machine that does other things."""


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    settings: dict[str, Any] = {"cancel_grace": timedelta(seconds=0.1), "quota_requests_per_minute": "unlimited"}
    with running_gateway(tmp_path_factory.mktemp("gateway"), **settings) as running:
        running.runtime.total = Capacity(cpus=1000, gpus=0, nodes=500)
        yield running


@pytest.fixture(scope="module")
def client(gateway: Gateway) -> Iterator[httpx.Client]:
    with gateway.http() as client:
        yield client


def phase(client: httpx.Client, job_id: str) -> str:
    return client.get(f"{JOBS}/{job_id}").json()["tunesmith"]["phase"]


def ends(client: httpx.Client, job_id: str) -> list[str]:
    """The last words of its history, of which there must be one."""
    events = client.get(f"{JOBS}/{job_id}/events", params={"limit": 100}).json()["data"]
    return [event["message"] for event in events if event["message"].startswith(ENDS)]


def brought(gateway: Gateway, client: httpx.Client, state: str, tmp_path: Path) -> str:
    """A job in that state."""
    if state == "validating":
        rows = write_rows(tmp_path / "new.jsonl", [chat_row(f"never seen {random.random()}") for _ in range(12)])
        file = client.post("/v1/files", data={"purpose": "fine-tune"}, files={"file": ("new.jsonl", rows.read_bytes())}).json()["id"]
        return post(client, job_body(file), f"in {state}")
    if state in ("queued", "paused"):
        gateway.runtime.total = Capacity(cpus=0, gpus=0, nodes=0)
    job_id = post(client, job_body(upload(client)), f"in {state}")
    if state in ("queued", "paused"):
        until("the queue", lambda: phase(client, job_id) == "queued")
        if state == "paused":
            assert client.post(f"{JOBS}/{job_id}/pause").status_code == 200
        return job_id
    run = FakeRun.of(gateway, job_id)
    if state != "starting":
        run.start()
    for asked in {"pausing": ["pause"], "cancelling": ["cancel"]}.get(state, []):
        assert client.post(f"{JOBS}/{job_id}/{asked}").status_code == 200
    return job_id


@pytest.mark.parametrize("state", ["validating", "queued", "starting", "running", "pausing", "paused", "cancelling"])
def test_17_cancelled_in_every_state(gateway: Gateway, client: httpx.Client, state: str, tmp_path: Path) -> None:
    total = gateway.runtime.total
    try:
        job_id = brought(gateway, client, state, tmp_path)
        assert client.post(f"{JOBS}/{job_id}/cancel").status_code in ((200, 400) if state == "cancelling" else (200,))
        until("the end", lambda: phase(client, job_id) == "cancelled", BOUND)
    finally:
        gateway.runtime.total = total
    assert ends(client, job_id) == ["The job has been cancelled"]
    assert not [run for run, seen in gateway.runtime.runs.items() if run.startswith(job_id) and seen.alive]
    assert client.post(f"{JOBS}/{job_id}/cancel").status_code == 400


def test_17_cancelled_against_finished(gateway: Gateway, client: httpx.Client) -> None:
    body, ended = job_body(upload(client)), Counter[str]()
    for batch in range(RACES // BATCH):
        jobs = [post(client, body, f"race {batch} {number}") for number in range(BATCH)]
        runs = [FakeRun.of(gateway, job_id) for job_id in jobs]
        gateway.do(races(gateway, [(run, started_and_published(run)) for run in runs]))
        ended += Counter(until(f"the end of {job_id}", lambda job_id=job_id: final(client, job_id), BOUND) for job_id in jobs)
        assert all(len(ends(client, job_id)) == 1 for job_id in jobs)
    assert ended.total() == RACES
    assert ended.keys() == {"succeeded", "cancelled"}, "each wins some"


async def races(gateway: Gateway, runs: list[tuple[FakeRun, pb.ReportRequest]]) -> None:
    """Each run says that it has finished just when its job is cancelled; then it leaves."""
    caller = await gateway.app.authenticate(gateway.key)

    async def told(run: FakeRun, request: pb.ReportRequest) -> None:
        await asyncio.sleep(random.uniform(0, 0.02))
        with suppress(TunesmithError):  # cancelled already
            await gateway.app.report(run.token, request)

    async def cancelled(run: FakeRun) -> None:
        await asyncio.sleep(random.uniform(0, 0.02))
        with suppress(TunesmithError):  # finished already
            await gateway.app.cancel_job(caller, run.spec.job_id)

    for run, request in runs:
        await asyncio.gather(told(run, request), cancelled(run))
        run.leave()


def started_and_published(run: FakeRun) -> pb.ReportRequest:
    """The run's last word, which is true already."""
    run.start()
    digest = run._write(run.spec.model_prefix, PUBLISHED)
    finished = pb.Finished(last_step=run.spec.resolved.steps, manifest_sha256=digest, trained_tokens=1)
    return pb.ReportRequest(job_id=run.spec.job_id, epoch=1, reports=[pb.RunReport(seq=2, finished=finished)])


def final(client: httpx.Client, job_id: str) -> str:
    status = client.get(f"{JOBS}/{job_id}").json()["status"]
    return status if status in ("succeeded", "failed", "cancelled") else ""
