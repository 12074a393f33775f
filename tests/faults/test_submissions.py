"""Row 18, and its neighbours: one submission makes one job, with explicit keys and with the official client's own retries."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.fake_run import until
from tests.gateway import Gateway, running_gateway
from tests.tiny_chat import chat_row, write_rows

THREADS = 20


@contextmanager
def two_gateways(directory: Path, database_url: str) -> Iterator[tuple[Gateway, Gateway]]:
    """Two processes' worth of service on one database and one object store."""
    shared = {"database_url": database_url, "storage_url": (directory / "objects").as_uri()}
    for name in ("one", "two"):
        (directory / name).mkdir()
    with running_gateway(directory / "one", **shared) as one, running_gateway(directory / "two", **shared) as two:
        yield one, two


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with running_gateway(tmp_path_factory.mktemp("gateway")) as running:
        yield running


def upload(gateway: Gateway, directory: Path) -> str:
    """A file that a job has been checked with, so that no other job's check starts a process."""
    client = gateway.client()
    rows = write_rows(directory / "rows.jsonl", [chat_row() for _ in range(12)])
    file = client.files.create(file=rows, purpose="fine-tune")
    job = client.fine_tuning.jobs.create(model="tiny", training_file=file.id, metadata={"test": "none"})
    until("the data check", lambda: client.fine_tuning.jobs.retrieve(job.id).status not in ("validating_files", "failed"))
    return file.id


def post(client: httpx.Client, body: dict[str, Any], headers: dict[str, str]) -> str:
    """Id of the job; anything but success fails the test."""
    answer = client.post("/v1/fine_tuning/jobs", json=body, headers=headers)
    assert answer.status_code == 200, answer.text
    return answer.json()["id"]


def all_at_once(gateways: tuple[Gateway, ...], work: Callable[[httpx.Client], list[str]]) -> list[list[str]]:
    """What `work` gives in each of THREADS threads, which start together and use the gateways in turn."""
    start = threading.Barrier(THREADS)

    def thread(number: int) -> list[str]:
        with gateways[number % len(gateways)].http() as client:
            start.wait()
            return work(client)

    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(thread, range(THREADS)))


def jobs_with(gateway: Gateway, **metadata: str) -> list[str]:
    return [job.id for job in gateway.client().fine_tuning.jobs.list(limit=100, metadata=metadata)]


def test_twenty_threads_and_twenty_keys_make_twenty_jobs(gateway: Gateway, tmp_path: Path) -> None:
    body = {"model": "tiny", "training_file": upload(gateway, tmp_path), "metadata": {"test": "keys"}}

    def work(client: httpx.Client) -> list[str]:
        return [post(client, body, {"idempotency-key": f"key-{n}"}) for n in range(20)]

    answers = all_at_once((gateway,), work)
    assert all(answer == answers[0] for answer in answers)
    assert sorted(jobs_with(gateway, test="keys")) == sorted(set(answers[0]))
    assert len(set(answers[0])) == 20


def test_18_two_gateways_answer_a_key_with_the_same_job(tmp_path: Path, postgres_url: str) -> None:
    with two_gateways(tmp_path, postgres_url) as both:
        body = {"model": "tiny", "training_file": upload(both[0], tmp_path), "metadata": {"test": "keys"}}

        def work(client: httpx.Client) -> list[str]:
            return [post(client, body, {"idempotency-key": f"key-{n}"}) for n in range(100)]

        answers = all_at_once(both, work)
        assert all(answer == answers[0] for answer in answers)
        assert sorted(jobs_with(both[1], test="keys")) == sorted(set(answers[0]))
        assert len(set(answers[0])) == 100
        with both[1].http() as client:
            other = client.post("/v1/fine_tuning/jobs", json=body | {"seed": 1}, headers={"idempotency-key": "key-0"})
        assert (other.status_code, other.json()["error"]["param"]) == (400, "Idempotency-Key")


def test_two_gateways_make_no_twin_of_a_clients_own_retries(tmp_path: Path, postgres_url: str) -> None:
    with two_gateways(tmp_path, postgres_url) as both:
        file = upload(both[0], tmp_path)

        def work(client: httpx.Client) -> list[str]:
            contents = [{"model": "tiny", "training_file": file, "seed": seed, "metadata": {"test": "retries"}} for seed in range(10)]
            return [post(client, content, {"x-stainless-retry-count": "1"}) for content in contents]

        answers = all_at_once(both, work)
        assert all(answer == answers[0] for answer in answers)
        assert len(jobs_with(both[0], test="retries")) == len(set(answers[0])) == 10
