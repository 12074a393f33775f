"""Files that the service fetches, on a whole gateway: a real https server on loopback, a real S3 server, real storage behind."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import boto3
import pytest
import structlog

from service.errors import TunesmithError
from service.imports import _is_host, fetch
from service.outbound import parse_url
from service.settings import Settings
from tests.cli import Cli
from tests.gateway import Gateway, running_gateway
from tests.https_server import HttpsServer, https_server
from tests.seaweed import BUCKET, SeaweedFS

ROWS = b"question,answer\n" + b"".join(b"hello %d,world\n" % i for i in range(12))
MAX_BYTES = 100_000


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HttpsServer]:
    with https_server(tmp_path_factory.mktemp("https")) as running, pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSL_CERT_FILE", str(running.certificate))
        yield running


@pytest.fixture(scope="module")
def gateway(server: HttpsServer, seaweed: SeaweedFS, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    allowed = {
        "import_https_hosts": (f"localhost:{server.port}", "*.example.com", f"169.254.169.254:{server.port}"),
        "import_s3_buckets": (f"{BUCKET}/data", f"{BUCKET}/one.csv"),
        "import_allow_private": True,
        "max_import_bytes": MAX_BYTES,
        "import_timeout": timedelta(seconds=60),
    }
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL"):
            patch.delenv(name, raising=False)
        for name, value in seaweed.environment.items():
            patch.setenv(name, value)
        with running_gateway(tmp_path_factory.mktemp("gateway"), **allowed) as running:
            yield running


def post(gateway: Gateway, key: str | None = None, **body: Any) -> Any:
    with gateway.http(key) as http:
        return http.post("/v1/files/import", json={"purpose": "fine-tune"} | body)


def refused(gateway: Gateway, source: str, **more: Any) -> tuple[int, str, str]:
    """Status, code and message; nothing may be left behind."""
    before = {file.id for file in gateway.client().files.list()}
    answer = post(gateway, source=source, **more)
    error = answer.json()["error"]
    assert error["param"] in ("source", "sha256")
    assert {file.id for file in gateway.client().files.list()} == before
    assert list(gateway.settings.spool_dir.glob("*")) == []
    return answer.status_code, error["code"], error["message"]


def test_an_imported_table_is_trained_on_through_a_mapping(gateway: Gateway, server: HttpsServer) -> None:
    content = gzip.compress(ROWS)
    source = server.serve("/sets/faq.csv.gz?v=1", content, Content_Encoding="gzip")
    answer = post(gateway, source=source, sha256=hashlib.sha256(content).hexdigest().upper())
    assert answer.status_code == 200, answer.text
    file = gateway.client().files.retrieve(answer.json()["id"])
    assert (file.filename, file.bytes, file.purpose) == ("faq.csv.gz", len(content), "fine-tune")
    assert gateway.client().files.content(file.id).read() == content, "as it was sent, not unpacked"
    assert server.asked[-1][1]["accept-encoding"] == "identity"
    assert gateway.key not in str(server.asked)
    mapping = {"prompt": "question", "completion": "answer"}
    jobs = gateway.client().fine_tuning.jobs
    job = jobs.create(model="tiny", training_file=file.id, extra_body={"tunesmith": {"data": {"mapping": mapping}}})
    deadline = time.monotonic() + 60
    while jobs.retrieve(job.id).status == "validating_files" and time.monotonic() < deadline:
        time.sleep(0.05)
    assert any("Files validated" in event.message for event in jobs.list_events(job.id))


def test_a_contradictory_mapping_is_refused_with_its_place(gateway: Gateway) -> None:
    body = {"model": "tiny", "training_file": "file-1", "tunesmith": {"data": {"mapping": {"prompt": "a", "messages": "b"}}}}
    with gateway.http() as http:
        answer = http.post("/v1/fine_tuning/jobs", json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "tunesmith.data.mapping")


def test_a_name_of_ones_own(gateway: Gateway, server: HttpsServer) -> None:
    source = server.serve("/x", ROWS)
    assert post(gateway, source=source, filename="../a\u202eb.csv").json()["filename"] == "ab.csv"
    assert post(gateway, source=source).json()["filename"] == "x"


@pytest.mark.parametrize("source", ["http://localhost/x", "ftp://localhost/x", "file:///etc/passwd", "localhost/x", "HTTPS://x/"])
def test_other_schemes(gateway: Gateway, source: str) -> None:
    assert refused(gateway, source)[0] == 400


@pytest.mark.parametrize(
    "source",
    [
        "https://example.com/x", "https://evil-example.com/x", "https://a.example.com:8443/x", "https://localhost/x",
        "https://a.example.com.evil.test/x", "https://user@a.example.com/x", "https://a.example.com@localhost/x",
        "https://169.254.169.254:PORT/latest/meta-data", "https://2852039166/x", "https://[::ffff:169.254.169.254]:PORT/x",
    ],
)  # fmt: skip
def test_hosts_that_are_not_allowed(gateway: Gateway, server: HttpsServer, source: str) -> None:
    before = len(server.asked)
    status, code, message = refused(gateway, source.replace("PORT", str(server.port)))
    assert (status, code) == (400, "import_not_allowed")
    assert message
    assert len(server.asked) == before


@pytest.mark.parametrize(
    ("allowed", "url", "matches"),
    [
        ("example.com", "https://example.com/", True), ("Example.com", "https://EXAMPLE.com./", True),
        ("example.com", "https://a.example.com/", False), ("*.example.com", "https://a.b.example.com/", True),
        ("*.example.com", "https://example.com/", False), ("example.com:8443", "https://example.com:8443/", True),
        ("example.com", "https://example.com:8443/", False), ("*.example.com:8443", "https://a.example.com:8443/", True),
        ("[2606:4700::1]", "https://[2606:4700::1]/", True), ("[2606:4700::1]:8443", "https://[2606:4700::1]:8443/", True),
        ("*", "https://example.com/", False),
    ],
)  # fmt: skip
def test_the_allow_list(allowed: str, url: str, matches: bool) -> None:
    assert _is_host(parse_url(url), allowed) == matches


def test_redirects_are_told_and_not_followed(gateway: Gateway, server: HttpsServer) -> None:
    source = server.serve("/moved", b"", 302, Location="https://user:pw@elsewhere.test/secret")
    before = len(server.asked)
    status, code, message = refused(gateway, source)
    assert (status, code) == (400, "import_not_allowed")
    assert "'elsewhere.test'" in message
    assert "pw" not in message
    assert len(server.asked) == before + 1


def test_answers_that_are_no_file(gateway: Gateway, server: HttpsServer) -> None:
    assert refused(gateway, server.url("/none"))[:2] == (400, "import_failed")
    assert refused(gateway, server.serve("/part", b"x", 206))[:2] == (400, "import_failed")
    assert refused(gateway, server.serve("/cut", b"x", Content_Length="50"))[:2] == (400, "import_failed")
    wrong = refused(gateway, server.serve("/file", b"x"), sha256="0" * 64)
    assert wrong[:2] == (400, "sha256_mismatch")
    assert hashlib.sha256(b"x").hexdigest() in wrong[2]


def test_too_large_as_declared_and_as_it_comes(gateway: Gateway, server: HttpsServer) -> None:
    assert refused(gateway, server.serve("/large", b"", Content_Length=str(10**15)))[:2] == (413, "too_large")

    def endless(request: Any) -> None:
        request.send_response(200)
        request.end_headers()
        for _ in range(1000):
            request.wfile.write(b"x" * 10_000)

    server.answers["/endless"] = endless
    assert refused(gateway, server.url("/endless"))[:2] == (413, "too_large")


async def test_the_deadline(server: HttpsServer, tmp_path: Path) -> None:
    server.answers["/silent"] = lambda request: time.sleep(4)
    allowed = {"import_https_hosts": f"localhost:{server.port},", "import_allow_private": True, "import_timeout": timedelta(seconds=0.5)}
    began = time.monotonic()
    with (tmp_path / "file").open("wb") as file, pytest.raises(TunesmithError, match=r"within 0\.5 s") as refused:
        await fetch(server.url("/silent"), file, Settings(data_dir=tmp_path, **allowed))
    assert refused.value.wire_code == "import_failed"
    assert time.monotonic() - began < 3.5


def test_from_s3(gateway: Gateway, seaweed: SeaweedFS) -> None:
    client = boto3.client("s3", endpoint_url=seaweed.endpoint, region_name="us-east-1")
    for key, body in {"data/a/faq.csv": ROWS, "database/x": ROWS, "one.csv": ROWS, "data/large": b"x" * (MAX_BYTES + 1)}.items():
        client.put_object(Bucket=BUCKET, Key=key, Body=body)
    answer = post(gateway, source=f"s3://{BUCKET}/data/a/faq.csv", sha256=hashlib.sha256(ROWS).hexdigest())
    assert answer.status_code == 200, answer.text
    assert (answer.json()["filename"], answer.json()["bytes"]) == ("faq.csv", len(ROWS))
    assert post(gateway, source=f"s3://{BUCKET}/one.csv").status_code == 200
    assert refused(gateway, f"s3://{BUCKET}/data/none")[:2] == (400, "import_failed")
    assert refused(gateway, f"s3://{BUCKET}/data/large")[:2] == (413, "too_large")
    for outside in ("database/x", "one.csv2", "data/../database/x", "data//x", ""):
        assert refused(gateway, f"s3://{BUCKET}/{outside}")[0] == 400
    assert refused(gateway, "s3://other/data/x")[1] == "import_not_allowed"


def test_requests_that_are_wrong(gateway: Gateway) -> None:
    source = "https://a.example.com/x"
    for wrong in (
        {},
        {"source": 1},
        {"source": "https://a.example.com/x", "sha256": "abc"},
        {"source": "x", "purpose": "batch"},
        {"sorce": "x"},
    ):
        answer = post(gateway, **wrong)
        assert answer.status_code == 400, answer.text
    with gateway.http() as http:
        assert http.post("/v1/files/import", content=b"source=x").status_code == 415
        schema = http.get("/openapi.json").json()["paths"]["/v1/files/import"]["post"]
    assert "ImportFileRequest" in json.dumps(schema["requestBody"])
    assert post(gateway, key=gateway.other_key(("read",)), source=source).status_code == 403


def test_the_command(gateway: Gateway, server: HttpsServer, tmp_path: Path) -> None:
    (tmp_path / "key").write_text(gateway.key)
    cli = Cli({"TUNESMITH_BASE_URL": f"{gateway.url}/v1", "TUNESMITH_API_KEY_FILE": str(tmp_path / "key")})
    source = server.serve("/cli.csv", ROWS)
    with structlog.testing.capture_logs():  # the gateway logs to the same standard output
        imported = cli.data("files", "import", source, "--sha256", hashlib.sha256(ROWS).hexdigest(), "--name", "mine.csv")
        assert "404" in cli.run("files", "import", server.url("/none"), exit_code=2).stderr
    assert (imported["filename"], imported["bytes"]) == ("mine.csv", len(ROWS))


def test_off_unless_allowed(tmp_path: Path) -> None:
    with running_gateway(tmp_path, model=False) as gateway:
        for source, setting in (("https://localhost/x", "HTTPS_HOSTS"), ("s3://bucket/key", "S3_BUCKETS")):
            status, code, message = refused(gateway, source)
            assert (status, code) == (400, "import_off")
            assert f"TUNESMITH_IMPORT_{setting}" in message


async def test_the_services_own_bucket_is_never_a_source(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, storage_url="s3://bucket/own?checksums=when_required", import_s3_buckets=("bucket",))
    with pytest.raises(TunesmithError, match="own objects"):
        await fetch("s3://bucket/own/files/proj_2/file-1", io.BufferedWriter(io.BytesIO()), settings)  # type: ignore[arg-type]
