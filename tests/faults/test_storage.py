"""Rows 28, 29 and 32: the object store refuses, stalls, crawls, or takes the credentials no more. Every fault is the proxy's."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.fake_run import FakeRun, until
from tests.fault_proxy import FaultProxy, answering, fault_proxy, passed, refused, slow, stalled
from tests.faults.posting import JOBS, ended, job_body, post, upload
from tests.faults.prepared import Prepared
from tests.faults.process import Site
from tests.gateway import Gateway, running_gateway
from tests.seaweed import SeaweedFS
from trainers import s3_storage
from trainers.s3_client import Patience, connect
from trainers.storage import StorageUnavailable, open_storage

METHODS = ("GET", "PUT", "HEAD", "DELETE")
MANY = 10_000
"""Requests: more than any test makes."""


@pytest.fixture
def proxy(seaweed: SeaweedFS, s3_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    with fault_proxy(seaweed.endpoint) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.endpoint)
        yield proxy


@pytest.fixture
def gateway(proxy: FaultProxy, s3_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gateway]:
    """On the object store behind the proxy, with little patience."""
    monkeypatch.setattr(s3_storage, "Patience", lambda: Patience(connect=1, silence=1, attempts=2, grace=1, bytes_per_second=2**20))
    with running_gateway(tmp_path, storage_url=s3_url) as running:
        yield running


@pytest.fixture
def site(prepared: Prepared, tmp_path: Path, s3_url: str, proxy: FaultProxy) -> Iterator[Site]:
    """Processes on that store."""
    storage = open_storage(s3_url)
    for path in (path for path in prepared.objects.rglob("*") if path.is_file()):
        storage.put_file(path.relative_to(prepared.objects).as_posix(), path)
    (tmp_path / "runs").mkdir()
    site = Site(tmp_path, None, s3_url, prepared.catalogue, {"FAULTS_STEP_SECONDS": "0.1"})
    yield site
    site.end()


def test_28_the_store_refuses_and_then_fails_now_and_then(site: Site, proxy: FaultProxy) -> None:
    """Refused for as long as some thirty steps take: training goes on, clients are told when to ask again. Then 30 % of 503."""
    gateway = site.gateway().start()
    with gateway.http() as client:
        file = upload(client)
        job_id = post(client, job_body(file, epochs=5, every=30), "k")
        until("the run", lambda: step(client, job_id) > 2, pause=0.1)
        for method in METHODS:
            proxy.harm(method, refused, MANY)
        before = step(client, job_id)
        answer = client.post("/v1/files", data={"purpose": "fine-tune"}, files={"file": ("a.jsonl", b"{}")})
        assert (answer.status_code, int(answer.headers["retry-after"]) > 0) == (503, True)
        until("progress", lambda: step(client, job_id) > before + 10, pause=0.1)
        proxy.heal()
        dice = random.Random(28)
        for method in METHODS:
            for _ in range(MANY // 10):
                proxy.harm(method, answering(503, "SlowDown") if dice.random() < 0.3 else passed)
        ended(client, job_id)
        proxy.heal()
    assert site.started(job_id) == [f"{job_id}-1"]
    gateway.end()
    site.assert_sound([job_id])


def test_28_retries_come_at_irregular_times() -> None:
    """Clients that failed together do not come back together: our own pauses are random, and so are those of boto's mode."""
    assert list(s3_storage._pauses()) != list(s3_storage._pauses())
    assert connect("when_supported", Patience()).meta.config.retries["mode"] == "standard"


@pytest.mark.parametrize("fault", [stalled, slow(0.01)], ids=["stalls", "crawls"])
def test_29_a_slow_store_has_a_deadline_and_does_not_hold_heartbeats_up(gateway: Gateway, proxy: FaultProxy, fault) -> None:
    storage = gateway.parts.storage
    storage.put("files/big", b"x" * 200_000)
    with gateway.http() as client, ThreadPoolExecutor(4) as pool:
        run = FakeRun.of(gateway, post(client, job_body(upload(client)), "k"))
        run.start()
        proxy.harm("GET", fault, MANY)
        reads = [pool.submit(storage.get, "files/big") for _ in range(4)]
        beats = 0
        while not all(read.done() for read in reads):
            run.tell()
            beats += 1
            time.sleep(0.1)
        assert beats > 2, "heartbeats are answered while the store is waited for"
        assert all(isinstance(read.exception(), StorageUnavailable) for read in reads)
        proxy.heal()
        assert len(storage.get("files/big")) == 200_000
        run.finish()


def test_32_the_store_takes_the_credentials_no_more(gateway: Gateway, proxy: FaultProxy) -> None:
    with gateway.http() as client:
        body = job_body(upload(client))
        for method in METHODS:
            proxy.harm(method, answering(403, "AccessDenied"), MANY)
        asked = len(proxy.seen)
        refusal = client.post(JOBS, json=body)
        assert (refusal.status_code, "credentials" in refusal.json()["error"]["message"]) == (503, True)
        proxy.heal()
        job_id = post(client, body, "k")
        run = FakeRun.of(gateway, job_id)
        run.start()
        for method in METHODS:
            proxy.harm(method, answering(403, "AccessDenied"), MANY)
        asked = len(proxy.seen)
        time.sleep(1.5)
        assert len(proxy.seen) - asked <= 3, "no retry storm"
        proxy.heal()
        run.finish()


def step(client: httpx.Client, job_id: str) -> int:
    return client.get(f"{JOBS}/{job_id}").json()["tunesmith"]["progress"]["step"] or 0
