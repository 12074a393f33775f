"""TLS on both transports, and runs that must show a certificate."""

from __future__ import annotations

import asyncio
import os
import ssl
import threading
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest

from protos.tunesmith.v1 import models_pb2, runs_pb2
from service.embedded import CannotStart, listen
from service.gateway import serve_rest
from service.metrics import Metrics
from service.ray_command import head_command
from service.rest import create_rest
from service.settings import Settings
from service.tls import Certificate
from tests.certificates import Authority, Pem
from tests.fakes import API_KEY, FakeApp
from tests.gateway import running_gateway
from tests.rpc_client import connected, refused
from tests.rpc_server import served
from trainers.failure import TrainingFailed
from trainers.report import GatewayReporter, open_channel

TWEETS = Path(__file__).parents[2] / "examples" / "tweets" / "tweets-test.jsonl"
ALL = models_pb2.ListModelsRequest()


@dataclass(frozen=True)
class Certificates:
    """What the gateway, its workers and a stranger hold."""

    authority: Authority
    server: Pem
    worker: Pem
    stranger: Pem

    @property
    def settings(self) -> dict[str, Any]:
        return {"tls_cert_file": self.server.cert, "tls_key_file": self.server.key}

    def credentials(self, own: Pem | None = None) -> grpc.ChannelCredentials:
        pair = (own.key.read_bytes(), own.cert.read_bytes()) if own else (None, None)
        return grpc.ssl_channel_credentials(self.authority.cert.read_bytes(), *pair)


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    directory = tmp_path_factory.mktemp("pki")
    ours, theirs = Authority(directory, "ours"), Authority(directory, "theirs")
    return Certificates(ours, ours.sign("server"), ours.sign("worker"), theirs.sign("stranger"))


@pytest.fixture
def node(pki: Certificates, monkeypatch: pytest.MonkeyPatch) -> Callable[[Pem | None], None]:
    """Sets the environment of a node with this certificate."""

    def set_environment(own: Pem | None) -> None:
        monkeypatch.setenv("TUNESMITH_TLS_CA", str(pki.authority.cert))
        for name, path in (("CERT", own.cert), ("KEY", own.key)) if own else ():
            monkeypatch.setenv(f"TUNESMITH_TLS_{name}", str(path))

    return set_environment


def test_grpc_with_tls(pki: Certificates, tmp_path: Path) -> None:
    with served(tmp_path, **pki.settings) as server:
        with connected(server.address, API_KEY, pki.credentials()) as client:
            assert client.models.ListModels(ALL).models
        with connected(server.address, API_KEY) as plain, refused(grpc.StatusCode.UNAVAILABLE):
            plain.models.ListModels(ALL, timeout=5)
        with connected(server.address, API_KEY, grpc.ssl_channel_credentials()) as unknowing, refused(grpc.StatusCode.UNAVAILABLE):
            unknowing.models.ListModels(ALL, timeout=5)


def test_a_renewed_certificate_is_taken_at_the_next_handshake(tmp_path: Path) -> None:
    old, new = Authority(tmp_path, "old"), Authority(tmp_path, "new")
    shown = old.sign("server")
    with served(tmp_path, tls_cert_file=shown.cert, tls_key_file=shown.key) as server:
        with connected(server.address, API_KEY, grpc.ssl_channel_credentials(old.cert.read_bytes())) as client:
            assert client.models.ListModels(ALL).models
        shown.cert.write_bytes(b"half of a certifi")
        os.utime(shown.cert, (1, 1))
        with connected(server.address, API_KEY, grpc.ssl_channel_credentials(old.cert.read_bytes())) as client:
            assert client.models.ListModels(ALL).models  # what can't be used is not taken
        new.sign("server")
        os.utime(shown.cert, (2, 2))
        with connected(server.address, API_KEY, grpc.ssl_channel_credentials(new.cert.read_bytes())) as client:
            assert client.models.ListModels(ALL).models


def test_rest_with_tls(pki: Certificates, tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, **pki.settings)
    with _rest(settings) as port:
        trusting = ssl.create_default_context(cafile=str(pki.authority.cert))
        assert httpx.get(f"https://127.0.0.1:{port}/healthz", verify=trusting).json() == {"status": "ok"}
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"https://127.0.0.1:{port}/healthz")
        with pytest.raises(httpx.RemoteProtocolError):
            httpx.get(f"http://127.0.0.1:{port}/healthz")


