"""Errors that no client caused, the table of errors, request ids, health, and what OpenAPI says."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
import structlog

from service.errors import ErrorCode, TunesmithError
from service.jobs import JobStatus
from service.rest.convert import STATUS
from service.rest.errors import TABLE, error_response
from service.rest.multipart import FILE, PART, Form
from tests.fakes import API_KEY
from tests.rest_server import Served, served


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(tmp_path_factory.mktemp("data")) as running:
        yield running


def test_the_table_has_every_code() -> None:
    assert set(TABLE) == set(ErrorCode)
    assert all(reply.type == ("server_error" if reply.status >= 500 else reply.type) for reply in TABLE.values())


def test_every_phase_has_a_status() -> None:
    assert set(STATUS) == set(JobStatus)


@pytest.mark.parametrize("code", ErrorCode)
def test_every_code_over_http(server: Served, code: ErrorCode) -> None:
    server.app.failure = TunesmithError(code, "why", param="a.b", wire_code="exact")
    response = server.http.get("/v1/fine_tuning/jobs/ftjob-1")
    assert response.status_code == TABLE[code].status
    assert response.json()["error"] == {"message": "why", "type": TABLE[code].type, "param": "a.b", "code": "exact"}
    if response.status_code in (429, 503):
        assert int(response.headers["retry-after"]) >= 1
    if response.status_code == 409:  # the official client would repeat it
        assert response.headers["x-should-retry"] == "false"


def test_retry_after_is_rounded_up() -> None:
    error = TunesmithError(ErrorCode.UNAVAILABLE, "away", retry_after=timedelta(seconds=2.2))
    assert error_response(error).headers["retry-after"] == "3"


def test_any_text_can_be_in_an_error() -> None:
    body = error_response(TunesmithError(ErrorCode.INVALID_REQUEST, "a\ud800\r\n\x00b")).body
    assert json.loads(bytes(body))["error"]["message"] == "a\ud800\r\n\x00b"


def test_the_unexpected_is_a_500_that_tells_nothing(server: Served) -> None:
    server.app.failure = RuntimeError("secret detail")
    with structlog.testing.capture_logs() as logs:
        response = server.http.get("/v1/fine_tuning/jobs/ftjob-1?x=secret-query")
    assert response.status_code == 500
    error = response.json()["error"]
    assert (error["type"], error["code"], error["param"]) == ("server_error", "internal", None)
    assert response.headers["x-request-id"] in error["message"]
    assert "secret" not in response.text
    assert any(line["event"] == "request failed" for line in logs)
    assert API_KEY not in repr(logs)
    assert "secret-query" not in repr(logs)
    assert server.http.get("/healthz").status_code == 200


def test_logs_cannot_be_broken_by_a_path(server: Served) -> None:
    with structlog.testing.capture_logs() as logs:
        server.http.get("/v1/models/a%0d%0aFAKE%20LINE")
        server.http.get("/nowhere")  # the line of a request is written after its answer: on one connection this one comes after it
    assert "/v1/models/a%0d%0aFAKE%20LINE" in [line["path"] for line in logs if line["event"] == "request"]


def test_request_ids(server: Served) -> None:
    made = {server.http.get("/healthz").headers["x-request-id"] for _ in range(5)}
    assert len(made) == 5
    assert server.http.get("/healthz", headers={"x-request-id": "mine-1"}).headers["x-request-id"] == "mine-1"
    for bad in ("a b", "x" * 200, "é"):
        assert server.http.get("/healthz", headers=[(b"x-request-id", bad.encode())]).headers["x-request-id"].startswith("req_")
    assert server.http.get("/nowhere").headers["x-request-id"]
    assert server.http.get("/healthz").headers["openai-processing-ms"].isdigit()


def test_health_and_readiness(server: Served) -> None:
    assert server.http.get("/healthz").json() == {"status": "ok"}
    assert server.http.get("/readyz").json()["parts"]["store"] == "ok"
    server.app.parts = {"store": "ok", "runtime": "RuntimeUnavailable"}
    try:
        response = server.http.get("/readyz")
    finally:
        server.app.parts = {"store": "ok"}
    assert response.status_code == 503
    assert response.json()["parts"] == {"store": "ok", "runtime": "RuntimeUnavailable"}
    assert "runtime" in response.json()["error"]["message"]


def _without_description(schema: Any, path: str) -> list[str]:
    return [f"{path}.{name}" for name, model in schema.items() if "description" not in model]


def test_openapi_documents_every_model_and_error(server: Served) -> None:
    document = server.http.get("/openapi.json").json()
    schemas = document["components"]["schemas"]
    assert not _without_description(schemas, "schemas")
    assert "HTTPValidationError" not in schemas
    assert {"CreateFineTuningJobRequest", "TunesmithSpec", "FineTuningJob", "ErrorResponse"} <= set(schemas)
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            assert {"4XX", "5XX"} <= set(operation["responses"]), path
            assert operation["description"], path
            assert any(status.startswith("2") for status in operation["responses"]), (method, path)
    for reference in set(_references(document)):
        assert reference.rpartition("/")[2] in schemas


def _references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        for key, value in node.items():
            if key == "$ref":
                yield value
            else:
                yield from _references(value)
    elif isinstance(node, list):
        for item in node:
            yield from _references(item)


def test_openapi_knows_the_defaults_and_bounds_of_the_job(server: Served) -> None:
    schemas = server.http.get("/openapi.json").json()["components"]["schemas"]
    rank = schemas["AdapterSpec"]["properties"]["r"]
    assert (rank["default"], rank["minimum"], rank["maximum"]) == (16, 1, 512)
    assert schemas["CreateFineTuningJobRequest"]["required"] == ["model", "training_file"]
    assert "required" not in schemas["AdapterSpec"]


def test_docs_page_needs_no_other_server(server: Served) -> None:
    page = server.http.get("/docs")
    assert page.status_code == 200
    assert "/v1/fine_tuning/jobs" in page.text
    assert "CreateFineTuningJobRequest" in page.text
    links = re.findall(r"(?:src|href|action)=[\"']?([^\s>\"']+)", page.text)
    assert links
    assert [link for link in links if not re.match("#|/[^/]", link)] == []
    assert not re.search("<script|<link|@import|url\\(", page.text)


@pytest.mark.parametrize(("path", "form"), [("/v1/files", FILE), ("/v1/uploads/{upload_id}/parts", PART)])
def test_forms_are_described_by_the_fields_that_are_read(server: Served, path: str, form: Form) -> None:
    document, page = server.http.get("/openapi.json").json(), server.http.get("/docs").text
    schema = document["paths"][path]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert list(schema["properties"]) == [form.file, *form.fields, *form.optional]
    assert schema["required"] == [form.file, *form.fields]
    section = page.partition(f"<code>POST {path}</code>")[2].partition("<h3>")[0]
    assert "Body: multipart/form-data" in section
    assert [name for name in schema["properties"] if f"<code>{name}</code>" not in section] == []
    assert "Body: object" not in page


def test_metrics_by_route(server: Served) -> None:
    server.http.get("/v1/fine_tuning/jobs/ftjob-1")
    server.http.get("/some/path/of/nobody")
    text = server.http.get("/metrics").text
    assert 'tunesmith_http_requests_total{method="GET",route="/v1/fine_tuning/jobs/{fine_tuning_job_id}",status="404"}' in text
    assert 'route="unmatched",status="404"' in text
    assert "nobody" not in text
    assert "ftjob-1" not in text


def test_metrics_may_be_public(tmp_path_factory: pytest.TempPathFactory) -> None:
    with served(tmp_path_factory.mktemp("data"), metrics_public=True) as public:
        assert public.http.get("/metrics", headers={"authorization": ""}).status_code == 200
