"""Bad input, as one table: what a client may send wrongly, and the status that it is told over REST and gRPC. Never a 5xx, never INTERNAL.

ROWS holds every row of the table, bad_requests.py what is sent; a test asserts that each row has its cases. Cases are many
where they are nobody else's, few where they are told at length elsewhere: bodies and paths in unit/test_rest_bad_input.py,
files in unit/test_datasets.py and unit/test_formats.py, addresses and redirects in unit/test_outbound.py, model files in
unit/test_model_files.py, templates and endless sources in unit/test_data_process.py and unit/test_python_grader.py, parts of
uploads in integration/test_uploads.py.
"""

from __future__ import annotations

import gzip
import json
import re
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pytest

from protos.tunesmith.v1 import jobs_pb2, types_pb2
from tests.contract.bad_requests import (
    CASES,
    FILES,
    GOOD,
    JOBS,
    MAX_BODY,
    MAX_PART,
    MAX_UPLOAD,
    STATUS_OF,
    TWELVE,
    Case,
    Seen,
    World,
    keyed,
    send,
    upload,
)
from tests.fake_run import until
from tests.gateway import MODEL, running_gateway
from tests.rpc_client import connected, refused
from tests.tiny_chat import chat_row

ROWS = (
    "key missing, malformed or revoked",
    "scope missing",
    "another project's id",
    "id of a form that no id has",
    "body too large, declared or chunked",
    "wrong content type",
    "bad UTF-8, UTF-16",
    "duplicate JSON keys",
    "NaN, Infinity, 1e400",
    "lone surrogate, NUL, control characters",
    "nesting above 32",
    "integer of 5,000 digits",
    "value of another type",
    "unknown field",
    "hyperparameter out of range",
    "contradictory settings",
    "base model not in the catalogue",
    "remote code, pickled weights, path or URL as model",
    "target modules that match nothing, or a catastrophic pattern",
    "launcher keys, paths, environment or command",
    "dataset: empty",
    "dataset: bad JSON on line N",
    "dataset: mixed row shapes",
    "dataset: bad role",
    "dataset: missing content",
    "dataset: no assistant turn",
    "dataset: zero trainable tokens",
    "dataset: too few examples",
    "dataset: one huge line",
    "dataset: very many lines",
    "dataset: compression bomb",
    "dataset: binary renamed .jsonl",
    "dataset: control tokens in user text",
    "traversal or bidi file name",
    "broken or 10,000-part multipart",
    "upload part gap or checksum mismatch",
    "Idempotency-Key too long, of another body, or in flight",
    "deleted or foreign file",
    "cancel of a finished job",
    "tampered cursor",
    "webhook to an address that is not public",
    "template escape or endless template",
    "header bomb",
    "CRLF in fields",
    "gRPC oversize, bad enum, deadline 0",
    "quota or rate exceeded",
)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    limits = {"max_body_bytes": MAX_BODY, "max_upload_bytes": MAX_UPLOAD, "max_part_bytes": MAX_PART}
    with ExitStack() as stack:
        gateway = stack.enter_context(running_gateway(tmp_path_factory.mktemp("bad"), **limits))
        admin = stack.enter_context(gateway.http())

        def seen(key: str) -> Seen:
            return Seen(stack.enter_context(gateway.http(key)), stack.enter_context(connected(gateway.rpc_address, key)))

        def made(path: str, **body: Any) -> dict[str, Any]:
            answer = admin.post(f"/v1/organization/projects{path}", json=body)
            assert answer.status_code == 200, answer.text
            return answer.json()

        def new_key(*scopes: str, **quotas: int) -> dict[str, Any]:
            project = made("", name="p", tunesmith={"quotas": quotas})["id"]
            return made(f"/{project}/api_keys", name="k", scopes=scopes or ["read", "write"]) | {"project": project}

        def key(*scopes: str, **quotas: int) -> str:
            return new_key(*scopes, **quotas)["value"]

        gone = new_key()
        assert admin.delete(f"/v1/organization/projects/{gone['project']}/api_keys/{gone['id']}").status_code == 200
        own, hurried = seen(key(running_jobs=0)), seen(key(requests_per_minute=1))
        file, deleted = (upload(own.http, TWELVE).json()["id"] for _ in range(2))
        own.http.delete(f"{FILES}/{deleted}")
        job = own.http.post(JOBS, json={"model": MODEL, "training_file": file}).json()["id"]
        own.http.post(f"{JOBS}/{job}/cancel")
        hurried.http.get("/v1/models")
        full = seen(key(stored_bytes=len(TWELVE), queued_jobs=0))
        full_file = upload(full.http, TWELVE).json()["id"]
        yield World(
            gateway, own, seen(key()), seen(key("read")), seen(gone["value"]), full, full_file, hurried, file, deleted, job,
        )  # fmt: skip


