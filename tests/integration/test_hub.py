"""Pulling from a Hub: a small server that answers as the Hub does, with its hashes, its cuts and its lies."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from service import hub
from service.catalogue import Entry, HubSource
from service.pull import PullFailed, pull
from tests.safetensors_maker import write_model
from trainers import manifest
from trainers.storage import Storage, open_storage

COMMIT = "c" * 40
NAME = "owner/name"
TOKEN = "hf_secret"


class FakeHub(ThreadingHTTPServer):
    """One repository at one commit."""

    daemon_threads = True

    def __init__(self, files: dict[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), _Answers)
        self.files = files
        self.sha = COMMIT
        self.served: dict[str, bytes] = {}
        """Files that it serves with other bytes than it lists."""
        self.cut_after: list[int] = []
        """After how many bytes the next answers break off."""
        self.status: int | None = None
        self.ignores_ranges = False
        self.asked: list[tuple[str, str | None, str | None]] = []
        """Path, range and authorization of each request."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def listing(self) -> dict[str, Any]:
        siblings = []
        for name, data in self.files.items():
            blob = hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
            lfs = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
            large = name.endswith(".safetensors")
            siblings.append({"rfilename": name, "size": len(data), "blobId": "d" * 40 if large else blob} | ({"lfs": lfs} if large else {}))
        return {"id": NAME, "sha": self.sha, "siblings": siblings}


