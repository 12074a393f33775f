"""Watching a job: outcomes and exit codes, a service that goes away, Ctrl-C, and what stands on a real terminal."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from service.errors import ErrorCode, TunesmithError
from service.jobs import Event, JobError, JobStatus, Progress
from tests.cli import Cli, Terminal, cli_of, served_quietly
from tests.fakes import BASE_MODEL
from tests.rest_server import Served
from tests.tiny_chat import chat_row, write_rows


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served_quietly(tmp_path_factory.mktemp("data")) as running:
        yield running


@pytest.fixture
def cli(server: Served, tmp_path: Path) -> Cli:
    return cli_of(server, tmp_path / "key")


@pytest.fixture
def job_id(server: Served) -> str:
    return server.http.post("/v1/fine_tuning/jobs", json={"model": BASE_MODEL, "training_file": "file-1"}).json()["id"]


def change(server: Served, job_id: str, **fields: object) -> None:
    server.app.jobs[job_id] = replace(server.app.jobs[job_id], **fields)  # type: ignore[arg-type]


def tell(server: Served, job_id: str, message: str, **fields: object) -> None:
    events = server.app.events[job_id]
    number = len(events) + 1
    events.append(Event(f"ftevent-{job_id}-{number}", job_id, number, time.time(), "info", message, **fields))  # type: ignore[arg-type]


def after_a_look(server: Served, job_id: str, then: Callable[[], object], looks: int = 1) -> threading.Thread:
    """Do something once the job has been asked for so often from now on."""
    real, seen = server.app.get_job, threading.Event()
    left = [looks]

    async def counted(caller: object, asked: str) -> object:
        left[0] -= asked == job_id
        if left[0] <= 0:
            seen.set()
        return await real(caller, asked)  # type: ignore[arg-type]

    server.app.get_job = counted  # type: ignore[assignment, method-assign]

    def wait() -> None:
        assert seen.wait(60)
        server.app.get_job = real  # type: ignore[method-assign]
        then()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


def test_to_success(server: Served, cli: Cli, job_id: str) -> None:
    def end() -> None:
        tell(server, job_id, "Step 1/2: training loss=1.0", type="metrics", data={"step": 1})
        tell(server, job_id, "The job has successfully completed")
        server.app.finish(job_id, {})

    thread = after_a_look(server, job_id, end)
    result = cli.run("jobs", "watch", job_id)
    thread.join()
    name = server.app.jobs[job_id].tuned_model
    assert result.stdout == f"{name}\n"
    told = [line for line in result.stderr.splitlines() if "  " in line]
    assert [line.partition("  ")[2] for line in told[:3]] == [event.message for event in server.app.events[job_id]]
    assert f"tunesmith artifacts download {job_id}" in result.stderr


def test_to_failure(server: Served, cli: Cli, job_id: str) -> None:
    error = JobError(code="nan_loss", message="the loss is not a number at step 3", cause="config")
    change(server, job_id, status=JobStatus.FAILED, error=error, finished_at=time.time())
    result = cli.run("jobs", "watch", job_id, exit_code=1)
    assert result.stdout == "failed\n"
    assert "nan_loss: the loss is not a number at step 3" in result.stderr
    assert "Change the named setting" in result.stderr


def test_to_cancellation(server: Served, cli: Cli, job_id: str) -> None:
    change(server, job_id, status=JobStatus.CANCELLED, finished_at=time.time())
    assert cli.run("jobs", "watch", job_id, exit_code=6).stdout == "cancelled\n"


def test_of_an_unknown_job(cli: Cli) -> None:
    assert "No such fine-tuning job" in cli.run("jobs", "watch", "ftjob-none", exit_code=3).stderr


def test_a_service_that_is_away_for_a_while(server: Served, cli: Cli, job_id: str) -> None:
    server.app.failure = TunesmithError(ErrorCode.UNAVAILABLE, "A part of the service is away; ask again.")
    thread = after_a_look(server, job_id, lambda: server.app.finish(job_id, {}))
    result = cli.run("jobs", "watch", job_id)
    thread.join()
    assert "the service does not answer; the job goes on without it" in result.stderr


def test_a_service_that_stays_away(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("ts_key")
    cli = Cli({"TUNESMITH_BASE_URL": "http://127.0.0.1:9", "TUNESMITH_API_KEY_FILE": str(tmp_path / "key")})
    result = cli.run("jobs", "watch", "ftjob-1", "--patience", "0.2", exit_code=5)
    assert "error: the service at http://127.0.0.1:9/v1 does not answer: " in result.stderr


def test_create_and_watch(server: Served, cli: Cli, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "train.jsonl", [chat_row()] * 10)
    before = set(server.app.jobs)
    known: list[str] = []

    def finish_new() -> None:
        while not (new := set(server.app.jobs) - before):
            time.sleep(0.01)
        known.extend(new)
        server.app.finish(known[0], {})

    thread = threading.Thread(target=finish_new, daemon=True)
    thread.start()
    result = cli.run("jobs", "create", "--model", BASE_MODEL, "--training-file", rows, "--watch")
    thread.join()
    assert result.stdout == f"{server.app.jobs[known[0]].tuned_model}\n"


def test_a_terminal_shows_one_line_and_ctrl_c_detaches(server: Served, cli: Cli, job_id: str) -> None:
    change(server, job_id, status=JobStatus.QUEUED, reason="waiting for 4 GPUs, 2 free")
    terminal = Terminal(cli, "jobs", "watch", job_id)
    terminal.until("queued: waiting for 4 GPUs, 2 free")
    progress = Progress(stage="training", step=27, total_steps=60, loss=1.25, tokens_per_second=1234.5, eta_seconds=95)
    tell(server, job_id, "Fine-tuning job started")
    tell(server, job_id, "Step 27/60: training loss=1.25", type="metrics", data={"step": 27})
    change(server, job_id, status=JobStatus.RUNNING, reason="", progress=progress)
    terminal.until("27/60  loss 1.2500  1,234 tok/s  ETA 1m 3")
    terminal.interrupt()
    code, stdout = terminal.ended()
    assert (code, stdout) == (0, "")
    assert "Fine-tuning job started" in terminal.screen
    assert "Step 27/60" not in terminal.screen  # its numbers are in the line
    assert f"Come back: tunesmith jobs watch {job_id}" in terminal.screen
    assert server.app.jobs[job_id].status is JobStatus.RUNNING


def test_a_terminal_is_asked(server: Served, cli: Cli, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "train.jsonl", [chat_row()] * 10)
    create = ("jobs", "create", "--model", BASE_MODEL, "--training-file", rows)
    before = set(server.app.jobs), set(server.app.files)
    terminal = Terminal(cli, *create)
    terminal.until("Create this job?")
    terminal.type("n\n")
    code, stdout = terminal.ended()
    assert (code, stdout) == (1, "")
    assert "nothing was created" in terminal.screen
    assert (set(server.app.jobs), set(server.app.files)) == before
    terminal = Terminal(cli, *create)
    terminal.until("Create this job?")
    terminal.type("y\n")
    code, stdout = terminal.ended()
    assert code == 0
    (new,) = set(server.app.jobs) - before[0]
    assert new in stdout