def cases(transport: str) -> list[Any]:
    """Those that have a meaning over it."""
    return [pytest.param(c, id=f"{c.row}: {c.name}") for c in CASES if getattr(c, transport) is not None]


@pytest.mark.parametrize("bad", cases("rest"))
def test_over_rest(world: World, bad: Case) -> None:
    assert bad.rest is not None
    answer = bad.rest(world)
    assert answer.status_code == bad.status, answer.text[:500]
    assert answer.headers["x-request-id"]
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert bad.words in error["message"] + (error["param"] or "")
    assert 0 < len(error["message"]) < 1000
    assert ("retry-after" in answer.headers) == (bad.status == 429)
    assert ("www-authenticate" in answer.headers) == (bad.status == 401)


@pytest.mark.parametrize("bad", cases("rpc"))
def test_over_grpc(world: World, bad: Case) -> None:
    assert bad.rpc is not None
    with refused(bad.code or STATUS_OF[bad.status]) as found:
        bad.rpc(world)
    assert bad.words in found[0].message + (found[0].field or "")
    assert (found[0].retry is not None) == (bad.status == 429)


@dataclass(frozen=True)
class Data:
    """A file that no job can be made from, and what its report must name."""

    row: str
    content: bytes
    rule: str
    line: int | None
    path: str = ""
    code: str = "invalid_training_file"


def at_line_5(bad: bytes | dict[str, Any]) -> bytes:
    """Among good rows."""
    line = bad if isinstance(bad, bytes) else json.dumps(bad).encode()
    return GOOD * 4 + line + b"\n" + GOOD * 8


def turns(*messages: dict[str, Any]) -> dict[str, Any]:
    return {"messages": list(messages)}


USER, ASSISTANT = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
DATA = [
    Data("dataset: empty", b"\n\n", "empty_file", None),
    Data("dataset: bad JSON on line N", at_line_5(b'{"messages": ['), "bad_json", 5),
    Data("dataset: mixed row shapes", at_line_5({"prompt": "a", "completion": "b"}), "mixed_row_shapes", 5),
    Data("dataset: bad role", at_line_5(turns(USER | {"role": "usr"}, ASSISTANT)), "bad_role", 5, "messages[0].role"),
    Data("dataset: missing content", at_line_5(turns({"role": "user"}, ASSISTANT)), "missing_content", 5, "messages[0].content"),
    Data("dataset: no assistant turn", at_line_5(turns(USER)), "no_assistant_turn", 5, "messages"),
    Data("dataset: zero trainable tokens", at_line_5(chat_row(weight=0)), "no_trained_tokens", 5, "messages"),
    Data("dataset: too few examples", GOOD * 9, "too_few_examples", None, code="invalid_n_examples"),
    # A small one for 500 MB: lines end at 8 MiB. unit/test_data_process.py has the large one, in constant memory.
    Data("dataset: one huge line", gzip.compress(at_line_5(b'{"a": "' + b"x" * (9 * 2**20) + b'"}'), 1), "line_too_long", 5),
    # A small one for 10^8: reading ends after 100,000 faulty lines.
    Data("dataset: very many lines", b"{}\n" * 150_000, "missing_field", 1, "messages"),
    Data("dataset: compression bomb", gzip.compress(b"0" * (20 * 2**20), 1), "compression_bomb", None),
    Data("dataset: binary renamed .jsonl", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "binary", 1),
    Data("dataset: control tokens in user text", at_line_5(chat_row("a<|im_end|>")), "control_token", 5, "messages[0].content"),
]


@pytest.fixture(scope="module")
def failed(world: World) -> dict[tuple[str, str], str]:
    """Ids of the jobs made from each file over each transport. All are made at once, so that their checks go side by side."""
    made: dict[tuple[str, str], str] = {}
    for data in DATA:
        first, second = upload(world.http, data.content).json()["id"], send(world.rpc, data.content).file.id
        made[data.row, "rest"] = world.http.post(JOBS, json=world.body(training_file=first)).json()["id"]
        made[data.row, "rpc"] = world.create(training_file=second).job.id
    return made


@pytest.mark.parametrize("transport", ["rest", "rpc"])
@pytest.mark.parametrize("data", DATA, ids=[data.row for data in DATA])
def test_a_job_from_bad_data_fails_with_its_report_before_any_run(
    world: World, failed: dict[tuple[str, str], str], data: Data, transport: str
) -> None:
    job_id = failed[data.row, transport]
    job = until(f"{job_id} failed", lambda: ended(world, job_id))
    assert (job["status"], job["error"]["code"], job["error"]["param"]) == ("failed", data.code, "training_file")
    error = job["tunesmith"]["error"]
    report = error["details"]["report"]
    assert error["cause"] == "data"
    told = next(fault for fault in report["faults"] if fault["rule"] == data.rule)
    assert (told["line"], told["path"]) == (data.line, data.path)
    assert report["fault_count"] >= len(report["faults"]) == min(50, report["fault_count"])
    assert report["complete"] == (data.rule not in ("compression_bomb", "binary", "missing_field"))
    assert job["tunesmith"]["epoch"] == 0
    assert job_id not in {spec.job_id for spec in world.gateway.runtime.launched}
    message = world.rpc.jobs.GetJob(jobs_pb2.GetJobRequest(job_id=job_id)).job
    assert (message.status, message.error.code, message.error.message) == (
        types_pb2.JOB_STATUS_FAILED, data.code, job["error"]["message"],
    )  # fmt: skip
    assert data.rule in [fault["rule"] for fault in message.error.details["report"]["faults"]]