class _Answers(BaseHTTPRequestHandler):
    server: FakeHub

    def do_GET(self) -> None:
        fake, path = self.server, self.path.partition("?")[0]
        fake.asked.append((self.path, self.headers.get("range"), self.headers.get("authorization")))
        if fake.status is not None:
            return self._send(fake.status, b"")
        if path == f"/api/models/{NAME}/revision/{COMMIT}":
            return self._send(200, json.dumps(fake.listing()).encode())
        name = path.removeprefix(f"/{NAME}/resolve/{COMMIT}/")
        if name not in fake.files:
            return self._send(404, b"")
        data = fake.served.get(name, fake.files[name])
        start = int((self.headers.get("range") or "bytes=0-").removeprefix("bytes=").rstrip("-"))
        if fake.ignores_ranges or not start:
            return self._send(200, data)
        return self._send(206, data[start:])

    def _send(self, status: int, data: bytes) -> None:
        self.send_response(status)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        cut = self.server.cut_after.pop(0) if self.server.cut_after and "/resolve/" in self.path else None
        self.wfile.write(data if cut is None else data[:cut])
        self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    files = {path.name: path.read_bytes() for path in write_model(tmp_path / "model").iterdir()}
    fake = FakeHub(files | {"README.md": b"# model", "training_args.bin": b"pickle"})
    thread = threading.Thread(target=fake.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_ENDPOINT", fake.url)
    monkeypatch.setattr(hub, "PAUSE", 0.01)
    yield fake
    fake.shutdown()
    thread.join()
    fake.server_close()


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return open_storage((tmp_path / "objects").as_uri())


def entry(**pins: str) -> Entry:
    return Entry(id="m", licence="mit", source=(HubSource(hub=NAME, revision=COMMIT, sha256=pins),))


def stored(storage: Storage) -> list[str]:
    return [info.key for info in storage.list("base/")]


def test_what_a_model_needs_is_downloaded_at_the_commit(server: FakeHub, storage: Storage) -> None:
    seen: list[tuple[str, int, int]] = []
    ref = pull(storage, entry(), lambda *told: seen.append(told))
    assert ref.revision == COMMIT
    names = [file.name for file in manifest.read(storage, ref.prefix).files]
    assert names == ["chat_template.jinja", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
    size = len(server.files["model.safetensors"])
    assert ("downloading model.safetensors", size, size) in seen


def test_a_broken_download_goes_on_where_it_ended(server: FakeHub, storage: Storage) -> None:
    del server.files["chat_template.jinja"]
    server.files = {name: server.files[name] for name in ("model.safetensors", *sorted(server.files.keys() - {"model.safetensors"}))}
    server.files["tokenizer_config.json"] = json.dumps({"eos_token": "<|im_end|>", "chat_template": "{{ messages }}"}).encode()
    server.cut_after = [100, 50, 0]
    pull(storage, entry())
    ranges = [asked for path, asked, _ in server.asked if path.endswith("model.safetensors")]
    assert ranges == [None, "bytes=100-", "bytes=150-", "bytes=150-"]


def test_a_server_without_ranges_is_read_from_the_start(server: FakeHub, storage: Storage) -> None:
    server.cut_after, server.ignores_ranges = [100], True
    pull(storage, entry())


def test_a_connection_that_breaks_every_time_is_given_up(server: FakeHub, storage: Storage) -> None:
    server.cut_after = [0] * 100
    with pytest.raises(PullFailed, match="can't be reached"):
        pull(storage, entry())
    assert stored(storage) == []


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_other_bytes_than_those_of_the_commit_are_refused(server: FakeHub, storage: Storage, name: str) -> None:
    data = bytearray(server.files[name])
    data[-2] ^= 1
    server.served[name] = bytes(data)
    with pytest.raises(PullFailed, match=rf"{name} is not the file of the pinned revision"):
        pull(storage, entry())
    assert stored(storage) == []


def test_more_bytes_than_announced_are_not_even_read(server: FakeHub, storage: Storage) -> None:
    server.served["config.json"] = server.files["config.json"] + bytes(2**24)
    seen = [0]
    with pytest.raises(PullFailed, match=r"config\.json is not the file"):
        pull(storage, entry(), lambda stage, done, _: seen.append(done) if stage.endswith("config.json") else None)
    assert max(seen) < 2**22


def test_a_hash_of_the_catalogue_counts_more_than_the_hubs(server: FakeHub, storage: Storage) -> None:
    good = hashlib.sha256(server.files["model.safetensors"]).hexdigest()
    with pytest.raises(PullFailed, match=r"model\.safetensors is not the file"):
        pull(storage, entry(**{"model.safetensors": "0" * 64}))
    with pytest.raises(PullFailed, match=r"a hash for model-1\.safetensors, which is not among its files"):
        pull(storage, entry(**{"model-1.safetensors": good}))
    pull(storage, entry(**{"model.safetensors": good}))


def test_another_commit_is_refused(server: FakeHub, storage: Storage) -> None:
    server.sha = "e" * 40
    with pytest.raises(PullFailed, match=r"asked for the commit c+, it has 'e+'"):
        pull(storage, entry())


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"modeling_x.py": b""}, r"code of its own \(modeling_x\.py\)"),
        ({"config.json": json.dumps({"auto_map": {"AutoConfig": "x.X"}}).encode()}, "auto_map"),
        ({"model.safetensors": None, "pytorch_model.bin": b"x"}, r"pickled \(pytorch_model\.bin\)"),
        ({"chat_template.jinja": None}, "no chat template.*chat_template"),
    ],
)
def test_models_that_are_refused(server: FakeHub, storage: Storage, files: dict[str, bytes | None], reason: str) -> None:
    server.files = {name: data for name, data in (server.files | files).items() if data is not None}
    with pytest.raises(PullFailed, match=reason):
        pull(storage, entry())
    assert stored(storage) == []


@pytest.mark.parametrize(("status", "reason"), [(401, "HF_TOKEN"), (404, "no such repository or revision"), (503, "status 503")])
def test_what_the_hub_refuses_is_said(server: FakeHub, storage: Storage, status: int, reason: str) -> None:
    server.status = status
    with pytest.raises(PullFailed, match=reason):
        pull(storage, entry())


def test_the_token_is_sent_and_never_told(server: FakeHub, storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    server.status = 403
    with pytest.raises(PullFailed) as caught:
        pull(storage, entry())
    assert [authorization for _, _, authorization in server.asked] == [f"Bearer {TOKEN}"]
    assert TOKEN not in str(caught.value)
    assert TOKEN not in repr(hub.Hub.of_environment())


def test_offline_asks_nobody(server: FakeHub, storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(PullFailed, match="HF_HUB_OFFLINE is set"):
        pull(storage, entry())
    assert server.asked == []
