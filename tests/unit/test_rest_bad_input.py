"""Whatever a client sends ends in the right 4xx, in OpenAI's error shape, and names what is wrong."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from service.errors import ErrorCode, TunesmithError
from service.rest.bodies import MAX_DEPTH, parse_json, validated
from service.rest.wire import CreateFineTuningJobRequest
from tests.fakes import BASE_MODEL, OTHER_KEY
from tests.rest_server import Served, served

JOBS = "/v1/fine_tuning/jobs"
GOOD: dict[str, Any] = {"model": BASE_MODEL, "training_file": "file-1"}
FOUR_KEYS = {"message", "type", "param", "code"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(tmp_path_factory.mktemp("data"), max_body_bytes=64 * 1024) as running:
        yield running


def post(server: Served, body: bytes | dict[str, Any], **headers: str) -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return server.http.post(JOBS, content=content, headers={"content-type": "application/json", **headers})


def fault(response: httpx.Response, status: int = 400) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert response.headers["x-request-id"]
    body = response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == FOUR_KEYS
    assert body["error"]["message"]
    return body["error"]


def text(**fields: str) -> bytes:
    """A good body with raw JSON texts added."""
    pairs = {key: json.dumps(value) for key, value in GOOD.items()} | fields
    return ("{" + ",".join(f'"{key}":{value}' for key, value in pairs.items()) + "}").encode()


NOT_JSON = {
    "empty": b"",
    "text": b"hello",
    "cut": b'{"model": "x"',
    "trailing": b"{} {}",
    "list": b"[]",
    "null": b"null",
    "bad UTF-8": text(suffix='"\x80"').replace(b"\xc2\x80", b"\x80"),
    "UTF-16": json.dumps(GOOD).encode("utf-16"),
    "BOM": b"\xef\xbb\xbf" + text(),
    "duplicate keys": text().replace(b"{", b'{"model":"a",', 1),
    "duplicate keys below": text(tunesmith='{"priority":1,"priority":2}'),
    "NaN": text(tunesmith='{"training":{"learning_rate":NaN}}'),
    "Infinity": text(tunesmith='{"training":{"learning_rate":-Infinity}}'),
    "1e400": text(tunesmith='{"training":{"learning_rate":1e400}}'),
    "5,000 digits": text(seed="1" * 5000),
    "lone surrogate": text(suffix='"\\ud800"'),
    "lone surrogate in a key": text(metadata='{"\\udfff":"x"}'),
    "NUL": text(training_file='"file-\\u0000"'),
    "control character": text(metadata='{"a":"b\\r\\nc"}'),
    "raw control character": text(metadata='{"a":"b\nc"}'),
    "deep": text(metadata="[" * 33 + "]" * 33),
    "bomb of brackets": b"[" * 60_000,
    "bomb of objects": b'{"a":' * 10_000,
}


@pytest.mark.parametrize("body", NOT_JSON.values(), ids=NOT_JSON.keys())
def test_bodies_that_are_not_plain_json(server: Served, body: bytes) -> None:
    assert fault(post(server, body))["type"] == "invalid_request_error"


ZERO = "tunesmith.resources.deepspeed.zero_optimization"


def deepspeed(settings: dict[str, Any], engine: str = "auto", **resources: int) -> dict[str, Any]:
    return {"tunesmith": {"resources": {"engine": engine, "deepspeed": {"zero_optimization": settings}} | resources}}


INT8 = {"zero_quantized_nontrainable_weights": True}
WHOLE_AS_INT8 = {"tunesmith": {**deepspeed(INT8, gpus_per_worker=1)["tunesmith"], "adapter": {"type": "full"}}}
WRONG: list[tuple[dict[str, Any], str, str]] = [
    ({"model": None}, "model", "a string of 1 to 256 characters"),
    ({"training_file": 3}, "training_file", "a string"),
    ({"suffix": ""}, "suffix", "1 to 64 characters"),
    ({"suffix": "a" * 65}, "suffix", "1 to 64 characters"),
    ({"suffix": "a/b"}, "suffix", "matching"),
    ({"seed": -1}, "seed", "an integer from 0 to 2147483647"),
    ({"seed": 2**31}, "seed", "an integer from 0 to 2147483647"),
    ({"seed": "3"}, "seed", 'not "3"'),
    ({"seed": True}, "seed", "not true"),
    ({"seed": 3.0}, "seed", "not 3.0"),
    ({"metadata": {str(n): "x" for n in range(17)}}, "metadata", "at most 16 entries"),
    ({"metadata": {"k" * 65: "x"}}, "metadata", "keys of 'metadata' must be a string of 1 to 64"),
    ({"metadata": {"k": "x" * 513}}, "metadata.k", "at most 512"),
    ({"metadata": {"k": 1}}, "metadata.k", "a string"),
    ({"metadata": []}, "metadata", "an object"),
    ({"hyperparameters": {"n_epochs": 0}}, "hyperparameters.n_epochs", '"auto" or an integer from 1 to 50'),
    ({"hyperparameters": {"n_epochs": "3"}}, "hyperparameters.n_epochs", '"auto" or an integer'),
    ({"hyperparameters": {"batch_size": 257}}, "hyperparameters.batch_size", "from 1 to 256, not 257"),
    ({"hyperparameters": {"learning_rate_multiplier": 0}}, "hyperparameters.learning_rate_multiplier", "above 0"),
    ({"hyperparameters": {"beta": 1}}, "hyperparameters.beta", "Unknown field"),
    ({"method": {"supervised": {}}}, "method.type", "Missing required field"),
    (
        {"method": {"type": "supervised", "supervised": {"hyperparameters": {"n_epoch": 1}}}},
        "method.supervised.hyperparameters.n_epoch",
        "did you mean 'n_epochs'?",
    ),
    (
        {"hyperparameters": {"n_epochs": 2}, "method": {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 3}}}},
        "hyperparameters.n_epochs",
        "give it once",
    ),
    ({"integrations": [{"type": "mlflow", "wandb": {"project": "p"}}]}, "integrations[0].type", '"wandb"'),
    ({"integrations": [{"type": "wandb", "wandb": {}}]}, "integrations[0].wandb.project", "Missing"),
    ({"integrations": [{"type": "wandb", "wandb": {"project": "a/b"}}]}, "integrations[0].wandb.project", "matching"),
    ({"integrations": [{"type": "wandb", "wandb": {"project": "p", "api_key": "k"}}]}, "integrations[0].wandb.api_key", "Unknown field"),
    ({"integrations": [{"type": "wandb", "wandb": {"project": "p"}}] * 6}, "integrations", "at most 5 items"),
    ({"trainning_file": "x"}, "trainning_file", "did you mean 'training_file'?"),
    ({"zzz": 1}, "zzz", "known are hyperparameters"),
    ({"tunesmith": None}, "tunesmith", "an object"),
    ({"tunesmith": {"adaptor": {}}}, "tunesmith.adaptor", "did you mean 'adapter'?"),
    ({"tunesmith": {"adapter": {"rank": 8}}}, "tunesmith.adapter.rank", "known are alpha"),
    ({"tunesmith": {"adapter": {"r": 0}}}, "tunesmith.adapter.r", "an integer from 1 to 512, not 0"),
    ({"tunesmith": {"adapter": {"r": True}}}, "tunesmith.adapter.r", "not true"),
    ({"tunesmith": {"adapter": {"dropout": "0.1"}}}, "tunesmith.adapter.dropout", "a number"),
    ({"tunesmith": {"adapter": {"dropout": True}}}, "tunesmith.adapter.dropout", "a number"),
    ({"tunesmith": {"adapter": {"type": "lorra"}}}, "tunesmith.adapter.type", '"lora"'),
    ({"tunesmith": {"adapter": {"type": "full", "r": 8}}}, "tunesmith.adapter", "has no r"),
    (deepspeed({"offload_optimizer": {"device": "disk"}}), f"{ZERO}.offload_optimizer.device", '"cpu" or "nvme"'),
    (deepspeed({"offload_optimizer": {"device": "nvme", "nvme_path": "/x"}}), f"{ZERO}.offload_optimizer.nvme_path", "Unknown field"),
    (deepspeed({"offload_optimizer": {"device": "nvme", "pin_memory": True}}), f"{ZERO}.offload_optimizer", "pin_memory beside"),
    (deepspeed({"offload_param": {"device": "nvme"}}, "zero3"), f"{ZERO}.offload_param.device", '"cpu"'),
    (deepspeed({"offload_optimizer": {"device": "cpu", "nvme_path": "/x"}}), f"{ZERO}.offload_optimizer.nvme_path", "Unknown field"),
    (deepspeed({"stage": 3}), f"{ZERO}.stage", "Unknown field"),
    (deepspeed({"reduce_bucket_size": 1.5}), f"{ZERO}.reduce_bucket_size", "an integer"),
    (deepspeed({"sub_group_size": 10**6}, "zero2"), "tunesmith.resources", "a setting of zero3"),
    (deepspeed({"zero_quantized_weights": True}, "zero3"), "tunesmith.resources", "needs GPUs"),
    (deepspeed({"zero_quantized_nontrainable_weights": True}, "zero3"), "tunesmith.resources", "needs GPUs"),
    (deepspeed({"zero_hpz_partition_size": 2}, "zero2"), "tunesmith.resources", "a setting of zero3"),
    (deepspeed({"offload_param": {"device": "cpu"}} | INT8, "zero3"), ZERO, "beside offload_param"),
    (WHOLE_AS_INT8, "tunesmith", "leaves no weight untrained"),
    (deepspeed({}, "torch"), "tunesmith.resources", "which takes none"),
    ({"tunesmith": {"resources": {"deepspeed": {"hostfile": "/x"}}}}, "tunesmith.resources.deepspeed.hostfile", "Unknown field"),
    ({"tunesmith": {"resources": {"deepspeed": {"launcher": "pdsh"}}}}, "tunesmith.resources.deepspeed.launcher", "Unknown field"),
    ({"tunesmith": {"adapter": {"target_modules": ["q_proj", 3]}}}, "tunesmith.adapter.target_modules[1]", "a string"),
    ({"tunesmith": {"adapter": {"target_modules": "q_proj"}}}, "tunesmith.adapter.target_modules", '"all-linear" or a list'),
    ({"tunesmith": {"evaluation": {"early_stopping": {"patienc": 3}}}}, "tunesmith.evaluation.early_stopping.patienc", "'patience'"),
    ({"tunesmith": {"resources": {"env": {"A": "b"}}}}, "tunesmith.resources.env", "Unknown field"),
    ({"tunesmith": {"training": {"learning_rate": 2}}}, "tunesmith.training.learning_rate", "above 0 and at most 1"),
]


@pytest.mark.parametrize(("fields", "param", "words"), WRONG, ids=[f"{param}: {words}" for _, param, words in WRONG])
def test_fields_that_are_refused(server: Served, fields: dict[str, Any], param: str, words: str) -> None:
    error = fault(post(server, GOOD | fields))
    assert error["param"] == param
    assert words in error["message"]


def test_missing_fields(server: Served) -> None:
    assert fault(post(server, {"model": "x"}))["param"] == "training_file"


NULLS = ("validation_file", "suffix", "seed", "metadata", "integrations", "hyperparameters", "method")


def test_what_openai_tolerates(server: Served) -> None:
    body = GOOD | dict.fromkeys(NULLS) | {"integrations": []}
    assert post(server, body).status_code == 200
    blocks = {"type": "supervised", "dpo": {"hyperparameters": {"beta": "auto"}}, "reinforcement": {"grader": {}}}
    answer = post(server, GOOD | {"method": blocks, "hyperparameters": {"n_epochs": 3, "learning_rate_multiplier": 2}})
    assert answer.json()["hyperparameters"] == {"n_epochs": 3, "batch_size": "auto", "learning_rate_multiplier": 2.0}
    assert set(answer.json()["method"]) == {"type", "supervised"}


def test_content_types(server: Served) -> None:
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "application/json; charset=utf-16"):
        fault(post(server, GOOD, **{"content-type": kind}), 415)
    assert post(server, GOOD, **{"content-type": 'Application/JSON; Charset="UTF-8"'}).status_code == 200


def test_bodies_above_the_limit(server: Served) -> None:
    large = text(suffix='"' + "a" * 70_000 + '"')
    assert fault(post(server, large), 413)["code"] == "too_large"

    def chunks() -> Iterator[bytes]:
        for at in range(0, len(large), 1000):
            yield large[at : at + 1000]

    fault(server.http.post(JOBS, content=chunks(), headers={"content-type": "application/json"}), 413)
    fault(server.http.post(f"{JOBS}/ftjob-1/cancel", content=large), 413)


def test_headers_above_the_limit(server: Served) -> None:
    fault(server.http.get("/healthz", headers={"x-big": "a" * 40_000}), 431)
    fault(server.http.get("/healthz", headers={f"x-{n}": "a" for n in range(120)}), 431)


PATHS = (
    "/v1/files/%00", "/v1/files/..%2f..%2fetc", "/v1/files/" + "1" * 5000, "/v1/files/a%20b", "/v1/files/%ff%fe",
    "/v1/models/%00", "/v1/models/" + "m" * 5000, "/v1/models/a%0d%0ab",
    f"{JOBS}/%00", f"{JOBS}/{'1' * 5000}", f"{JOBS}/%00/events", f"{JOBS}/a:b/checkpoints", f"{JOBS}/ftjob-1/artifacts/%00",
    "/v1/nothing", "/v1/files/", "/", "//", "/v1/files/x/y",
)  # fmt: skip


@pytest.mark.parametrize("path", PATHS, ids=[path[:40] for path in PATHS])
def test_paths_that_lead_nowhere(server: Served, path: str) -> None:
    fault(server.http.get(path), 404)


@pytest.mark.parametrize("path", ["/v1/files/../../etc/passwd", f"{JOBS}/../x", f"{JOBS}/ftjob-1/artifacts/../../x", "/v1/models/../x"])
def test_paths_with_steps_upwards_as_sent(server: Served, path: str) -> None:
    """httpx would fold the dots away, so the request is written by hand."""
    key = server.http.headers["authorization"]
    answer = server.raw(f"GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: {key}\r\nConnection: close\r\n\r\n".encode())
    assert b" 404 " in answer.split(b"\r\n")[0]


QUERIES = {
    "limit=0": "limit", "limit=1001": "limit", "limit=x": "limit", "limit=" + "9" * 5000: "limit", "limit=-1": "limit",
    "after=%00": "after", "after=": "after", "after=ftjob-unknown": "after", "after=' OR 1=1": "after",
    "metadata=none": "metadata", "metadata[k]=%00": "metadata", "metadata[" + "k" * 65 + "]=v": "metadata",
    "&".join(f"metadata[{n}]=v" for n in range(17)): "metadata",
}  # fmt: skip


@pytest.mark.parametrize(("query", "param"), QUERIES.items(), ids=[query[:30] for query in QUERIES])
def test_queries_that_are_refused(server: Served, query: str, param: str) -> None:
    assert fault(server.http.get(f"{JOBS}?{query}"))["param"] == param


def test_keys(server: Served) -> None:
    for key in ("", "Bearer", "Basic abc", "Bearer wrong", "Bearer " + "x" * 5000, "wrong"):
        for path in ("/v1/models", "/metrics", JOBS, "/v1/files/x/content"):
            response = server.http.get(path, headers={"authorization": key})
            assert fault(response, 401)["code"] == "invalid_api_key"
            assert response.headers["www-authenticate"] == "Bearer"
    assert server.http.get(
        "/v1/models", headers={"authorization": server.http.headers["authorization"].replace("Bearer", "bearer")}
    ).is_success


def test_every_route_needs_a_key_but_health(server: Served) -> None:
    paths = server.http.get("/openapi.json").json()["paths"]
    for path, operations in paths.items():
        for method in operations:
            response = httpx.request(method, server.url + path.replace("{", "").replace("}", ""))
            expected = 200 if path in ("/healthz", "/readyz") else 401
            assert response.status_code == expected, (method, path)


def test_another_projects_job_is_an_unknown_job(server: Served) -> None:
    job_id = post(server, GOOD).json()["id"]
    for method, path in (("GET", ""), ("POST", "/cancel"), ("GET", "/events"), ("GET", "/checkpoints"), ("GET", "/artifacts")):
        foreign = server.http.request(method, f"{JOBS}/{job_id}{path}", headers={"authorization": f"Bearer {OTHER_KEY}"})
        missing = server.http.request(method, f"{JOBS}/ftjob-missing{path}")
        assert foreign.text.replace(job_id, "ftjob-missing") == missing.text
        fault(foreign, 404)


def test_wrong_method(server: Served) -> None:
    response = server.http.put("/v1/files")
    assert fault(response, 405)["code"] == "method_not_allowed"
    assert response.headers["allow"]


def test_nesting_up_to_the_limit_is_read() -> None:
    assert parse_json(b"[" * MAX_DEPTH + b"]" * MAX_DEPTH)
    assert parse_json(b'{"a": "[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[\\"["}')
    with pytest.raises(TunesmithError):
        parse_json(b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1))


def test_plain_json_is_read_as_it_is() -> None:
    value = {"a": [1, 2.5, -3, True, None, "ü😀"], "b": {"c": ""}}
    assert parse_json(json.dumps(value).encode()) == value
    assert parse_json(json.dumps(value, ensure_ascii=False).encode()) == value


def test_the_refused_value_is_not_echoed_at_length() -> None:
    with pytest.raises(TunesmithError) as refused:
        validated(CreateFineTuningJobRequest, GOOD | {"suffix": "a" * 100_000})
    assert refused.value.code is ErrorCode.INVALID_REQUEST
    assert len(refused.value.message) < 300
