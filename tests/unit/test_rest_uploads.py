"""Uploads: bounded, whole or refused, and nothing left on disk."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from service import spool
from service.filenames import clean_filename
from service.rest import multipart as parser
from service.spool import sweep
from tests.rest_server import Served, served

LIMIT = 1 << 20
FILES = "/v1/files"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(tmp_path_factory.mktemp("data"), max_upload_bytes=LIMIT, max_body_bytes=2048) as running:
        yield running


@pytest.fixture(autouse=True)
def _nothing_stays(server: Served) -> Iterator[None]:
    yield
    deadline = time.monotonic() + 5
    while (left := list(server.settings.spool_dir.glob("*"))) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not left


def upload(server: Served, data: bytes = b"{}\n", name: str = "train.jsonl", **fields: str) -> httpx.Response:
    return server.http.post(FILES, files={"file": (name, data)}, data={"purpose": "fine-tune", **fields})


def part(name: str, value: bytes, extra: str = "") -> bytes:
    return f'--XX\r\nContent-Disposition: form-data; name="{name}"{extra}\r\n\r\n'.encode() + value + b"\r\n"


def multipart(server: Served, body: bytes, kind: str = "multipart/form-data; boundary=XX") -> httpx.Response:
    return server.http.post(FILES, content=body, headers={"content-type": kind})


FILE, PURPOSE, END = part("file", b"{}", '; filename="a.jsonl"'), part("purpose", b"fine-tune"), b"--XX--\r\n"


def refused(response: httpx.Response, status: int = 400) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}
    return response.json()["error"]


def test_bytes_arrive_as_they_were(server: Served) -> None:
    data = os.urandom(LIMIT)
    file = upload(server, data).json()
    assert (file["bytes"], file["status"], file["expires_at"]) == (LIMIT, "processed", None)
    assert server.app.data[file["id"]] == data
    assert upload(server, b"").json()["bytes"] == 0
    assert multipart(server, PURPOSE + FILE + END).status_code == 200


def test_expiry_is_counted_from_the_creation(server: Served) -> None:
    file = upload(server, **{"expires_after[anchor]": "created_at", "expires_after[seconds]": "3600"}).json()
    assert file["expires_at"] == file["created_at"] + 3600


def test_one_byte_above_the_limit(server: Served) -> None:
    assert refused(upload(server, b"x" * (LIMIT + 1)), 413)["code"] == "too_large"
    assert refused(upload(server, b"x" * (LIMIT * 20)), 413)["code"] == "too_large"


def test_chunked_above_the_limit(server: Served) -> None:
    def body() -> Iterator[bytes]:
        yield part("file", b"", '; filename="a"')[:-2]
        for _ in range(40):
            yield b"x" * 65536

    response = server.http.post(FILES, content=body(), headers={"content-type": "multipart/form-data; boundary=XX"})
    refused(response, 413)


BROKEN = {
    "no file": PURPOSE + END,
    "no purpose": FILE + END,
    "two files": FILE + FILE + PURPOSE + END,
    "two purposes": FILE + PURPOSE + PURPOSE + END,
    "unknown part": FILE + PURPOSE + part("purpos", b"x") + END,
    "10,000 parts": b"".join(part(f"f{n}", b"") for n in range(10_000)) + END,
    "no name": b"--XX\r\nContent-Disposition: form-data\r\n\r\nx\r\n" + END,
    "file without a name": part("file", b"{}") + PURPOSE + END,
    "long field": FILE + part("purpose", b"x" * 5000) + END,
    "field not UTF-8": FILE + part("purpose", b"\xff\xfe") + END,
    "other purpose": FILE + part("purpose", b"assistants") + END,
    "empty purpose": FILE + part("purpose", b"") + END,
    "cut in the file": FILE[:-2],
    "cut before the end": FILE + PURPOSE,
    "cut in the last boundary": FILE + PURPOSE + b"--XX",
    "empty": b"",
    "not multipart": b'{"a": 1}',
    "wrong boundary": (FILE + PURPOSE + END).replace(b"--XX", b"--YY"),
    "base64": b'--XX\r\nContent-Disposition: form-data; name="file"; filename="a"\r\nContent-Transfer-Encoding: base64\r\n\r\ne30=\r\n'
    + PURPOSE + END,
    "header bomb": b"--XX\r\n" + b"".join(b"A%d: b\r\n" % n for n in range(2000)) + b"\r\nx\r\n" + END,
    "long header": b"--XX\r\nContent-Disposition: form-data; name=" + b"a" * 60_000 + b"\r\n\r\nx\r\n" + END,
    "expiry without an anchor": FILE + PURPOSE + part("expires_after[seconds]", b"3600") + END,
    "expiry without seconds": FILE + PURPOSE + part("expires_after[anchor]", b"created_at") + END,
    **{
        f"expires after {value!r} seconds": FILE + PURPOSE + part("expires_after[anchor]", b"created_at")
        + part("expires_after[seconds]", value) + END
        for value in (b"3599", b"2592001", b"-3600", b"3600.0", b"", b"\xd9\xa3600", b"9" * 1000)
    },
    "expiry from another anchor": FILE + PURPOSE + part("expires_after[anchor]", b"last_active_at")
    + part("expires_after[seconds]", b"3600") + END,
}  # fmt: skip


@pytest.mark.parametrize("body", BROKEN.values(), ids=BROKEN.keys())
def test_broken_uploads(server: Served, body: bytes) -> None:
    refused(multipart(server, body))
    assert upload(server).status_code == 200


def test_content_types(server: Served) -> None:
    refused(multipart(server, b"{}", "application/json"), 415)
    refused(multipart(server, b"{}", "multipart/mixed; boundary=XX"), 415)
    refused(multipart(server, FILE + PURPOSE + END, "multipart/form-data"))
    refused(multipart(server, FILE + PURPOSE + END, "multipart/form-data; boundary=" + "X" * 200))


def test_without_a_key_nothing_is_read(server: Served) -> None:
    refused(httpx.post(server.url + FILES, files={"file": ("a", b"x" * LIMIT)}, data={"purpose": "fine-tune"}), 401)


NAMES = {
    "train.jsonl": "train.jsonl",
    "../../etc/passwd": "passwd",
    "C:\\data\\rows.jsonl": "rows.jsonl",
    "a\u202egnp.jsonl": "agnp.jsonl",
    "a\x00b\r\nc.jsonl": "abc.jsonl",
    "zähne 漢字.jsonl": "zähne 漢字.jsonl",
    "..": "file",
    "": "file",
    "\u2028": "file",
    "x" * 400: "x" * 255,
}


@pytest.mark.parametrize(("name", "clean"), NAMES.items())
def test_file_names_are_data(name: str, clean: str) -> None:
    assert clean_filename(name) == clean


def test_a_hostile_name_is_kept_as_data_under_an_opaque_id(server: Served) -> None:
    file = upload(server, name="../../\u202eevil\u2066.jsonl").json()
    assert (file["filename"], file["id"][:5]) == ("evil.jsonl", "file-")
    content = server.http.get(f"{FILES}/{file['id']}/content")
    assert "evil.jsonl" in content.headers["content-disposition"]


def test_full_disk(server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: object, pieces: list[bytes]) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(parser, "_write", full)
        response = upload(server)
    assert refused(response, 507)["code"] == "storage_full"
    assert response.headers["x-should-retry"] == "false"
    assert upload(server).status_code == 200


def test_full_disk_for_real(tmp_path: Path) -> None:
    """/dev/full refuses every byte: the buffered last bytes must not hide the error or pass as written."""
    with served(tmp_path) as running:
        real = spool.tempfile.mkstemp

        def on_full(prefix: str, dir: Path) -> tuple[int, str]:
            descriptor, name = real(prefix=prefix, dir=dir)
            os.close(descriptor)
            return os.open("/dev/full", os.O_WRONLY), name

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(spool.tempfile, "mkstemp", on_full)
            refused(upload(running, b"x" * 100), 507)
            refused(upload(running, b"x" * 5_000_000), 507)
        assert not list(running.settings.spool_dir.glob("*"))


def test_a_client_that_goes_away_leaves_nothing(server: Served) -> None:
    """The fixture looks that the spool is empty."""
    import socket

    key = server.http.headers["authorization"]
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        head = f"POST {FILES} HTTP/1.1\r\nHost: x\r\nAuthorization: {key}\r\nContent-Type: multipart/form-data; boundary=XX\r\n"
        connection.sendall(head.encode() + b"Content-Length: 100000\r\n\r\n" + FILE)
        deadline = time.monotonic() + 5
        while not list(server.settings.spool_dir.glob("*")) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert list(server.settings.spool_dir.glob("*"))


def test_sweep_takes_only_what_nobody_holds(tmp_path: Path) -> None:
    dead, alive = tmp_path / "upload-dead", tmp_path / "upload-alive"
    dead.write_bytes(b"x")
    with alive.open("wb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert sweep(tmp_path) == 1
        assert (dead.exists(), alive.exists()) == (False, True)
    assert sweep(tmp_path / "absent") == 0
