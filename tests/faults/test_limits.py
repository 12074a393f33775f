"""Rows 27 and 38: no room for uploads, no descriptors, clients that take for ever. Everybody else is served."""

from __future__ import annotations

import resource
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from datetime import timedelta
from pathlib import Path

import httpx
import pytest

from service.rest import connections, limits
from tests.fake_run import FakeRun, until
from tests.faults.posting import JOBS, ended, job_body, post, upload
from tests.faults.process import Site
from tests.gateway import Gateway, running_gateway
from tests.small_disk import small_disk_at


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[Gateway]:
    with running_gateway(tmp_path) as running:
        yield running


@pytest.fixture
def small_spool(gateway: Gateway) -> Iterator[Path]:
    with small_disk_at(gateway.settings.spool_dir, megabytes=1) as spool:
        yield spool


def send_file(client: httpx.Client, size: int, declared: bool) -> httpx.Response:
    """An upload; unless its length is declared it comes in chunks, so that nobody knows how long it will be."""
    request = client.build_request("POST", "/v1/files", data={"purpose": "fine-tune"}, files={"file": ("a.jsonl", b"x" * size)})
    content = request.read()
    kind = {"content-type": request.headers["content-type"]}
    pieces = (content[start : start + 65536] for start in range(0, len(content), 65536))
    return client.post("/v1/files", content=content if declared else pieces, headers=kind)


@pytest.mark.parametrize("declared", [True, False])
def test_27_the_upload_spool_is_full(gateway: Gateway, small_spool: Path, declared: bool) -> None:
    with gateway.http() as client:
        job_id = post(client, job_body(upload(client)), "k")
        refusal = send_file(client, 2_000_000, declared)
        assert (refusal.status_code, refusal.json()["error"]["code"]) == (507, "storage_full")
        assert refusal.headers["x-should-retry"] == "false"
        assert list(small_spool.iterdir()) == []
        run = FakeRun.of(gateway, job_id)
        run.start()
        run.finish()
        assert send_file(client, 100_000, declared).status_code == 200


def test_38_descriptors_are_exhausted(new_site: Callable[..., Site]) -> None:
    """More silent connections than the process has descriptors: a new client is told to come back, an old one and runs go on."""
    site = new_site(FAULTS_STEP_SECONDS="0.05")
    gateway = site.gateway().start()
    assert gateway.process is not None
    resource.prlimit(gateway.process.pid, resource.RLIMIT_NOFILE, (connections.RESERVED + 40, connections.RESERVED + 40))
    host, _, port = gateway.url.removeprefix("http://").rpartition(":")
    with gateway.http() as old, ExitStack() as stack:
        job_id = post(old, job_body(upload(old), epochs=3), "k")
        for _ in range(60):
            stack.enter_context(socket.create_connection((host, int(port)), timeout=10))
        with gateway.http() as client:
            answer = until("a refusal", lambda: (found := client.get(JOBS)).status_code != 200 and found)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "too_many_connections")
        assert int(answer.headers["retry-after"]) > 0
        for _ in range(200):  # far more than there are descriptors
            with suppress(OSError):
                stack.enter_context(socket.create_connection((host, int(port)), timeout=10))
        assert old.get(JOBS).status_code == 200
        ended(old, job_id)
    with gateway.http() as client:
        until("room", lambda: client.get(JOBS).status_code == 200)
        upload(client)
    assert '"status": 500' not in gateway.log()
    gateway.end()
    site.assert_sound([job_id])


def test_38_slow_clients_are_given_up(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that sends its head byte by byte, one that says nothing, and one whose body stays away."""
    monkeypatch.setattr(connections, "HEAD", timedelta(seconds=0.6))
    monkeypatch.setattr(limits, "STALL", timedelta(seconds=0.3))
    head = f"POST {JOBS} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {gateway.key}\r\nContent-Type: application/json\r\n"
    with ExitStack() as stack:
        slow, silent, stalled = (stack.enter_context(socket.create_connection(("127.0.0.1", gateway.port), timeout=10)) for _ in range(3))
        stalled.sendall(f"{head}Content-Length: 1000\r\n\r\n{{".encode())
        began, closed = time.monotonic(), False
        for letter in head:
            with suppress(OSError):
                slow.sendall(letter.encode())
            slow.settimeout(0.05)
            with suppress(TimeoutError):
                closed = slow.recv(1) == b""
            if closed:
                break
        assert closed
        assert time.monotonic() - began >= 0.5
        assert silent.recv(1) == b""
        assert stalled.recv(64).startswith(b"HTTP/1.1 400 ")
    with gateway.http() as client:
        for _ in range(4):  # a connection that is kept is no slow one
            time.sleep(0.3)
            assert client.get(JOBS).status_code == 200
