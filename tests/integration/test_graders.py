"""Graders through a real gateway: the official client in strict mode, a local endpoint for models, hostile input on both routes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.chat_endpoint import KEY, ChatEndpoint, chat, chat_endpoint, result
from tests.gateway import Gateway, running_gateway

ROOT = Path(__file__).resolve().parents[2]
ROUTES = ("/v1/fine_tuning/alpha/graders/validate", "/v1/fine_tuning/alpha/graders/run")
CHECK: dict[str, Any] = {
    "type": "string_check", "name": "exact", "input": "{{sample.output_text}}", "reference": "{{item.answer}}", "operation": "eq",
}  # fmt: skip
NEAR: dict[str, Any] = {
    "type": "text_similarity", "name": "near", "evaluation_metric": "fuzzy_match",
    "input": "{{sample.output_text}}", "reference": "{{item.answer}}",
}  # fmt: skip
PYTHON: dict[str, Any] = {
    "type": "python",
    "name": "code",
    "source": "def grade(sample, item):\n\treturn len(sample['output_text']) / 10",
    "image_tag": "2025-05-08",
}
SCORE: dict[str, Any] = {
    "type": "score_model",
    "name": "judge",
    "model": "judge",
    "input": [{"role": "user", "content": "Rate {{sample.output_text}} against {{item.answer}}.\nFrom 0 to 5."}],
    "range": [0, 5],
}
LABEL: dict[str, Any] = {
    "type": "label_model", "name": "label", "model": "judge", "input": [{"role": "user", "content": "Good?"}],
    "labels": ["good", "bad"], "passing_labels": ["good"],
}  # fmt: skip
ERRORS = {
    "formula_parse_error", "sample_parse_error", "truncated_observation_error", "unresponsive_reward_error",
    "invalid_variable_error", "other_error",
    "python_grader_server_error", "python_grader_server_error_type", "python_grader_runtime_error", "python_grader_runtime_error_details",
    "model_grader_server_error", "model_grader_refusal_error", "model_grader_parse_error", "model_grader_server_error_details",
}  # fmt: skip


def multi(formula: str, **graders: Any) -> dict[str, Any]:
    return {"type": "multi", "name": "all", "graders": graders, "calculate_output": formula}


@pytest.fixture(scope="module")
def endpoint() -> Iterator[ChatEndpoint]:
    with chat_endpoint() as running:
        yield running


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory, endpoint: ChatEndpoint) -> Iterator[Gateway]:
    """Everything is on."""
    settings = {"grader_base_url": endpoint.url, "grader_api_key": KEY, "grader_models": "judge, other", "grader_embedding_model": "embed"}
    with running_gateway(
        tmp_path_factory.mktemp("gateway"), model=False, grader_timeout=timedelta(seconds=3), grader_memory_bytes=256 * 2**20, **settings
    ) as running:
        yield running


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """Nothing is configured, and one grader runs at a time."""
    with running_gateway(tmp_path_factory.mktemp("bare"), model=False, grader_concurrency=1) as running:
        yield running


@pytest.fixture
def http(gateway: Gateway) -> Iterator[httpx.Client]:
    with gateway.http() as client:
        yield client


def run(client: httpx.Client, grader: dict[str, Any], sample: str = "Paris", answer: Any = "Paris", status: int = 200) -> dict[str, Any]:
    response = client.post(ROUTES[1], json={"grader": grader, "model_sample": sample, "item": {"answer": answer}})
    assert response.status_code == status, response.text
    return response.json()


def wrong(answer: dict[str, Any]) -> dict[str, Any]:
    """What the answer says went wrong; a reward goes with nothing of it."""
    told = answer["metadata"]["errors"]
    assert set(told) == ERRORS
    if any(told.values()):
        assert answer["reward"] == 0
    return {name: value for name, value in told.items() if value}


def refused(client: httpx.Client, grader: Any, route: str) -> dict[str, Any]:
    response = client.post(route, json={"grader": grader, "model_sample": "x", "item": {}} if route == ROUTES[1] else {"grader": grader})
    assert response.status_code == 400, response.text
    return response.json()["error"]


# --- the official client; each kind of grader through it, in both forms: tests/contract/test_official_client.py ---


def test_the_official_client_validates_labels(gateway: Gateway) -> None:
    grader = {**multi("label"), "graders": LABEL}
    answer = gateway.client().fine_tuning.alpha.graders.validate(grader=grader)  # type: ignore[arg-type]
    assert answer.grader is not None
    assert answer.grader.to_dict() == grader, "the grader comes back as it went"


def test_the_official_client_runs_without_an_item(gateway: Gateway) -> None:
    graders = gateway.client().fine_tuning.alpha.graders
    assert graders.run(grader=CHECK | {"reference": "Paris"}, model_sample="Paris").reward == 1  # type: ignore[arg-type]
    graded = graders.run(grader=multi("exact + near", exact=CHECK, near=NEAR), model_sample="Paris", item={"answer": "Paris"})  # type: ignore[arg-type]
    assert (graded.metadata.name, graded.sub_rewards) == ("all", {"exact": 1, "near": 1})
    assert graded.metadata.execution_time > 0


def test_named_graders_come_back_named(gateway: Gateway, http: httpx.Client) -> None:
    """OpenAI's guide names them, its client's types do not know that; so strict mode is off."""
    grader = multi("(name + 1) / 2", name=NEAR | {"pass_threshold": 0.9})
    answer = gateway.client(strict=False).fine_tuning.alpha.graders.validate(grader=grader)  # type: ignore[arg-type]
    assert answer.grader is not None
    assert http.post(ROUTES[0], json={"grader": grader}).json() == {"grader": grader}


def test_the_names_that_openais_guide_leaves_out(http: httpx.Client) -> None:
    graded = run(http, {"type": "python", "source": "def grade(sample, item):\n    return 1.0"})
    assert (graded["metadata"]["name"], graded["reward"]) == ("python", 1)


# --- what goes wrong with a sample ---


def test_errors_of_references_samples_and_formulas(http: httpx.Client) -> None:
    assert wrong(run(http, CHECK | {"reference": "{{item.nothing}}"})) == {"invalid_variable_error": True}
    assert wrong(run(http, CHECK | {"input": "{{sample.output_json.a}}"}, "{")) == {"sample_parse_error": True}
    assert wrong(run(http, multi("exact +", exact=CHECK))) == {"formula_parse_error": True}
    assert wrong(run(http, multi("1 / (exact - 1)", exact=CHECK))) == {"other_error": True}
    assert wrong(run(http, NEAR, "x" * 70_000)) == {"truncated_observation_error": True}
    assert wrong(run(http, CHECK | {"input": "{{sample.output_text}}" * 10_000}, "x" * 1000)) == {"truncated_observation_error": True}


def test_errors_of_sources(http: httpx.Client) -> None:
    failed = wrong(run(http, PYTHON | {"source": "def grade(sample, item):\n    return item['answer'] / 0"}, answer=1))
    assert failed == {
        "python_grader_runtime_error": True,
        "python_grader_runtime_error_details": "ZeroDivisionError: division by zero (line 2)",
    }
    endless = wrong(run(http, PYTHON | {"source": "while True: pass\ndef grade(a, b): pass"}))
    assert endless["unresponsive_reward_error"]
    assert endless["python_grader_runtime_error_details"].startswith("took longer than")


def test_half_characters_come_back_as_question_marks(http: httpx.Client, endpoint: ChatEndpoint) -> None:
    """They can be written as an escape, by a source and in JSON, and nothing may stumble over them."""
    told = wrong(run(http, PYTHON | {"source": "def grade(sample, item):\n    raise Exception('\\ud800')"}))
    assert told["python_grader_runtime_error_details"] == "Exception: ? (line 2)"
    error = refused(http, PYTHON | {"source": "grade = '\\ud800' 1"}, ROUTES[0])
    assert error["param"] == "grader.source"
    asked = [{"role": "user", "content": "{{sample.output_json}}"}]
    assert wrong(run(http, SCORE | {"input": asked}, '"\\ud800"')) == {"sample_parse_error": True}
    endpoint.says(400, b'{"error": {"message": "\\ud800"}}')
    assert wrong(run(http, SCORE))["model_grader_server_error_details"] == "the endpoint answered 400: ?"
    endpoint.says(200, result(1)[1].replace(b"judge-2026", b"\\ud800"))
    assert run(http, SCORE)["metadata"]["sampled_model_name"] == "?"


def test_a_source_finds_no_secret_of_the_gateway(http: httpx.Client, gateway: Gateway) -> None:
    key = gateway.settings.data_dir / "api-key"
    assert key.read_text()
    told = wrong(run(http, PYTHON | {"source": f"def grade(sample, item):\n    return float(open({str(key)!r}).read())"}))
    assert "No such file or directory" in told["python_grader_runtime_error_details"]


# --- models ---


def test_a_model_is_asked_as_openai_asks(http: httpx.Client, endpoint: ChatEndpoint) -> None:
    endpoint.says(*result(3.5))
    endpoint.asked.clear()
    sampling = {"max_completions_tokens": 99, "temperature": 0, "top_p": 1, "seed": 7, "reasoning_effort": "low"}
    parts = [
        {
            "role": "user",
            "content": ["a", {"type": "input_text", "text": "{{item.answer}}"}, {"type": "input_image", "image_url": "http://x/y.png"}],
        }
    ]
    graded = run(http, SCORE | {"sampling_params": sampling, "input": SCORE["input"] + parts}, "Lyon")
    assert (graded["reward"], graded["metadata"]["sampled_model_name"], graded["metadata"]["token_usage"]) == (3.5, "judge-2026", 30)
    assert graded["model_grader_token_usage_per_model"] == {"judge-2026": 30}
    [(path, body)] = endpoint.asked
    assert path == "/v1/chat/completions"
    assert body["messages"] == [
        {"role": "user", "content": "Rate Lyon against Paris.\nFrom 0 to 5."},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "a"},
                {"type": "text", "text": "Paris"},
                {"type": "image_url", "image_url": {"url": "http://x/y.png"}},
            ],
        },
    ]
    assert body["response_format"]["json_schema"]["schema"]["properties"]["result"] == {"type": "number"}
    asked = {name: body[name] for name in ("model", "max_completion_tokens", "temperature", "top_p", "seed", "reasoning_effort")}
    assert asked == {"model": "judge", "max_completion_tokens": 99, "temperature": 0, "top_p": 1, "seed": 7, "reasoning_effort": "low"}


@pytest.mark.parametrize(
    ("value", "bounds", "reward"), [(3, [0, 5], 3), (7, [0, 5], 5), (-1, [0, 5], 0), (7, None, 1), (-3, [-2.5, -1], -2.5)]
)
def test_scores_are_cut_to_their_range(
    http: httpx.Client, endpoint: ChatEndpoint, value: float, bounds: list[float] | None, reward: float
) -> None:
    endpoint.says(*result(value))
    assert run(http, SCORE | {"range": bounds})["reward"] == reward


@pytest.mark.parametrize(
    "answer",
    [chat("good"), chat('"3"'), chat("true"), chat("NaN"), chat('{"score": 3}'), chat('{"result": "3"}'), chat(None),
     chat("[" * 9999), (200, b"{}"), (200, b'{"choices": []}'), (200, b'{"choices": [3]}'), (200, b'{"choices": {"0": 1}}'),
     (200, b'{"choices": [{"message": {"content": 3}}]}')],
)  # fmt: skip
def test_answers_without_a_score(http: httpx.Client, endpoint: ChatEndpoint, answer: tuple[int, bytes]) -> None:
    endpoint.says(*answer)
    assert wrong(run(http, SCORE)) == {"model_grader_parse_error": True}


def test_a_bare_number_is_a_score(http: httpx.Client, endpoint: ChatEndpoint) -> None:
    endpoint.says(*chat("4.5"))
    assert run(http, SCORE)["reward"] == 4.5


@pytest.mark.parametrize("answer", [chat(None, refusal="I can't"), chat(None, finish_reason="content_filter")])
def test_refusals_cost_tokens_too(http: httpx.Client, endpoint: ChatEndpoint, answer: tuple[int, bytes]) -> None:
    endpoint.says(*answer)
    graded = run(http, SCORE)
    assert wrong(graded) == {"model_grader_refusal_error": True}
    assert graded["metadata"]["token_usage"] == 30


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (500, b"oops", "the endpoint answered 500"),
        (404, b'{"error": {"message": "no such model"}}', "the endpoint answered 404: no such model"),
        (302, b"", "the endpoint answered 302"),
        (401, b'{"error": {"message": "key sk-hush is wrong"}}', "the endpoint answered 401"),
        (200, b"[]", "the endpoint answered no JSON object"),
        (200, b"x" * 5_000_000, "the endpoint answered more than 4,194,304 bytes"),
    ],
)
def test_an_endpoint_that_fails(http: httpx.Client, endpoint: ChatEndpoint, status: int, body: bytes, words: str) -> None:
    endpoint.says(status, body)
    told = wrong(run(http, SCORE))
    assert told == {"model_grader_server_error": True, "model_grader_server_error_details": words}


def test_an_endpoint_that_is_silent(http: httpx.Client, endpoint: ChatEndpoint) -> None:
    endpoint.is_silent(5)
    told = wrong(run(http, SCORE))
    assert told == {
        "unresponsive_reward_error": True,
        "model_grader_server_error": True,
        "model_grader_server_error_details": "no answer within 3 s",
    }


def test_labels_and_scores_together(http: httpx.Client, endpoint: ChatEndpoint) -> None:
    def answer(path: str, body: dict[str, Any]) -> tuple[int, bytes]:
        wanted = body["response_format"]["json_schema"]["schema"]["properties"]["result"]
        return result("good" if "enum" in wanted else 2)

    endpoint.answer = answer
    graded = run(http, multi("label * score", label=LABEL, score=SCORE))
    assert (graded["reward"], graded["sub_rewards"], graded["metadata"]["scores"]) == (
        2,
        {"label": 1, "score": 2},
        {"label": 1, "score": 2},
    )
    assert graded["model_grader_token_usage_per_model"] == {"judge-2026": 60}
    endpoint.says(*result("bad"))
    assert run(http, multi("label", label=LABEL))["reward"] == 0
    endpoint.says(*result("better"))
    assert wrong(run(http, multi("label", label=LABEL))) == {"model_grader_parse_error": True}


def test_cosine_compares_embeddings(http: httpx.Client, endpoint: ChatEndpoint) -> None:
    grader = NEAR | {"evaluation_metric": "cosine"}

    def embeddings(*vectors: Any) -> None:
        endpoint.says(200, json.dumps({"data": [{"embedding": vector} for vector in vectors], "usage": {"total_tokens": 4}}).encode())

    embeddings([3, 4], [4, 3])
    graded = run(http, grader, "Lyon")
    assert graded["reward"] == pytest.approx(24 / 25)
    assert graded["model_grader_token_usage_per_model"] == {"embed": 4}
    assert endpoint.asked[-1] == ("/v1/embeddings", {"model": "embed", "input": ["Lyon", "Paris"], "encoding_format": "float"})
    for vectors in (([0, 0], [1, 1]), ([1], [1, 2]), ([1],), ([1], [1], [1]), ("ab", "cd"), (None, None), ([1e308, 1e308], [1e308, 1e308])):
        embeddings(*vectors)
        assert wrong(run(http, grader)) == {"model_grader_parse_error": True}, vectors


def test_only_listed_models_grade(http: httpx.Client) -> None:
    for route in ROUTES:
        error = refused(http, multi("score", score=SCORE | {"model": "gpt-4o"}), route)
        assert error["param"] == "grader.graders.score.model"
        assert "allows: judge, other" in error["message"]


@pytest.mark.parametrize("route", ROUTES)
def test_what_is_not_configured_is_off_and_says_what_to_do(bare: Gateway, route: str) -> None:
    with bare.http() as client:
        for grader, param, setting in (
            (SCORE, "grader.type", "TUNESMITH_GRADER_BASE_URL"),
            (multi("label", label=LABEL), "grader.graders.label.type", "TUNESMITH_GRADER_BASE_URL"),
            (NEAR | {"evaluation_metric": "cosine"}, "grader.evaluation_metric", "TUNESMITH_GRADER_EMBEDDING_MODEL"),
        ):
            error = refused(client, grader, route)
            assert error["param"] == param
            assert setting in error["message"]


# --- refusals and limits ---

FAULTY: list[tuple[Any, str]] = [
    (None, "grader"),
    ([], "grader"),
    ({}, "grader.type"),
    (CHECK | {"type": "sting_check"}, "grader.type"),
    (LABEL, "grader.type"),
    (CHECK | {"operation": "neq"}, "grader.operation"),
    (CHECK | {"inptu": "x"}, "grader.inptu"),
    (CHECK | {"input": "x" * 262_145}, "grader.input"),
    (CHECK | {"name": "n" * 257}, "grader.name"),
    (NEAR | {"evaluation_metric": "rouge_6"}, "grader.evaluation_metric"),
    (PYTHON | {"source": ""}, "grader.source"),
    (PYTHON | {"source": "#" * 262_145}, "grader.source"),
    (SCORE | {"range": [1, 1]}, "grader.range"),
    (SCORE | {"range": [0, 1, 2]}, "grader.range"),
    (SCORE | {"input": []}, "grader.input"),
    (SCORE | {"input": [{"role": "tool", "content": "x"}]}, "grader.input[0].role"),
    (SCORE | {"input": [{"role": "user", "content": {"type": "video"}}]}, "grader.input[0].content.type"),
    (SCORE | {"sampling_params": {"temperature": 2.5}}, "grader.sampling_params.temperature"),
    (multi("a"), "grader.graders"),
    (multi("a", a=3), "grader.graders.a"),
    (multi("a", a=CHECK | {"operation": 1}), "grader.graders.a.operation"),
    (multi("a", a=multi("b", b=CHECK)), "grader.graders.a.type"),
    ({**multi("a"), "graders": multi("b", b=CHECK)}, "grader.graders.type"),
    (multi("a", a=LABEL | {"passing_labels": ["great"]}), "grader.graders.a.passing_labels"),
    (multi("a" + "+a" * 2048, a=CHECK), "grader.calculate_output"),
    (multi("a", **{f"g{n}": CHECK for n in range(17)}), "grader.graders"),
]


@pytest.mark.parametrize(("grader", "param"), FAULTY, ids=[f"{n}: {param}" for n, (_, param) in enumerate(FAULTY)])
def test_faulty_graders_name_the_field_on_both_routes(http: httpx.Client, grader: Any, param: str) -> None:
    for route in ROUTES:
        error = refused(http, grader, route)
        assert error["param"] == param
        assert len(error["message"]) < 400


@pytest.mark.parametrize(
    ("grader", "param"),
    [
        (CHECK | {"input": "{{ sample.output_text | upper }}"}, "grader.input"),
        (SCORE | {"input": [{"role": "user", "content": ["ok", {"type": "input_text", "text": "{{x}}"}]}]}, "grader.input[0].content"),
        (multi("a + b", a=CHECK), "grader.calculate_output"),
        (multi("(" * 999 + "a" + ")" * 999, a=CHECK), "grader.calculate_output"),
        (multi("a", a=PYTHON | {"source": "def grade(:"}), "grader.graders.a.source"),
        (PYTHON | {"source": "(" * 262_144}, "grader.source"),
        (PYTHON | {"source": "def evaluate(sample, item): return 1"}, "grader.source"),
    ],
)
def test_what_only_validation_reads(http: httpx.Client, grader: dict[str, Any], param: str) -> None:
    assert refused(http, grader, ROUTES[0])["param"] == param
    assert wrong(run(http, grader))


def body(**fields: str) -> bytes:
    """A request with raw JSON texts in it."""
    given = {"grader": json.dumps(CHECK), "model_sample": '"x"', "item": "{}"} | fields
    return ("{" + ",".join(f'"{name}":{text}' for name, text in given.items()) + "}").encode()


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (body(item="[1]"), 400),
        (body(item='"x"'), 400),
        (body(model_sample="null"), 400),
        (body(model_sample="{}"), 400),
        (body(item='{"a":' * 40 + "1" + "}" * 40), 400),
        (body(item='{"a":NaN}'), 400),
        (body(item='{"a":"\\ud800"}'), 400),
        (body(model_sample='"\\u0000"'), 400),
        (body(model_sample='"' + "x" * (2**20 + 1) + '"'), 400),
        (body(model_sample='"' + "x" * 10_000_000 + '"'), 413),
        (body(item='{"a":"' + "x" * 10_000_000 + '"}'), 413),
        (body(grader='{"type":"multi","graders":' * 30 + "{}" + "}" * 30), 400),
        (body(reference_answer='"x"'), 400),
        (b'{"grader":' + b"[" * 100_000, 400),
        (b"", 400),
    ],
)
def test_hostile_bodies(http: httpx.Client, content: bytes, status: int) -> None:
    began = time.monotonic()
    for route in ROUTES:
        response = http.post(route, content=content, headers={"content-type": "application/json"})
        assert response.status_code == status, response.text[:300]
        assert set(response.json()["error"]) == {"message", "type", "param", "code"}
    assert time.monotonic() - began < 5


def test_samples_may_have_lines_and_tabs(http: httpx.Client) -> None:
    assert run(http, CHECK, "a\n\tb\r\n", "a\n\tb\r\n")["reward"] == 1


def test_heavy_gradings_do_not_hold_up_the_gateway(http: httpx.Client, gateway: Gateway) -> None:
    words = " ".join("abcdefghij"[n * n % 10] for n in range(32_000))
    heavy = [
        NEAR | {"evaluation_metric": "gleu"},
        NEAR | {"evaluation_metric": "meteor"},
        PYTHON | {"source": "while True: pass\ngrade = 1"},
    ]
    slowest = 0.0
    with ThreadPoolExecutor() as pool, gateway.http() as probe:
        running = [pool.submit(run, http, grader, words, words[::-1]) for grader in heavy]
        while not all(one.done() for one in running):
            began = time.monotonic()
            assert probe.get("/healthz").status_code == 200
            slowest = max(slowest, time.monotonic() - began)
    assert slowest < 1.5
    assert [one.result()["reward"] > 0 for one in running] == [True, True, False]


def test_a_full_gateway_says_when_to_ask_again(bare: Gateway) -> None:
    slow = PYTHON | {"source": "import time\ndef grade(sample, item):\n    time.sleep(2)\n    return 1"}
    with bare.http() as client, ThreadPoolExecutor() as pool:
        running = pool.submit(run, client, slow)
        while not children():
            time.sleep(0.02)
        response = client.post(ROUTES[0], json={"grader": CHECK})
        assert (response.status_code, response.json()["error"]["code"]) == (429, "rate_limit_exceeded")
        assert response.headers["retry-after"] == "2"
        assert running.result()["reward"] == 1
        assert client.post(ROUTES[0], json={"grader": CHECK}).status_code == 200, "the place is free again"


def children() -> list[psutil.Process]:
    return [child for child in psutil.Process().children(recursive=True) if child.name().startswith("python")]


def test_nothing_is_left_behind(http: httpx.Client, gateway: Gateway, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    run(http, PYTHON)
    run(http, PYTHON | {"source": "while True: pass"})
    assert list(tmp_path.iterdir()) == []
    assert children() == []


def test_keys(gateway: Gateway) -> None:
    reader = gateway.http(gateway.other_key(("read",)))
    with reader, httpx.Client(base_url=gateway.url) as nobody:
        for route in ROUTES:
            asked = {"grader": CHECK, "model_sample": "x"} if route == ROUTES[1] else {"grader": CHECK}
            assert reader.post(route, json=asked).status_code == 403
            assert nobody.post(route, json=asked).status_code == 401


def test_openapi_has_the_requests(http: httpx.Client) -> None:
    document = http.get("/openapi.json").json()
    for route, name in zip(ROUTES, ("ValidateGraderRequest", "RunGraderRequest"), strict=True):
        operation = document["paths"][route]["post"]
        assert operation["requestBody"]["content"]["application/json"]["schema"] == {"$ref": f"#/components/schemas/{name}"}
        assert "grader" in document["components"]["schemas"][name]["required"]
    text = json.dumps(document)
    assert [
        ref for ref in set(text.split('"#/components/schemas/')[1:]) if ref.split('"')[0] not in document["components"]["schemas"]
    ] == []
    assert "score_model" in http.get("/docs").text


def test_the_examples_of_the_docs_are_valid(http: httpx.Client) -> None:
    blocks = re.findall(r"```json\n(.*?)```", (ROOT / "docs" / "graders.md").read_text(encoding="utf-8"), re.DOTALL)
    assert {json.loads(block)["type"] for block in blocks} == {"string_check", "text_similarity", "score_model", "python", "multi"}
    for block in blocks:
        response = http.post(ROUTES[0], json={"grader": json.loads(block)})
        assert response.json() == {"grader": json.loads(block)}


def test_every_error_has_its_place_in_the_docs() -> None:
    page = (ROOT / "docs" / "graders.md").read_text(encoding="utf-8")
    assert [name for name in ERRORS if f"`{name.removesuffix('_details').removesuffix('_type')}`" not in page] == []


NO_NAMESPACES = """
import json, sys
from pathlib import Path
from tests.gateway import running_gateway
from service.logs import log_to

log_to(None, "error")  # its lines would mix with the answers
from trainers.graders.syscalls import deny_syscalls
from trainers.self_limits import die_with_parent
die_with_parent()
deny_syscalls(["unshare"])
with running_gateway(Path(sys.argv[1]), model=False) as gateway, gateway.http() as http:
    for route, more in (("validate", {}), ("run", {"model_sample": "x"})):
        answer = http.post(f"/v1/fine_tuning/alpha/graders/{route}", json={"grader": json.loads(sys.argv[2]), **more})
        print(json.dumps([answer.status_code, answer.json()["error"]]))
"""


def test_a_kernel_without_namespaces_turns_python_graders_off(tmp_path: Path) -> None:
    command = [sys.executable, "-c", NO_NAMESPACES, str(tmp_path), json.dumps(PYTHON)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=90, cwd=ROOT)
    answers = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[4")]
    assert len(answers) == 2, done.stderr
    for status, error in answers:
        assert (status, error["param"]) == (400, "grader.type")
        assert error["message"].startswith("python graders are off: this kernel offers no network isolation")
        assert "TUNESMITH_GRADER_ALLOW_UNISOLATED" in error["message"]
