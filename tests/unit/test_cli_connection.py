"""Where the command finds the service and its key, and what it says when either is wrong."""

from __future__ import annotations

import http.server
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.cli.connection import find
from service.embedded import StackState
from tests.cli import ENVIRONMENT, Cli, cli_of, served_quietly
from tests.fakes import API_KEY
from tests.rest_server import Served


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served_quietly(tmp_path_factory.mktemp("data")) as running:
        yield running


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ENVIRONMENT:
        monkeypatch.delenv(f"TUNESMITH_{name}", raising=False)
    monkeypatch.chdir(tmp_path)


def write_stack(data_dir: Path, url: str, key: str = API_KEY) -> Path:
    """What a gateway leaves in its data directory."""
    data_dir.mkdir(parents=True, exist_ok=True)
    (data_dir / "api-key").write_text(key + "\n")
    StackState(os.getpid(), url, "127.0.0.1:1", str(data_dir / "api-key"), None).write(data_dir)
    return data_dir


def test_by_data_directory(server: Served, tmp_path: Path) -> None:
    data_dir = write_stack(tmp_path / "my data", f"{server.url}/v1")
    assert Cli().data("files", "list", "--data-dir", data_dir) == []
    assert Cli({"TUNESMITH_DATA_DIR": str(data_dir)}).data("files", "list") == []
    target = find(None, data_dir)
    assert target.flags == f" --data-dir '{data_dir}'"  # as it must be typed
    assert API_KEY not in repr(target)


def test_by_environment(server: Served, tmp_path: Path) -> None:
    assert cli_of(server, tmp_path / "key").data("files", "list") == []
    assert Cli({"TUNESMITH_BASE_URL": f"{server.url}/v1/", "TUNESMITH_API_KEY": API_KEY}).data("files", "list") == []
    assert Cli({"TUNESMITH_API_KEY": API_KEY}).data("files", "list", "--base-url", server.url) == []


def test_options_come_before_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNESMITH_BASE_URL", "https://production.example/v1")
    monkeypatch.setenv("TUNESMITH_API_KEY", "production")
    write_stack(tmp_path / ".tunesmith", "http://127.0.0.1:1/v1", "default")
    data_dir = write_stack(tmp_path / "other", "http://127.0.0.1:2/v1", "other")
    assert (find(None, data_dir).base_url, find(None, data_dir).key) == ("http://127.0.0.1:2/v1", "other")
    assert (find("http://host", None).base_url, find("http://host", None).key) == ("http://host/v1", "production")
    assert (find(None, None).base_url, find(None, None).key) == ("https://production.example/v1", "production")
    monkeypatch.delenv("TUNESMITH_BASE_URL")
    assert (find(None, None).base_url, find(None, None).key) == ("http://127.0.0.1:1/v1", "production")


def test_the_key_of_a_data_directory_goes_to_its_own_service_alone(server: Served, tmp_path: Path) -> None:
    write_stack(tmp_path / ".tunesmith", f"{server.url}/v1")
    assert Cli().data("files", "list", "--base-url", server.url) == []
    result = Cli().run("files", "list", "--base-url", "http://127.0.0.1:9", exit_code=4)
    assert "there is no API key for http://127.0.0.1:9/v1" in result.stderr


def test_nothing_was_started(tmp_path: Path) -> None:
    result = Cli().run("jobs", "list", exit_code=5)
    assert "no stack has been started on .tunesmith" in result.stderr
    assert "`tunesmith up --detach`" in result.stderr
    assert f"tunesmith up --detach --data-dir {tmp_path}/x" in Cli().run("jobs", "list", "--data-dir", tmp_path / "x", exit_code=5).stderr


def test_a_wrong_key(server: Served, tmp_path: Path) -> None:
    (tmp_path / "key").write_text("ts_wrong\n")
    result = Cli({"TUNESMITH_BASE_URL": server.url, "TUNESMITH_API_KEY_FILE": str(tmp_path / "key")}).run("jobs", "list", exit_code=4)
    assert "error: Incorrect API key provided. (request req_" in result.stderr
    assert f"The key was read from {tmp_path / 'key'}." in result.stderr
    assert "ts_wrong" not in result.output


@pytest.mark.parametrize("content", ["", "two words", "ts_k\u00e9y", None])
def test_a_file_that_holds_no_key(content: str | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "key").write_text(content, encoding="utf-8")
    env = {"TUNESMITH_BASE_URL": "http://127.0.0.1:9", "TUNESMITH_API_KEY_FILE": str(tmp_path / "key")}
    said = Cli(env).run("jobs", "list", exit_code=4).stderr
    assert str(tmp_path / "key") in said
    assert len(said.splitlines()) <= 2


def test_a_service_that_is_away(tmp_path: Path) -> None:
    data_dir = write_stack(tmp_path / "data", "http://127.0.0.1:9/v1")
    said = Cli().run("jobs", "list", "--data-dir", data_dir, exit_code=5).stderr
    assert said.startswith("error: the service at http://127.0.0.1:9/v1 does not answer: ")
    assert f"tunesmith up --detach --data-dir {data_dir}" in said


@pytest.mark.parametrize("url", ["localhost:8400", "ftp://host/v1", "http://", "http://host:99999999", "http://[::1"])
def test_what_is_no_address(url: str) -> None:
    assert (
        f"'{url}' is no address of a service"
        in Cli({"TUNESMITH_API_KEY": "ts_k"}).run("jobs", "list", "--base-url", url, exit_code=2).stderr
    )


class _Page(http.server.BaseHTTPRequestHandler):
    """Another web server."""

    def do_GET(self) -> None:
        self.send_response(404 if "jobs" in self.path else 200)
        self.end_headers()
        self.wfile.write(b"<html>hello</html>")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def page() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Page) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{other.server_port}"
        other.shutdown()


@pytest.mark.parametrize("command", [("jobs", "list"), ("files", "list"), ("models", "list"), ("artifacts", "list", "ftjob-1")])
def test_something_else_answers(page: str, command: tuple[str, ...]) -> None:
    said = Cli({"TUNESMITH_API_KEY": "ts_k", "TUNESMITH_BASE_URL": page}).run(*command, exit_code=5).stderr
    assert "not as a Tunesmith service" in said
    assert len(said.splitlines()) == 2


def test_a_setting_that_can_not_be_read(tmp_path: Path) -> None:
    result = Cli({"TUNESMITH_PORT": "many"}).run("models", "list", "--catalogue", exit_code=2)
    assert result.stderr.startswith("error: TUNESMITH_PORT: ")