def test_runs_must_show_a_certificate_where_an_authority_is_set(
    pki: Certificates, tmp_path: Path, node: Callable[[Pem | None], None]
) -> None:
    """With mTLS runs have a port of their own, the one they are told; only a worker's certificate gets in there."""
    with running_gateway(tmp_path, **pki.settings, tls_client_ca_file=pki.authority.cert, runs_port=0) as gateway:
        client = gateway.client()
        file = client.files.create(file=TWEETS, purpose="fine-tune")
        client.fine_tuning.jobs.create(model="tiny", training_file=file.id, extra_body={"tunesmith": {"resources": {"cpus_per_worker": 1}}})
        _until(lambda: gateway.runtime.launched)
        [spec] = gateway.runtime.launched
        assert spec.report_address != gateway.rpc_address
        token = gateway.parts.storage.get(f"{spec.run_prefix}/token").decode()
        heartbeat = runs_pb2.ReportRequest(job_id=spec.job_id, epoch=1)
        with connected(gateway.rpc_address, token, pki.credentials()) as public, refused(grpc.StatusCode.UNIMPLEMENTED):
            public.runs.Report(heartbeat)
        for own in (None, pki.stranger):
            with connected(spec.report_address, token, pki.credentials(own)) as worker, refused(grpc.StatusCode.UNAVAILABLE):
                worker.runs.Report(heartbeat, timeout=5)
        with connected(spec.report_address, gateway.key, pki.credentials(pki.worker)) as worker, refused(grpc.StatusCode.UNIMPLEMENTED):
            worker.models.ListModels(ALL)
        node(pki.worker)
        reporter = GatewayReporter(spec.report_address, token, spec.job_id, 1)
        reporter.tell(runs_pb2.RunReport(started=runs_pb2.Started(world_size=1, total_steps=3)))
        reporter.deliver()
        reporter.close()
        assert client.fine_tuning.jobs.retrieve(spec.job_id).status == "running"


def test_a_nodes_files_that_can_not_be_read(node: Callable[[Pem | None], None], tmp_path: Path) -> None:
    node(Pem(tmp_path / "nothing.pem", tmp_path / "nothing.key"))
    with pytest.raises(TrainingFailed, match="TUNESMITH_TLS_CERT") as failed:
        open_channel("127.0.0.1:1")
    assert (failed.value.code, failed.value.cause) == ("tls_unusable", "config")


def test_the_local_head_passes_the_nodes_paths_on(node: Callable[[Pem | None], None], pki: Certificates, tmp_path: Path) -> None:
    node(pki.worker)
    environment = head_command(tmp_path, tmp_path / "token").environment
    assert {name for name in environment if name.startswith("TUNESMITH_TLS_")} == {f"TUNESMITH_TLS_{n}" for n in ("CA", "CERT", "KEY")}


@pytest.mark.parametrize("given", [{"tls_cert_file"}, {"tls_key_file"}, {"tls_client_ca_file"}, {"tls_cert_file", "tls_client_ca_file"}])
def test_half_of_the_settings_is_refused(pki: Certificates, given: set[str]) -> None:
    files = {"tls_cert_file": pki.server.cert, "tls_key_file": pki.server.key, "tls_client_ca_file": pki.authority.cert}
    with pytest.raises(CannotStart, match="go together"):
        Certificate.of(Settings(**{name: files[name] for name in given}))


@pytest.mark.parametrize("wrong", ["tls_cert_file", "tls_key_file", "tls_client_ca_file"])
def test_files_that_can_not_be_used_are_refused(pki: Certificates, tmp_path: Path, wrong: str) -> None:
    files = {"tls_cert_file": pki.server.cert, "tls_key_file": pki.server.key, "tls_client_ca_file": pki.authority.cert}
    garbage = tmp_path / "garbage.pem"
    garbage.write_text("no certificate")
    for path in (tmp_path / "nothing", garbage, pki.stranger.key):
        with pytest.raises(CannotStart, match="can't be used"):
            Certificate.of(Settings(**{**files, wrong: path}))


class _rest:
    """REST alone on a free port, in a thread."""

    def __init__(self, settings: Settings) -> None:
        self._settings, self._loop = settings, asyncio.new_event_loop()
        self._stop, self._ready, self._port = asyncio.Event(), threading.Event(), 0

    def __enter__(self) -> int:
        self._thread = threading.Thread(target=lambda: self._loop.run_until_complete(self._serve()), daemon=True)
        self._thread.start()
        assert self._ready.wait(10)
        return self._port

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)
        self._loop.close()

    async def _serve(self) -> None:
        async with AsyncExitStack() as stack:
            socket = stack.enter_context(listen("127.0.0.1", 0))
            self._port = socket.getsockname()[1]
            api = create_rest(FakeApp(), Metrics(), self._settings)
            await stack.enter_async_context(serve_rest(api, socket, self._stop, Certificate.of(self._settings)))
            self._ready.set()
            await self._stop.wait()


def _until(holds: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)
