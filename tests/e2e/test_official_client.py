"""The official client, unmodified and strict, through everything: gateway, data check, Ray, trainer, storage."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import BadRequestError, OpenAI

from tests.e2e.stack import Stack, artifacts, at_step, ended, processes_of, until
from tests.model_cache import MODEL, smollm2
from tests.tiny_model import write_catalogue, write_tiny_model

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
ROOT = Path(__file__).parents[2]
TWEETS = ROOT / "examples" / "tweets"


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    scratch = tmp_path_factory.mktemp("client")
    model = write_tiny_model(scratch / "tiny")
    stack = Stack(scratch / "data", {"TUNESMITH_CATALOGUE": str(write_catalogue(scratch / "catalogue.yaml", model))})
    stack.command("models", "pull", "tiny")
    smollm2().install(stack.data_dir / "objects")
    stack.up()
    yield stack
    stack.down()


@pytest.fixture(scope="module")
def client(stack: Stack) -> OpenAI:
    return stack.client()


def upload(client: OpenAI, rows: bytes | Path) -> str:
    content = rows.read_bytes() if isinstance(rows, Path) else rows
    return client.files.create(file=("rows.jsonl", content), purpose="fine-tune").id


def create(client: OpenAI, rows: bytes | Path = TWEETS / "tweets-train.jsonl", **fields: Any) -> str:
    settings = {"model": "tiny", "seed": 7, "training_file": upload(client, rows), **fields}
    return client.fine_tuning.jobs.create(**settings).id


def epochs(number: int, batch_size: int = 16) -> dict[str, Any]:
    hyperparameters = {"n_epochs": number, "batch_size": batch_size}
    return {"type": "supervised", "supervised": {"hyperparameters": hyperparameters}}


def tunesmith_of(client: OpenAI, job_id: str) -> dict[str, Any]:
    job = client.fine_tuning.jobs.retrieve(job_id)
    assert job.model_extra is not None
    return job.model_extra["tunesmith"]


@pytest.fixture(scope="module")
def finished(client: OpenAI) -> str:
    """A job with a validation file that ran to its end."""
    validation = upload(client, TWEETS / "tweets-test.jsonl")
    job_id = create(client, validation_file=validation, suffix="tiny", metadata={"team": "a"}, method=epochs(2))
    job = ended(client, job_id)
    assert job.status == "succeeded", job.error
    return job_id


def test_a_finished_job_says_what_it_was_and_what_came_out(client: OpenAI, finished: str) -> None:
    job = client.fine_tuning.jobs.retrieve(finished)
    assert job.fine_tuned_model == f"ft:tiny:{job.organization_id}:tiny:{finished.removeprefix('ftjob-')}"
    assert (job.hyperparameters.n_epochs, job.hyperparameters.batch_size, job.hyperparameters.learning_rate_multiplier) == (2, 16, 1.0)
    assert job.finished_at is not None
    assert job.trained_tokens is not None
    assert job.trained_tokens > 2 * 400
    ours = tunesmith_of(client, finished)
    assert (ours["phase"], ours["epoch"], ours["infra_failures"], ours["resolved"]["steps"]) == ("succeeded", 1, 0, 50)
    assert client.models.retrieve(job.fine_tuned_model).owned_by == job.organization_id


def test_events_page_both_ways(client: OpenAI, finished: str) -> None:
    newest_first = [event.id for event in client.fine_tuning.jobs.list_events(finished, limit=7)]
    oldest_first = [event.id for event in client.fine_tuning.jobs.list_events(finished, limit=9, extra_query={"order": "asc"})]
    assert newest_first == oldest_first[::-1]
    events = list(client.fine_tuning.jobs.list_events(finished, limit=1000))[::-1]
    messages = [event.message for event in events]
    assert messages[0] == f"Created fine-tuning job: {finished}"
    assert messages[1].startswith("Validating training file: file-")
    assert messages[2:4] == ["Files validated, moving job to queued state", "Fine-tuning job started"]
    assert messages[-1] == "The job has successfully completed"
    steps = [event.data["step"] for event in events if event.type == "metrics" and event.data and "train_loss" in event.data]
    assert steps == list(range(1, 51))
    last = next(event.data for event in reversed(events) if event.data and "full_valid_loss" in event.data)
    assert last["step"] == 50
    assert 0 <= last["full_valid_mean_token_accuracy"] < 1
    assert 0 < last["full_valid_loss"] < 6


def test_checkpoints_are_listed_with_their_metrics(client: OpenAI, finished: str) -> None:
    checkpoints = list(client.fine_tuning.jobs.checkpoints.list(finished, limit=2))
    assert [checkpoint.step_number for checkpoint in checkpoints] == [50, 40, 20]
    assert checkpoints[0].fine_tuned_model_checkpoint == client.fine_tuning.jobs.retrieve(finished).fine_tuned_model
    assert checkpoints[1].fine_tuned_model_checkpoint.endswith(":ckpt-step-40")
    for checkpoint in checkpoints:
        assert checkpoint.metrics.train_loss is not None
        assert checkpoint.metrics.full_valid_loss is not None


def test_the_result_file_has_a_row_for_each_step(client: OpenAI, finished: str) -> None:
    [file_id] = client.fine_tuning.jobs.retrieve(finished).result_files
    assert client.files.retrieve(file_id).purpose == "fine-tune-results"
    rows = list(csv.DictReader(io.StringIO(client.files.content(file_id).text)))
    assert [int(row["step"]) for row in rows] == list(range(1, 51))
    assert float(rows[-1]["valid_loss"]) > 0
    assert rows[0]["valid_loss"] == ""


def test_artifacts_come_whole_or_in_ranges_with_their_hash(stack: Stack, client: OpenAI, finished: str) -> None:
    name = "adapter/adapter_model.safetensors"
    headers = {"authorization": f"Bearer {client.api_key}"}
    url = f"{stack.status()['base_url']}/fine_tuning/jobs/{finished}/artifacts/{name}"
    whole = httpx.get(url, headers=headers)
    assert whole.headers["x-checksum-sha256"] == hashlib.sha256(whole.content).hexdigest() == artifacts(client, finished)[name]
    part = httpx.get(url, headers=headers | {"range": "bytes=10-19"})
    assert (part.status_code, part.content) == (206, whole.content[10:20])
    assert httpx.get(url).status_code == 401


def test_the_logs_of_a_finished_job_hold_its_workers_lines(stack: Stack, client: OpenAI, finished: str) -> None:
    url, headers = f"{stack.status()['base_url']}/fine_tuning/jobs/{finished}/logs", {"authorization": f"Bearer {client.api_key}"}
    worker = httpx.get(url, headers=headers)
    assert (worker.status_code, worker.headers["x-tunesmith-logs"]) == (200, "driver, rank-0")
    assert f"run {finished}-1, rank 0 of 1 on cpu" in worker.text
    assert any(line.endswith("INFO trainers.worker done") for line in worker.text.splitlines())
    driver = httpx.get(url, headers=headers, params={"rank": "driver", "tail": 5})
    assert 0 < len(driver.text.splitlines()) <= 5


def test_a_stream_of_a_finished_job_tells_all_of_it(stack: Stack, client: OpenAI, finished: str) -> None:
    url, headers = f"{stack.status()['base_url']}/fine_tuning/jobs/{finished}/stream", {"authorization": f"Bearer {client.api_key}"}
    blocks = httpx.get(url, headers=headers).text.split("\n\n")
    assert sum(block.startswith("event: event\n") for block in blocks) == len(
        list(client.fine_tuning.jobs.list_events(finished, limit=1000))
    )
    assert blocks[-2].startswith("event: done\n")


def test_a_cancelled_job_leaves_no_process(stack: Stack, client: OpenAI) -> None:
    job_id = create(client, method=epochs(50))
    at_step(client, job_id, 5)
    assert processes_of(f"{job_id}-1")
    client.fine_tuning.jobs.cancel(job_id)
    job = ended(client, job_id)
    assert job.status == "cancelled"
    assert processes_of(f"{job_id}-1") == [], "cancelled is said only when nothing is left"
    with pytest.raises(BadRequestError):
        client.fine_tuning.jobs.cancel(job_id)
    series = [line for line in metrics(stack, client) if job_id in line]
    assert series == []


def metrics(stack: Stack, client: OpenAI) -> list[str]:
    url = stack.status()["base_url"].removesuffix("/v1") + "/metrics"
    answer = httpx.get(url, headers={"authorization": f"Bearer {client.api_key}"})
    answer.raise_for_status()
    return answer.text.splitlines()


def test_a_running_job_shows_in_the_metrics_and_goes_with_its_end(stack: Stack, client: OpenAI, finished: str) -> None:
    lines = metrics(stack, client)
    assert not [line for line in lines if finished in line]
    assert any(line.startswith('tunesmith_run_attempts_total{outcome="succeeded"}') for line in lines)
    tokens = next(line for line in lines if line.startswith("tunesmith_tokens_total"))
    assert float(tokens.split()[-1]) > 10_000


def test_wrong_data_ends_in_failed_with_line_numbers_before_any_run(client: OpenAI) -> None:
    lines = (TWEETS / "tweets-train.jsonl").read_bytes().splitlines(keepends=True)[:20]
    lines[4] = b'{"messages": [{"role": "usr", "content": "x"}, {"role": "assistant", "content": "y"}]}\n'
    lines[9] = b"{broken\n"
    job = ended(client, create(client, b"".join(lines)))
    assert job.status == "failed"
    assert job.error is not None
    assert (job.error.code, job.error.param) == ("invalid_training_file", "training_file")
    assert "Line 5" in job.error.message
    ours = tunesmith_of(client, job.id)
    report = ours["error"]["details"]["report"]
    assert [(fault["line"], fault["rule"]) for fault in report["faults"]] == [(5, "bad_role"), (10, "bad_json")]
    assert "user" in report["faults"][0]["hint"]
    assert ours["epoch"] == 0


def test_too_few_rows_are_told_in_openais_words(client: OpenAI) -> None:
    rows = b"".join((TWEETS / "tweets-train.jsonl").read_bytes().splitlines(keepends=True)[:7])
    job = ended(client, create(client, rows))
    assert job.error is not None
    assert (job.error.code, job.error.message) == (
        "invalid_n_examples",
        "Training file has 7 example(s), but must have at least 10 examples",
    )


def test_a_fault_in_a_worker_is_told_with_its_code_and_not_tried_again(stack: Stack, client: OpenAI) -> None:
    """A file of the store is edited by hand: the run refuses it by name, and the driver says so."""
    before = set((stack.data_dir / "objects" / "datasets").iterdir())
    rows = b"".join((TWEETS / "tweets-train.jsonl").read_bytes().splitlines(keepends=True)[:12])
    assert ended(client, create(client, rows, method=epochs(1))).status == "succeeded"
    [dataset] = set((stack.data_dir / "objects" / "datasets").iterdir()) - before
    ids = bytearray((dataset / "ids.u32").read_bytes())
    ids[0] ^= 1
    (dataset / "ids.u32").write_bytes(ids)
    job = ended(client, create(client, rows, method=epochs(1)))
    assert job.status == "failed"
    assert job.error is not None
    assert (job.error.code, tunesmith_of(client, job.id)["epoch"]) == ("dataset_unreadable", 1)
    assert "ids.u32" in job.error.message


def test_two_workers_on_ray(client: OpenAI) -> None:
    resources = {"workers": 2, "cpus_per_worker": 1}
    job = ended(client, create(client, method=epochs(1), extra_body={"tunesmith": {"resources": resources}}))
    assert job.status == "succeeded", job.error
    assert artifacts(client, job.id)


def test_a_job_that_can_never_fit_says_what_it_waits_for(client: OpenAI) -> None:
    job_id = create(client, extra_body={"tunesmith": {"resources": {"gpus_per_worker": 4}}})
    until("a reason", lambda: "4 GPUs" in tunesmith_of(client, job_id)["reason"])
    client.fine_tuning.jobs.cancel(job_id)
    assert ended(client, job_id).status == "cancelled"


def test_the_command_line_watches_and_downloads(stack: Stack, tmp_path: Path) -> None:
    rows = str(TWEETS / "tweets-train.jsonl")
    options = ["--model", "tiny", "--training-file", rows, "--epochs", "1", "--batch-size", "16", "-y", "--watch", "-o", "json"]
    done = stack.command("jobs", "create", *options, timeout=600)
    job_id = json.loads(done.stdout)["id"]
    stack.command("artifacts", "download", job_id, "--to", str(tmp_path / "mine"))
    assert (tmp_path / "mine" / "adapter" / "adapter_config.json").is_file()


def test_a_real_model_learns_real_tweets_and_loads_in_plain_peft(stack: Stack, client: OpenAI, tmp_path: Path) -> None:
    job_id = create(
        client,
        model=MODEL,
        seed=1,
        method=epochs(1, batch_size=8),
        extra_body={"tunesmith": {"training": {"learning_rate": 5e-4}}},
    )
    job = ended(client, job_id, timeout=1000)
    assert job.status == "succeeded", job.error
    stack.command("artifacts", "download", job_id, "--to", str(tmp_path))
    score = runpy.run_path(str(ROOT / "examples" / "score.py"))
    tokenizer, model = score["load"](smollm2().directory, tmp_path / "adapter")
    assert score["accuracy"](tokenizer, model, score["read_rows"](TWEETS / "tweets-test.jsonl")) >= 0.80


def test_no_secret_stands_in_any_log(stack: Stack, client: OpenAI, finished: str) -> None:
    """Of the gateway, of Ray and of its workers; last in this file, so that everything above has written its part."""
    secrets = {client.api_key.encode(), *(path.read_bytes().strip() for path in stack.data_dir.rglob("*token*") if path.is_file())}
    assert len(secrets) > 1
    logs = [path for path in stack.data_dir.rglob("*.log*") if path.is_file()]
    assert logs
    ray = {Path(argument.split("=", 1)[1]) for argument in _ray_arguments(stack) if argument.startswith("--session-dir=")}
    logs += [path for directory in ray for path in (directory / "logs").rglob("*") if path.is_file()]
    assert len(logs) > 10
    for path in logs:
        content = path.read_bytes()
        assert not any(secret in content for secret in secrets), path


def _ray_arguments(stack: Stack) -> set[str]:
    arguments: set[str] = set()
    for pid in stack.status()["pids"]["ray"]:
        command = Path(f"/proc/{pid}/cmdline")
        if command.exists():
            arguments |= set(command.read_text().split("\0"))
    return arguments
