"""`tunesmith artifacts …`: whole, resumed, redirected, damaged, and names that would leave the directory."""

from __future__ import annotations

import hashlib
import http.server
import os
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from service.records import Artifact, Content
from tests.cli import Cli, cli_of, served_quietly
from tests.fakes import BASE_MODEL
from tests.rest_server import Served

ADAPTER = "adapter/adapter_model.safetensors"
DATA = os.urandom(3_000_000)
FILES = {ADAPTER: DATA, "RUN.json": b"{}", "empty": b""}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served_quietly(tmp_path_factory.mktemp("data")) as running:
        yield running


@pytest.fixture
def cli(server: Served, tmp_path: Path) -> Cli:
    return cli_of(server, tmp_path / "key")


@pytest.fixture
def job_id(server: Served) -> str:
    made: str = server.http.post("/v1/fine_tuning/jobs", json={"model": BASE_MODEL, "training_file": "file-1"}).json()["id"]
    server.app.finish(made, dict(FILES))
    return made


@pytest.fixture
def asked(server: Served, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The ranges of bytes of the adapter that were read, in order."""
    ranges: list[tuple[int, int]] = []
    real = server.app.artifact_content

    async def told(caller: Any, job: str, name: str) -> Content:
        content = await real(caller, job, name)

        def read(start: int, end: int) -> Iterator[bytes]:
            ranges.append((start, end))
            return content.read(start, end)

        return replace(content, read=read) if name == ADAPTER else content

    monkeypatch.setattr(server.app, "artifact_content", told)
    return ranges


def tree(directory: Path) -> dict[str, bytes]:
    return {path.relative_to(directory).as_posix(): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def test_list(cli: Cli, job_id: str) -> None:
    listed = cli.data("artifacts", "list", job_id)
    assert {"name": ADAPTER, "bytes": len(DATA), "sha256": hashlib.sha256(DATA).hexdigest()} in listed
    assert ADAPTER in cli.run("artifacts", "list", job_id).stdout


def test_download_and_again(cli: Cli, job_id: str, asked: list[tuple[int, int]], tmp_path: Path) -> None:
    to = tmp_path / "new" / "place"
    first = cli.run("artifacts", "download", job_id, "--to", to)
    assert tree(to) == FILES
    assert "3 file(s)" in first.stderr
    assert len(asked) == 1
    states = {row["name"]: row["state"] for row in cli.data("artifacts", "download", job_id, "--to", to)}
    assert set(states.values()) == {"kept"}
    assert len(asked) == 1
    (to / ADAPTER).write_bytes(b"something else")
    cli.run("artifacts", "download", job_id, "--to", to)
    assert tree(to) == FILES


def test_some_names_only(cli: Cli, job_id: str, tmp_path: Path) -> None:
    cli.run("artifacts", "download", job_id, "--to", tmp_path / "to", "--name", "adapter/*")
    assert set(tree(tmp_path / "to")) == {ADAPTER}
    assert "There are: RUN.json" in cli.run("artifacts", "download", job_id, "--name", "none*", exit_code=3).stderr


def test_goes_on_from_a_partial_file(cli: Cli, job_id: str, asked: list[tuple[int, int]], tmp_path: Path) -> None:
    partial = tmp_path / f"to/{ADAPTER}.partial"
    partial.parent.mkdir(parents=True)
    partial.write_bytes(DATA[:1_234_567])
    cli.run("artifacts", "download", job_id, "--to", tmp_path / "to")
    assert asked == [(1_234_567, len(DATA))]
    assert tree(tmp_path / "to") == FILES


@pytest.mark.parametrize("partial", [b"other bytes", DATA + b"more", DATA[:-1] + b"x"])
def test_a_partial_file_of_something_else(cli: Cli, job_id: str, partial: bytes, tmp_path: Path) -> None:
    path = tmp_path / f"to/{ADAPTER}.partial"
    path.parent.mkdir(parents=True)
    path.write_bytes(partial)
    cli.run("artifacts", "download", job_id, "--to", tmp_path / "to")
    assert tree(tmp_path / "to") == FILES


def test_goes_on_after_a_cut(
    server: Served, cli: Cli, job_id: str, asked: list[tuple[int, int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = server.app.artifact_content

    async def cut(caller: Any, job: str, name: str) -> Content:
        content = await told(caller, job, name)

        def read(start: int, end: int) -> Iterator[bytes]:
            for at, piece in enumerate(content.read(start, end)):
                if at == 1:
                    raise ConnectionResetError("cut")  # the server drops the connection in the middle
                yield piece

        return replace(content, read=read)

    monkeypatch.setattr(server.app, "artifact_content", cut)
    cli.run("artifacts", "download", job_id, "--to", tmp_path / "to")
    assert tree(tmp_path / "to") == FILES
    assert [start for start, _ in asked] == [0, 1 << 20, 2 << 20]


def test_a_wrong_checksum(server: Served, cli: Cli, job_id: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def flipped(*_: object) -> list[Artifact]:
        return [Artifact(ADAPTER, len(DATA), "0" * 64)]

    monkeypatch.setattr(server.app, "list_artifacts", flipped)
    result = cli.run("artifacts", "download", job_id, "--to", tmp_path / "to", exit_code=1)
    assert f"{ADAPTER} came with the wrong SHA-256; it was thrown away" in result.stderr
    assert tree(tmp_path / "to") == {}


def test_more_bytes_than_said(server: Served, cli: Cli, job_id: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def short(*_: object) -> list[Artifact]:
        return [Artifact(ADAPTER, 10, "0" * 64)]

    monkeypatch.setattr(server.app, "list_artifacts", short)
    assert "is longer than the service said" in cli.run("artifacts", "download", job_id, "--to", tmp_path / "to", exit_code=1).stderr
    assert not any(path.stat().st_size > 10 for path in (tmp_path / "to").rglob("*") if path.is_file())


@pytest.mark.parametrize("name", ["../evil", "/etc/evil", "a/../../evil", "a\\..\\evil", "evil\x1b[31m", "", ".", "link/evil", "dir/"])
def test_names_that_leave_the_directory(
    server: Served, cli: Cli, job_id: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def strange(*_: object) -> list[Artifact]:
        return [Artifact("RUN.json", 2, hashlib.sha256(b"{}").hexdigest()), Artifact(name, 2, hashlib.sha256(b"{}").hexdigest())]

    monkeypatch.setattr(server.app, "list_artifacts", strange)
    to = tmp_path / "in" / "to"
    to.mkdir(parents=True)
    (to / "link").symlink_to(tmp_path)
    result = cli.run("artifacts", "download", job_id, "--to", to, exit_code=1)
    assert "outside of the directory" in result.stderr
    assert "\x1b[31m" not in result.stderr.replace("\x1b[31merror", "")
    assert not [path for path in tmp_path.rglob("*") if path.name in ("evil", "RUN.json")]


class _Store(http.server.BaseHTTPRequestHandler):
    """Stands for an object store: serves DATA to whoever has the address, and knows no ranges."""

    seen: list[dict[str, str]]

    def do_GET(self) -> None:
        self.seen.append({name.lower(): value for name, value in self.headers.items()})
        self.send_response(200)
        self.send_header("content-length", str(len(DATA)))
        self.end_headers()
        self.wfile.write(DATA)

    def log_message(self, *_: object) -> None:
        pass


def test_follows_to_a_presigned_address_without_the_key(
    server: Served, cli: Cli, job_id: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _Store.seen = []
    partial = tmp_path / f"to/{ADAPTER}.partial"
    partial.parent.mkdir(parents=True)
    partial.write_bytes(DATA[:1000])
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Store) as store:
        threading.Thread(target=store.serve_forever, daemon=True).start()
        monkeypatch.setattr(server.app, "presigned", f"http://127.0.0.1:{store.server_port}/bucket/key?signature=x")
        cli.run("artifacts", "download", job_id, "--to", tmp_path / "to", "--name", ADAPTER)
        store.shutdown()
    assert tree(tmp_path / "to") == {ADAPTER: DATA}
    (request,) = _Store.seen
    assert "authorization" not in request
    assert request["range"] == "bytes=1000-"


def test_before_the_job_has_succeeded(server: Served, cli: Cli) -> None:
    running = server.http.post("/v1/fine_tuning/jobs", json={"model": BASE_MODEL, "training_file": "file-2"}).json()["id"]
    said = cli.run("artifacts", "download", running, exit_code=3).stderr
    assert f"{running} has no artifacts; its status is validating_files" in said
    assert "They are published when it has succeeded." in said


def test_of_an_unknown_job(cli: Cli) -> None:
    assert "No such fine-tuning job" in cli.run("artifacts", "list", "ftjob-none", exit_code=3).stderr


def test_a_directory_that_can_not_be_written(cli: Cli, job_id: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    said = cli.run("artifacts", "download", job_id, "--to", tmp_path / "file", exit_code=1).stderr
    assert said.startswith("error: ")
    assert len(said.splitlines()) == 1
