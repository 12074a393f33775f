"""Rows 1 to 5 and 15: the gateway is killed at the points where it hurts, or told to go under load."""

from __future__ import annotations

import itertools
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any

import httpx
import pytest
import sqlalchemy as sa

from service.store import tables as t
from tests.fake_run import until
from tests.faults.gateway_process import AFTER_COMMIT, AFTER_LAUNCH, BEFORE_COMMIT
from tests.faults.posting import JOBS, ended, job_body, post, upload
from tests.faults.process import GatewayProcess, Site

KEY = {"idempotency-key": "k"}


def killed_while_posting(site: Site, point: str, headers: dict[str, str]) -> dict[str, object]:
    """The body of a job whose gateway died, at that point, of the post; another gateway runs now."""
    gateway = site.gateway().start(FAULTS_KILL=f"{point}:jobs")
    with gateway.http() as client:
        body = job_body(upload(client))
        with pytest.raises(httpx.TransportError):
            client.post(JOBS, json=body, headers=headers)
    assert gateway.gone() == -9
    gateway.start()
    return body


def test_01_gateway_killed_before_commit(site: Site) -> None:
    body = killed_while_posting(site, BEFORE_COMMIT, KEY)
    assert site.jobs() == {}
    gateway = site.gateway()
    with gateway.http() as client:
        job_id = post(client, body, "k")
        assert post(client, body, "k") == job_id
        ended(client, job_id)
    assert list(site.jobs()) == [job_id]
    gateway.end()
    site.assert_sound([job_id])


@pytest.mark.parametrize("headers", [KEY, {"x-stainless-retry-count": "1"}], ids=["key", "client-retry"])
def test_02_gateway_killed_after_commit_before_the_reply(site: Site, headers: dict[str, str]) -> None:
    body = killed_while_posting(site, AFTER_COMMIT, headers)
    [accepted] = site.jobs()
    gateway = site.gateway()
    with gateway.http() as client:
        answer = client.post(JOBS, json=body, headers=headers)
        assert (answer.status_code, answer.json()["id"]) == (200, accepted)
        ended(client, accepted)
    assert list(site.jobs()) == [accepted]
    gateway.end()
    site.assert_sound([accepted])


def test_03_gateway_killed_in_an_upload(site: Site) -> None:
    """Once when the bytes lie in the store and their row does not, once with half of them received."""
    gateway = site.gateway().start(FAULTS_KILL=f"{BEFORE_COMMIT}:files")
    with gateway.http() as client, pytest.raises(httpx.TransportError):
        upload(client)
    gateway.gone()
    gateway.start()
    with half_sent(gateway):
        until("the bytes", lambda: list((gateway.data_dir / "spool").glob("*")))
        gateway.kill()
    gateway.start()
    assert list((gateway.data_dir / "spool").glob("*")) == []
    with gateway.http() as client:
        assert client.get("/v1/files").json()["data"] == []
        site.change(sa.update(t.removals).values(due_at=0.0))  # a day later
        until("the sweep", lambda: not list(site.storage.list("files/")))
        kept = upload(client)
        assert [file["id"] for file in client.get("/v1/files").json()["data"]] == [kept]
    gateway.end()
    site.assert_sound([])


def test_04_scheduler_killed_after_a_claim(site: Site) -> None:
    """The claim stands, the run was never started: the next scheduler takes the lease over and starts that very run."""
    gateway = site.gateway().start(FAULTS_KILL=f"{AFTER_COMMIT}:runs")
    with gateway.http() as client:
        job_id = post(client, job_body(upload(client)), "k")
    gateway.gone()
    claimed = site.jobs()[job_id]
    assert (claimed.status, claimed.epoch, site.started(job_id)) == ("starting", 1, [])
    gateway.start()
    taken = until("the takeover", lambda: (job := site.jobs()[job_id]).lease_owner != claimed.lease_owner and job)
    assert taken.version > claimed.version, "what the dead scheduler read is stale"
    with gateway.http() as client:
        ended(client, job_id)
    assert site.started(job_id) == [f"{job_id}-1"]
    gateway.end()
    site.assert_sound([job_id])


