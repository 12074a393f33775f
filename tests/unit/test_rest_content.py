"""Artifacts and file contents: whole, in ranges, conditional, redirected."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator

import httpx
import pytest

from tests.fakes import BASE_MODEL
from tests.rest_server import Served, served

DATA = os.urandom(3_000_000)
SHA = hashlib.sha256(DATA).hexdigest()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(tmp_path_factory.mktemp("data")) as running:
        yield running


@pytest.fixture(scope="module")
def job(server: Served) -> str:
    job_id: str = server.http.post("/v1/fine_tuning/jobs", json={"model": BASE_MODEL, "training_file": "file-1"}).json()["id"]
    server.app.finish(job_id, {"adapter/adapter_model.safetensors": DATA, "RUN.json": b"{}", "empty": b""})
    return job_id


@pytest.fixture
def url(job: str) -> str:
    return f"/v1/fine_tuning/jobs/{job}/artifacts/adapter/adapter_model.safetensors"


def test_list(server: Served, job: str) -> None:
    listed = server.http.get(f"/v1/fine_tuning/jobs/{job}/artifacts").json()
    assert (listed["object"], listed["has_more"]) == ("list", False)
    assert {"name": "adapter/adapter_model.safetensors", "bytes": len(DATA), "sha256": SHA} in listed["data"]


def test_whole(server: Served, url: str) -> None:
    response = server.http.get(url)
    assert response.content == DATA
    assert (response.headers["etag"], response.headers["x-checksum-sha256"]) == (f'"{SHA}"', SHA)
    assert (response.headers["accept-ranges"], response.headers["content-length"]) == ("bytes", str(len(DATA)))
    assert server.http.get(url.replace("adapter/adapter_model.safetensors", "empty")).content == b""


RANGES = {
    "bytes=0-0": (0, 1),
    "bytes=0-": (0, len(DATA)),
    "bytes=1048575-1048577": (1048575, 1048578),
    "bytes=2999999-99999999": (2999999, 3000000),
    "bytes=-5": (2999995, 3000000),
    "bytes=-99999999": (0, 3000000),
}


@pytest.mark.parametrize(("asked", "span"), RANGES.items())
def test_ranges(server: Served, url: str, asked: str, span: tuple[int, int]) -> None:
    response = server.http.get(url, headers={"range": asked})
    assert response.status_code == 206
    assert response.headers["content-range"] == f"bytes {span[0]}-{span[1] - 1}/{len(DATA)}"
    assert response.content == DATA[span[0] : span[1]]


@pytest.mark.parametrize(
    "asked", ["bytes=5-2", "bytes=-", "bytes=a-b", "rows=0-1", "bytes=0-1,4-5", "bytes=" + "9" * 50 + "-", "bytes=\u0661-\u0662"]
)
def test_ranges_that_are_ignored(server: Served, url: str, asked: str) -> None:
    response = server.http.get(url, headers=[(b"range", asked.encode())])
    assert (response.status_code, len(response.content)) == (200, len(DATA))


@pytest.mark.parametrize("asked", ["bytes=3000000-", "bytes=9999999-99999999", "bytes=-0"])
def test_ranges_behind_the_end(server: Served, url: str, asked: str) -> None:
    response = server.http.get(url, headers={"range": asked})
    assert response.status_code == 416
    assert response.headers["content-range"] == f"bytes */{len(DATA)}"
    assert response.json()["error"]["code"]


def test_conditions(server: Served, url: str) -> None:
    assert server.http.get(url, headers={"range": "bytes=0-4", "if-range": f'"{SHA}"'}).status_code == 206
    assert server.http.get(url, headers={"range": "bytes=0-4", "if-range": '"other"'}).status_code == 200
    unchanged = server.http.get(url, headers={"if-none-match": f'"{SHA}"'})
    assert (unchanged.status_code, unchanged.content) == (304, b"")


def test_head(server: Served, url: str) -> None:
    response = server.http.head(url)
    assert (response.status_code, response.content) == (200, b"")
    assert (response.headers["content-length"], response.headers["x-checksum-sha256"]) == (str(len(DATA)), SHA)


def test_redirect_to_the_store(server: Served, url: str) -> None:
    server.app.presigned = "https://store.example/key?signature=x"
    try:
        response = server.http.get(url)
        assert (response.status_code, response.headers["location"]) == (307, server.app.presigned)
        assert response.headers["x-checksum-sha256"] == SHA
        # The address is signed for GET, so HEAD is answered here.
        assert server.http.head(url).status_code == 200
    finally:
        server.app.presigned = None


@pytest.mark.parametrize("name", ["nothing", "adapter", "..%2f..%2fx", "adapter%2f..%2fRUN.json", "%2fetc%2fpasswd", "adapter//x"])
def test_names_that_lead_nowhere(server: Served, job: str, name: str) -> None:
    response = server.http.get(f"/v1/fine_tuning/jobs/{job}/artifacts/{name}")
    assert response.status_code == 404
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}


def test_file_content_has_ranges_too(server: Served) -> None:
    file = server.http.post("/v1/files", files={"file": ("a.jsonl", b"0123456789")}, data={"purpose": "fine-tune"}).json()
    response = server.http.get(f"/v1/files/{file['id']}/content", headers={"range": "bytes=2-4"})
    assert (response.status_code, response.content) == (206, b"234")


def test_a_client_may_leave_in_the_middle(server: Served, url: str) -> None:
    with httpx.stream("GET", server.url + url, headers=server.http.headers) as response:
        assert next(response.iter_raw(10))
    assert server.http.get(url, headers={"range": "bytes=0-0"}).status_code == 206
