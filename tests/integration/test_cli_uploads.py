"""`tunesmith files upload` in parts, against a whole gateway: interrupted, the same command goes on."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from service.cli import chunked
from service.errors import ErrorCode, TunesmithError
from tests.cli import Cli
from tests.gateway import Gateway, running_gateway

PIECE = 1000


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with structlog.testing.capture_logs(), running_gateway(tmp_path_factory.mktemp("gateway"), model=False) as running:
        yield running


@pytest.fixture
def cli(gateway: Gateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cli:
    monkeypatch.setattr(chunked, "PART", PIECE)
    key = str(gateway.settings.data_dir / "api-key")
    return Cli({"TUNESMITH_BASE_URL": gateway.url, "TUNESMITH_API_KEY_FILE": key, "TUNESMITH_DATA_DIR": str(tmp_path / "mine")})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Two of its pieces are the same."""
    path = tmp_path / "rows.jsonl"
    path.write_bytes(os.urandom(2 * PIECE) + b"x" * (2 * PIECE) + os.urandom(77))
    return path


class Sent:
    """Counts the parts that the gateway takes, and lets its disk be full after some of them."""

    def __init__(self, gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
        self.parts, self.room = 0, 1000
        self._real = gateway.app.add_upload_part
        monkeypatch.setattr(gateway.app, "add_upload_part", self._add)

    async def _add(self, *args: Any, **kwargs: Any) -> Any:
        if self.parts >= self.room:
            raise TunesmithError(ErrorCode.STORAGE_FULL, "There is not enough disk space for this upload.")
        self.parts += 1
        return await self._real(*args, **kwargs)


@pytest.fixture
def sent(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> Sent:
    return Sent(gateway, monkeypatch)


def content(gateway: Gateway, file_id: str) -> bytes:
    with gateway.http() as http:
        return http.get(f"/v1/files/{file_id}/content").content


def test_in_parts(gateway: Gateway, cli: Cli, path: Path, sent: Sent, tmp_path: Path) -> None:
    [file] = cli.data("files", "upload", path, "--chunked")
    assert (file["filename"], file["bytes"], sent.parts) == ("rows.jsonl", 4077, 5)
    assert content(gateway, file["id"]) == path.read_bytes()
    assert not (tmp_path / "mine").exists()


def test_only_large_files_go_in_parts_by_themselves(cli: Cli, path: Path, sent: Sent, monkeypatch: pytest.MonkeyPatch) -> None:
    cli.run("files", "upload", path)
    assert sent.parts == 0
    monkeypatch.setattr(chunked, "LARGE", 4076)
    cli.run("files", "upload", path)
    assert sent.parts == 5


def test_interrupted_it_goes_on(gateway: Gateway, cli: Cli, path: Path, sent: Sent) -> None:
    sent.room = 3
    stopped = cli.run("files", "upload", path, "--chunked", exit_code=5)
    assert "The same command goes on where it stopped." in stopped.stderr
    sent.room = 1000
    resumed = cli.run("files", "upload", path, "--chunked", "-o", "json")
    assert "3.0 kB of 4.1 kB are there" in resumed.stderr
    assert sent.parts == 5
    with gateway.client() as client:
        [newest] = client.files.list(limit=1).data
    assert content(gateway, newest.id) == path.read_bytes()


def test_a_completion_whose_answer_was_lost_is_found(cli: Cli, path: Path, sent: Sent, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(chunked._Note, "remove", lambda _: None)
        [file] = cli.data("files", "upload", path, "--chunked")
    assert cli.data("files", "upload", path, "--chunked") == [file]
    assert sent.parts == 5


def test_a_file_that_has_changed_is_another(gateway: Gateway, cli: Cli, path: Path, sent: Sent) -> None:
    sent.room = 3
    cli.run("files", "upload", path, "--chunked", exit_code=5)
    sent.room = 1000
    path.write_bytes(path.read_bytes()[::-1])
    [file] = cli.data("files", "upload", path, "--chunked")
    assert sent.parts == 3 + 5
    assert content(gateway, file["id"]) == path.read_bytes()


def test_an_upload_that_was_cancelled_is_begun_anew(gateway: Gateway, cli: Cli, path: Path, sent: Sent, tmp_path: Path) -> None:
    sent.room = 3
    cli.run("files", "upload", path, "--chunked", exit_code=5)
    sent.room = 1000
    [note] = (tmp_path / "mine" / "uploads").iterdir()
    with gateway.client() as client:
        client.uploads.cancel(note.read_text().strip())
    cli.run("files", "upload", path, "--chunked")
    assert sent.parts == 3 + 5


def test_without_a_place_for_a_note_it_uploads_nevertheless(cli: Cli, path: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").write_bytes(b"a file")
    assert "no note can be left" in cli.run("files", "upload", path, "--chunked").stderr


@pytest.mark.parametrize("how", [(), ("--chunked",)])
def test_expiry(gateway: Gateway, cli: Cli, path: Path, how: tuple[str, ...]) -> None:
    table = cli.run("files", "upload", path, "--expires-after", "7d", *how).stdout
    assert table.splitlines()[0].split()[-1] == "EXPIRES"
    with gateway.client() as client:
        [file] = client.files.list(limit=1).data
    assert file.expires_at == file.created_at + 7 * 86_400


@pytest.mark.parametrize("wrong", ["7", "1w", "59m", "31d", "-1d", "9999999d", ""])
def test_a_wrong_expiry_is_told_before_the_service_is_asked(path: Path, wrong: str) -> None:
    assert "--expires-after" in Cli().run("files", "upload", path, "--expires-after", wrong, exit_code=2).stderr