def test_05_killed_after_the_launch_before_recording_it(site: Site) -> None:
    """The run goes on without a gateway, under an id that the next one knows too: it is adopted, and is the only one."""
    gateway = site.gateway().start(FAULTS_KILL=AFTER_LAUNCH, FAULTS_STEP_SECONDS="0.1")
    with gateway.http() as client:
        job_id = post(client, job_body(upload(client)), "k")
    gateway.gone()
    assert site.started(job_id) == [f"{job_id}-1"]
    gateway.start()
    with gateway.http() as client:
        ended(client, job_id)
    assert site.started(job_id) == [f"{job_id}-1"]
    assert len(site.rows(sa.select(t.runs.c.epoch).where(t.runs.c.job_id == job_id))) == 1
    gateway.end()
    site.assert_sound([job_id])


def test_15_a_gateway_told_to_go_finishes_what_it_has_begun(new_site: Callable[..., Site]) -> None:
    site = new_site()
    gateway = site.gateway().start()
    with half_sent(gateway) as (connection, rest):
        until("the bytes", lambda: list((gateway.data_dir / "spool").glob("*")))
        gateway.signal(signal.SIGTERM)
        until("no further connections", lambda: not gateway.answers_at_all())
        connection.sendall(rest)
        assert connection.recv(64).startswith(b"HTTP/1.1 200 ")
    assert gateway.gone() == 0
    assert len(site.rows(sa.select(t.files.c.id).where(t.files.c.deleted_at.is_(None)))) == 1
    site.assert_sound([])


def test_15_a_rolling_restart_under_load_drops_nothing(new_site: Callable[..., Site], postgres_url: str) -> None:
    """Clients go to the other gateway when one does not answer, as they do behind a load balancer."""
    site = new_site(postgres_url, FAULTS_CPUS="0")  # the jobs stay queued
    gateways = [site.gateway(name).start() for name in ("one", "two")]
    with gateways[0].http() as client:
        body = job_body(upload(client), every=12)
    over = threading.Event()
    with ThreadPoolExecutor(4) as pool:
        posters = [pool.submit(posting, site, body, number, over) for number in range(4)]
        for gateway in gateways:
            time.sleep(0.5)
            assert gateway.terminate() == 0
            gateway.start()
        over.set()
        answers = {key: job_id for poster in posters for key, job_id in poster.result().items()}
    jobs = site.jobs()
    assert len(set(answers.values())) == len(answers) == len(jobs)
    assert set(answers.values()) == set(jobs)
    with gateways[0].http() as client:
        for job_id in jobs:
            client.post(f"{JOBS}/{job_id}/cancel")
        until("every end", lambda: all(job.finished_at for job in site.jobs().values()), pause=0.2)
    for gateway in gateways:
        assert gateway.terminate() == 0
    site.assert_sound(list(jobs), status=None)


def posting(site: Site, body: dict[str, Any], number: int, over: threading.Event) -> dict[str, str]:
    """The job of each key that was posted until `over`; a key is posted until it is accepted."""
    accepted: dict[str, str] = {}
    turns = itertools.cycle(site.gateways.values())
    while not over.is_set():
        key = f"{number}-{len(accepted)}"
        while key not in accepted:
            with suppress(httpx.TransportError), next(turns).http() as client:
                accepted[key] = post(client, body, key)
        time.sleep(0.05)
    return accepted


@contextmanager
def half_sent(gateway: GatewayProcess) -> Iterator[tuple[socket.socket, bytes]]:
    """An upload of which half is sent: its connection, and the other half."""
    host, _, port = gateway.url.removeprefix("http://").rpartition(":")
    request = httpx.Request("POST", gateway.url, data={"purpose": "fine-tune"}, files={"file": ("big.jsonl", b"x" * 2_000_000)})
    body, kind = request.read(), request.headers["content-type"]
    head = f"POST /v1/files HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {gateway.site.key()}\r\nContent-Type: {kind}\r\n"
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(head.encode() + f"Content-Length: {len(body)}\r\n\r\n".encode() + body[:1_000_000])
        yield connection, body[1_000_000:]