def ended(world: World, job_id: str) -> dict[str, Any] | None:
    job = world.http.get(f"{JOBS}/{job_id}").json()
    return job if job["finished_at"] else None


def test_a_right_file_may_be_longer_than_a_part(world: World) -> None:
    """Otherwise no small limit would prove anything: over gRPC the server cuts parts by itself."""
    data = GOOD * 30
    assert len(data) > MAX_PART
    assert send(world.rpc, data).file.bytes == len(data)


NAMES = {"../../etc/passwd": "passwd", "a\u202egnp.jsonl": "agnp.jsonl", "C:\\x\\..": "file", "..": "file", "a\x1b[31m.jsonl": None}


@pytest.mark.parametrize("name", NAMES)
def test_a_file_name_is_data(world: World, name: str) -> None:
    """Kept for people under an opaque id, which alone decides where the bytes lie."""
    new = {"filename": name, "purpose": "fine-tune", "bytes": 3, "mime_type": "text/plain"}
    made = [(file.id, file.filename) for file in (send(world.rpc, b"abc", name).file,)]
    if NAMES[name] is not None:
        begun = world.http.post("/v1/uploads", json=new).json()
        assert begun["filename"] == NAMES[name]
        answer = upload(world.http, b"abc", name).json()
        made.append((answer["id"], answer["filename"]))
    for file_id, kept in made:
        assert re.fullmatch("file-[0-9a-f]{24}", file_id)
        assert kept.isprintable()
        assert not {"/", "\\"} & set(kept)
        assert kept == NAMES[name] or NAMES[name] is None
        assert world.http.get(f"{FILES}/{file_id}/content").content == b"abc"


def test_a_key_in_flight_makes_one_job(world: World) -> None:
    """The second waits for the first and is given its job, so that a client need not ask again as after a 409."""
    headers = {"idempotency-key": "in flight"}

    def post(n: int) -> str:
        if n % 2:
            return keyed(world, "in flight").job.id
        answer = world.http.post(JOBS, json=world.body(), headers=headers)
        assert answer.status_code == 200, answer.text
        return answer.json()["id"]

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(post, range(8)))) == 1


def test_a_webhook_is_judged_again_when_it_is_sent(world: World) -> None:
    """An endpoint whose name led elsewhere when it was registered: its row is written past the check."""
    gateway, project = world.gateway, world.gateway.caller.project_id

    async def insert() -> str:
        async with gateway.parts.store.begin() as tx:
            made = await tx.insert_webhook(project, "n", "https://127.0.0.1:1/hook", ["fine_tuning.job.failed"])
        return made.id

    webhook_id = gateway.do(insert())
    with gateway.http() as http:
        refused = http.post(f"/v1/webhook_endpoints/{webhook_id}/test")
        [delivery] = http.get(f"/v1/webhook_endpoints/{webhook_id}/deliveries").json()["data"]
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "webhook_unreachable")
    assert "loopback" in refused.json()["error"]["message"]
    assert (delivery["attempts"], delivery["response_status"]) == (1, None)


COVERED_BY_A_TEST = {
    "traversal or bidi file name": test_a_file_name_is_data,
    "Idempotency-Key too long, of another body, or in flight": test_a_key_in_flight_makes_one_job,
    "webhook to an address that is not public": test_a_webhook_is_judged_again_when_it_is_sent,
}


def test_no_row_of_the_table_is_without_cases() -> None:
    found = Counter([case.row for case in CASES] + [data.row for data in DATA] + list(COVERED_BY_A_TEST))
    assert set(found) == set(ROWS)
    assert len({(case.row, case.name) for case in CASES}) == len(CASES)


def test_nothing_of_all_that_was_the_services_fault(world: World) -> None:
    """What the gateway has counted of itself; the last test of this file."""
    lines = world.gateway.parts.metrics.exposition().decode().splitlines()
    answers = [line for line in lines if line.startswith(("tunesmith_http_requests_total{", "tunesmith_grpc_requests_total{"))]
    assert len(answers) > 20
    assert not [line for line in answers if re.search(r'status="5|code="(INTERNAL|UNKNOWN|UNAVAILABLE)"', line)]
