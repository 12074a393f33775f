"""Estimates of jobs and checks of files, on a whole gateway: nothing is created, and what was read is read once."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from typing import Any

import httpx
import psutil
import pytest
import sqlalchemy as sa

from service.jobs import Job, JobStatus, Notice, Progress
from service.store import tables
from tests.fake_run import until
from tests.gateway import Gateway, running_gateway
from tests.tiny_chat import chat_row
from trainers.spec import DatasetRef

ROWS = [chat_row(f"hello {i}", f"world {i}") for i in range(40)]
FILES = {"file": ("rows.jsonl", b"", "application/jsonl")}


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    settings: dict[str, Any] = {"price_per_cpu_hour": 0.05, "currency": "EUR", "client_checks": 1, "cpu_gflops": 50}
    settings |= {"cancel_grace": timedelta(seconds=0.1)}
    with running_gateway(tmp_path_factory.mktemp("gateway"), **settings) as running:
        yield running


@pytest.fixture
def http(gateway: Gateway) -> Iterator[httpx.Client]:
    with gateway.http() as client:
        yield client


def upload(http: httpx.Client, rows: list[Any]) -> str:
    body = b"".join(json.dumps(row).encode() + b"\n" if not isinstance(row, bytes) else row + b"\n" for row in rows)
    answer = http.post("/v1/files", data={"purpose": "fine-tune"}, files={"file": ("rows.jsonl", body)})
    return answer.json()["id"]


def estimate(http: httpx.Client, status: int = 200, **body: Any) -> dict[str, Any]:
    answer = http.post("/v1/fine_tuning/jobs/estimate", json={"model": "tiny"} | body)
    assert answer.status_code == status, answer.text
    return answer.json()


def test_an_estimate_tells_of_rows_that_workers_share_and_refuses_those_they_cannot(http: httpx.Client) -> None:
    file_id = upload(http, ROWS)
    shared = estimate(http, training_file=file_id, tunesmith={"resources": {"workers": 2, "sequence_parallel": 2}})
    alone = estimate(http, training_file=file_id)
    assert any("2 workers share each row" in reason for reason in shared["plan"]["reasons"])
    assert shared["plan"]["memory"]["activations"] < alone["plan"]["memory"]["activations"]
    error = estimate(http, 400, training_file=file_id, tunesmith={"resources": {"workers": 3, "sequence_parallel": 3}})["error"]
    assert (error["code"], error["param"]) == ("sequence_not_shared", "tunesmith.resources.sequence_parallel")


def test_a_job_whose_rows_can_not_be_shared_fails_in_its_check(http: httpx.Client) -> None:
    asked = {"resources": {"workers": 3, "sequence_parallel": 3}}
    made = http.post("/v1/fine_tuning/jobs", json={"model": "tiny", "training_file": upload(http, ROWS), "tunesmith": asked}).json()
    failed = until("the end", lambda: (job := http.get(f"/v1/fine_tuning/jobs/{made['id']}").json())["status"] == "failed" and job)
    assert (failed["error"]["code"], failed["error"]["param"]) == ("sequence_not_shared", "tunesmith.resources.sequence_parallel")
    assert "attention heads can't be divided" in failed["error"]["message"]


@pytest.mark.parametrize(
    ("resources", "why"), [({"workers": 3}, "does not divide its 3 workers"), ({"workers": 4, "min_workers": 2}, "beside min_workers")]
)
def test_workers_that_second_copies_cannot_be_divided_over_are_refused(http: httpx.Client, resources: dict[str, Any], why: str) -> None:
    second = {"engine": "zero3", "deepspeed": {"zero_optimization": {"zero_hpz_partition_size": 2}}}
    body = {"model": "tiny", "training_file": upload(http, ROWS), "tunesmith": {"resources": resources | second}}
    for path in ("/v1/fine_tuning/jobs", "/v1/fine_tuning/jobs/estimate"):
        answer = http.post(path, json=body)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "tunesmith.resources"), answer.text
        assert why in answer.json()["error"]["message"]


def test_an_estimate_has_every_number_and_creates_nothing(gateway: Gateway, http: httpx.Client) -> None:
    file_id = upload(http, ROWS)
    jobs = http.get("/v1/fine_tuning/jobs").json()["data"]
    found = estimate(http, training_file=file_id, tunesmith={"adapter": {"r": 4}})
    assert http.get("/v1/fine_tuning/jobs").json()["data"] == jobs
    assert found["object"] == "fine_tuning.job.estimate"
    assert found["ok"]
    assert (found["training"]["rows"], found["resolved"]["n_epochs"], found["resolved"]["steps"]) == (40, 3, 15)
    assert found["trained_tokens"] == 3 * found["training"]["trained_tokens"]
    plan, memory = found["plan"], found["plan"]["memory"]
    assert (plan["engine"], plan["device"], plan["workers"], plan["micro_batch"], plan["micro_batches"]) == ("torch", "cpu", 1, 8, 1)
    assert memory["total"] == sum(memory[part] for part in memory if part not in ("total", "available"))
    assert found["placement"] == {"fits": True, "starts_now": True, "reason": "fits"}
    assert 0 < found["time"]["low"] < found["time"]["high"]
    assert not found["time"]["measured"]
    assert "setting cpu_gflops" in found["time"]["based_on"]
    assert found["cost"]["low"] == pytest.approx(found["time"]["low"] * 2 * 0.05 / 3600)
    assert found["cost"]["based_on"] == "2 cores at 0.05 EUR an hour each"


def test_the_job_that_follows_finds_its_data_checked(gateway: Gateway, http: httpx.Client) -> None:
    file_id = upload(http, [*ROWS, chat_row("another")])
    found = estimate(http, training_file=file_id)
    with gateway_without_checks(gateway):
        job = gateway.client().fine_tuning.jobs.create(model="tiny", training_file=file_id)
        deadline = time.monotonic() + 30
        while not gateway.runtime.launched or gateway.runtime.launched[-1].job_id != job.id:
            assert time.monotonic() < deadline, "the job's own check did not find the dataset"
            time.sleep(0.02)
    spec = gateway.runtime.launched[-1]
    assert (spec.resolved.steps, spec.dataset.tokens) == (found["resolved"]["steps"], found["training"]["tokens"])
    busy = estimate(http, training_file=file_id)["placement"]
    assert busy["fits"]
    assert not busy["starts_now"]
    assert busy["reason"] == "fits; waiting for 2 processor cores, 0 free"
    http.post(f"/v1/fine_tuning/jobs/{job.id}/cancel")
    while http.get(f"/v1/fine_tuning/jobs/{job.id}").json()["status"] != "cancelled":
        assert time.monotonic() < deadline + 30
        time.sleep(0.05)


class gateway_without_checks:
    """While this lasts no process can be started that reads rows."""

    def __init__(self, gateway: Gateway) -> None:
        self._checks = gateway.app.checks

    def __enter__(self) -> None:
        async def refused(*_: Any) -> Any:
            raise AssertionError("the rows are read again")

        self._checks._read = refused  # type: ignore[method-assign]

    def __exit__(self, *_: object) -> None:
        del self._checks._read


def test_faulty_data_is_told_and_has_no_numbers(http: httpx.Client) -> None:
    good, bad = upload(http, ROWS), upload(http, [*ROWS, b"{"])
    found = estimate(http, training_file=good, validation_file=bad)
    assert not found["ok"]
    assert (found["training"]["fault_count"], found["validation"]["faults"][0]["line"]) == (0, 41)
    assert [found[name] for name in ("resolved", "plan", "placement", "time", "cost")] == [None] * 5


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({"model": "unknown"}, 400, "model"),
        ({"training_file": "file-none"}, 400, "training_file"),
        ({"training_file": "file-none", "tunesmith": {"adapter": {"rr": 1}}}, 400, "tunesmith.adapter.rr"),
        ({"method": {"type": "nonsense"}}, 400, "method.type"),
        ({"data": {"training": {"rows": 0, "tokens": 1, "trained_tokens": 1, "longest": 1}}}, 400, "data.training.rows"),
    ],
)
def test_what_create_refuses_the_estimate_refuses(http: httpx.Client, body: dict[str, Any], status: int, param: str) -> None:
    assert estimate(http, status, **({"training_file": "file-1"} | body))["error"]["param"] == param


def test_another_project_is_told_what_it_is_told_of_an_unknown_file(gateway: Gateway, http: httpx.Client) -> None:
    file_id = upload(http, ROWS)
    with gateway.http(gateway.other_key()) as other:
        assert estimate(other, 400, training_file=file_id)["error"]["message"] == f"No such file: '{file_id}'"
        answers = [other.post(f"/v1/files/{name}/check", json={"model": "tiny"}) for name in (file_id, "file-none")]
    assert [answer.status_code for answer in answers] == [404, 404]
    assert answers[0].json()["error"] == answers[1].json()["error"] | {"message": f"No such file: '{file_id}'"}


def test_a_key_that_may_only_read_starts_no_check(gateway: Gateway) -> None:
    with gateway.http(gateway.other_key(("read",))) as reader:
        assert estimate(reader, 403, training_file="file-1")["error"]["code"] == "permission_denied"


def counts(**changes: int) -> dict[str, Any]:
    return {"training": {"rows": 1000, "tokens": 100_000, "trained_tokens": 50_000, "longest": 200} | changes}


def test_counts_stand_in_for_files_that_are_not_there(http: httpx.Client) -> None:
    found = estimate(http, training_file="file-local", data=counts())
    assert (found["training"], found["resolved"]["steps"], found["trained_tokens"]) == (None, 375, 150_000)
    larger = estimate(http, training_file="file-local", data=counts(tokens=10_000_000))
    assert larger["time"]["training"]["low"] > found["time"]["training"]["low"]


def test_what_the_cluster_lacks_is_said(gateway: Gateway, http: httpx.Client) -> None:
    gpus = {"resources": {"gpus_per_worker": 1}}
    found = estimate(http, training_file="file-local", data=counts(), tunesmith=gpus)
    assert found["placement"]["fits"] is False
    assert "waiting for 1 GPU, 0 in all" in found["placement"]["reason"]
    assert found["plan"]["micro_batch"] is None
    assert len(found["notes"]) == 2
    huge = estimate(http, training_file="f", data=counts(longest=2048), tunesmith={"resources": {"workers": 2, "cpus_per_worker": 1}})
    assert huge["placement"]["fits"]
    gateway.runtime.total, before = replace(gateway.runtime.total, gpus=8, gpu_types=("H100",)), gateway.runtime.total
    try:
        found = estimate(http, training_file="file-local", data=counts(), tunesmith=gpus)
    finally:
        gateway.runtime.total = before
    assert found["placement"]["fits"]
    assert "989 TFLOP/s of a H100" in found["time"]["based_on"]
    assert found["cost"] is None, "no price of a GPU is set"


def test_a_cluster_that_is_away_leaves_the_rest(gateway: Gateway, http: httpx.Client) -> None:
    gateway.runtime.away = True
    try:
        found = estimate(http, training_file="file-local", data=counts())
    finally:
        gateway.runtime.away = False
    assert found["placement"]["fits"] is None
    assert found["time"] is None
    assert found["plan"]["memory"]["total"] > 0
    assert found["notes"] == ["Time and cost are left out: the cluster can't be asked just now."]


def test_earlier_runs_are_what_time_rests_on(gateway: Gateway, http: httpx.Client) -> None:
    """Two runs at 1,000 tokens a second, 20 s to start and 4 s to finish, by the database."""
    guessed = estimate(http, training_file="file-local", data=counts())["time"]
    made = [gateway.do(succeeded(gateway, f"ftjob-past{n}", speed=1000.0 * (1 + n))) for n in range(2)]
    try:
        found = estimate(http, training_file="file-local", data=counts())["time"]
        of_gpu = estimate(http, training_file="file-local", data=counts(), tunesmith={"resources": {"gpus_per_worker": 1}})["time"]
    finally:
        for job_id in made:
            gateway.do(forget(gateway, job_id))
    assert not guessed["measured"]
    assert found["measured"]
    assert "earlier runs" in found["based_on"]
    assert found["training"]["low"] == pytest.approx(300_000 / (2000 * 1.15), rel=0.01)
    assert found["training"]["high"] == pytest.approx(300_000 / (1000 * 0.75), rel=0.01)
    assert found["start"] == pytest.approx({"low": 15, "high": 20 / 0.75}, abs=0.1)
    assert found["finish"] == pytest.approx({"low": 3, "high": 4 / 0.75}, abs=0.1)
    assert of_gpu is None, "a processor's speed says nothing of a GPU's"


async def succeeded(gateway: Gateway, job_id: str, speed: float) -> str:
    """A job that is over, with the times of its run."""
    async with gateway.parts.store.begin() as tx:
        model = await tx.list_jobs((await gateway_caller(gateway)).project_id, after=None, limit=1, metadata={})
        twin = model.items[0]
        data = DatasetRef(prefix="d", sha256="d", rows=1000, tokens=100_000, trained_tokens=50_000, longest=200)
        job = replace(twin, id=job_id, status=JobStatus.SUCCEEDED, epoch=1, dataset=data, progress=Progress(tokens_per_second=speed))
        job: Job = replace(job, started_at=tx.time + 20, finished_at=tx.time + 104, lease_owner=None)
        await tx.insert_job(job, "f", [Notice("Step 375/375", type="metrics", data={"step": 375})])
        await tx.insert_run(job_id, 1, "")
        events = tables.events
        await tx.connection.execute(sa.update(events).where(events.c.job_id == job_id).values(created_at=tx.time + 100))
    return job_id


async def gateway_caller(gateway: Gateway) -> Any:
    from service import tenancy

    return await tenancy.authenticate(gateway.parts.store, gateway.key)


async def forget(gateway: Gateway, job_id: str) -> None:
    async with gateway.parts.store.begin() as tx:
        for table in (tables.events, tables.runs):
            await tx.connection.execute(sa.delete(table).where(table.c.job_id == job_id))
        await tx.connection.execute(sa.delete(tables.jobs).where(tables.jobs.c.id == job_id))


def check(http: httpx.Client, file_id: str, status: int = 200, **body: Any) -> dict[str, Any]:
    answer = http.post(f"/v1/files/{file_id}/check", json={"model": "tiny"} | body)
    assert answer.status_code == status, answer.text
    return answer.json()


def test_a_check_tells_faults_and_shows_rows(http: httpx.Client) -> None:
    found = check(http, upload(http, [*ROWS[:11], {"messages": [{"role": "usr", "content": ""}]}]), preview=1)
    assert (found["object"], found["ok"], found["report"]["faults"][0]["path"]) == ("file.check", False, "messages[0].role")
    assert found["report"]["preview"][0]["line"] == 1
    found = check(http, upload(http, [*ROWS, chat_row("long", "x" * 100)]), preview=2, training={"max_length": 40})
    assert found["ok"]
    [first, second] = found["report"]["preview"]
    parts = [(part["text"], part["trained"]) for part in first["parts"]]
    assert parts[0] == ("<|im_start|>user\nhello 0<|im_end|>\n<|im_start|>assistant\n"[: len(parts[0][0])], False)
    assert parts[1][0].startswith("world 0")
    assert parts[1][1]
    assert (second["line"], second["tokens"] <= 40) == (2, True)


def test_a_preview_shows_what_is_cut(http: httpx.Client) -> None:
    file_id = upload(http, [chat_row("a", "x" * 100)])
    [row] = check(http, file_id, preview=1, purpose="validation_file", training={"max_length": 40})["report"]["preview"]
    assert row["truncated"]
    assert (row["tokens"], row["tokens_uncut"] > 100, row["shortened"]) == (40, True, False)
    assert row["parts"][-1]["text"].endswith("xxx")


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"preview": 6}, "preview"),
        ({"model": "other"}, "model"),
        ({"method": "nonsense"}, "method"),
        ({"training": {"max_length": 131072}}, "training.max_length"),
        ({"purpose": "else"}, "purpose"),
    ],
)
def test_checks_that_are_refused(http: httpx.Client, body: dict[str, Any], param: str) -> None:
    assert check(http, upload(http, ROWS), 400, **body)["error"]["param"] == param


def checking() -> list[psutil.Process]:
    return [child for child in psutil.Process().children(recursive=True) if _reads_rows(child)]


def _reads_rows(process: psutil.Process) -> bool:
    try:
        return "service.data_process" in process.cmdline()
    except psutil.NoSuchProcess:  # it has just ended
        return False


def slow_rows() -> list[Any]:
    """Takes a check many seconds: each trained turn renders the conversation once more."""
    turns = [{"role": role, "content": "hello " * 20} for _ in range(400) for role in ("user", "assistant")]
    return [{"messages": turns}] * 60


def test_checks_are_bounded_and_end_when_the_client_leaves(gateway: Gateway, http: httpx.Client) -> None:
    slow, other = upload(http, slow_rows()), upload(http, [*ROWS, chat_row("one more")])
    body = json.dumps({"model": "tiny"}).encode()
    head = f"POST /v1/files/{slow}/check HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {gateway.key}\r\n"
    head += f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    deadline = time.monotonic() + 30
    with socket.create_connection(("127.0.0.1", gateway.port)) as connection:
        connection.sendall(head.encode() + body)
        while not checking():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        refused = http.post(f"/v1/files/{other}/check", json={"model": "tiny"})
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "rate_limit_exceeded")
        assert int(refused.headers["retry-after"]) >= 1
        assert checking(), "the check that was there goes on"
    while checking():
        assert time.monotonic() < deadline, "nobody waits for this check, and it goes on"
        time.sleep(0.02)
    while http.post(f"/v1/files/{other}/check", json={"model": "tiny"}).status_code == 429:
        assert time.monotonic() < deadline, "its place is never free again"
        time.sleep(0.02)
    assert check(http, other)["ok"]
    assert list((gateway.settings.data_dir / "scratch").glob("*")) == []


def test_openapi_describes_bodies_and_answers(http: httpx.Client) -> None:
    document = http.get("/openapi.json").json()
    for path, request, answer in (
        ("/v1/fine_tuning/jobs/estimate", "EstimateJobRequest", "JobEstimate"),
        ("/v1/files/{file_id}/check", "CheckFileRequest", "FileCheck"),
    ):
        route = document["paths"][path]["post"]
        assert route["requestBody"]["content"]["application/json"]["schema"]["$ref"].endswith(f"/{request}")
        assert route["responses"]["200"]["content"]["application/json"]["schema"]["$ref"].endswith(f"/{answer}")
        assert {request, answer} <= document["components"]["schemas"].keys()
    memory = document["components"]["schemas"]["MemoryEstimate"]["properties"]
    assert all("description" in field for field in memory.values())
