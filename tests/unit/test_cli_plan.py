"""`tunesmith jobs create` before it creates: the estimate as plan, and --dry-run, which creates and uploads nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli import Cli, cli_of, served_quietly
from tests.fakes import BASE_MODEL
from tests.rest_server import Served
from tests.tiny_chat import chat_row, write_rows
from tests.unit.test_cli_files import data_dir

__all__ = ["data_dir"]
CREATE = ("jobs", "create", "--model", BASE_MODEL)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served_quietly(tmp_path_factory.mktemp("data")) as running:
        yield running


@pytest.fixture
def cli(server: Served, tmp_path: Path) -> Cli:
    return cli_of(server, tmp_path / "key")


@pytest.fixture
def here(cli: Cli, data_dir: Path) -> Cli:
    """The command where the base model has been pulled."""
    return Cli(cli.env | {"TUNESMITH_DATA_DIR": str(data_dir)})


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "train.jsonl", [chat_row(f"hello {n}") for n in range(100)])


def state(server: Served) -> tuple[set[str], set[str]]:
    return set(server.app.jobs), set(server.app.files)


def test_a_dry_run_of_an_uploaded_file_prints_the_estimate_and_creates_nothing(server: Served, cli: Cli, rows: Path) -> None:
    file_id = cli.data("files", "upload", rows)[0]["id"]
    before = state(server)
    found = cli.data(*CREATE, "--training-file", file_id, "--dry-run")
    assert found["object"] == "fine_tuning.job.estimate"
    assert found["resolved"]["steps"] == 150
    table = cli.run(*CREATE, "--training-file", file_id, "--dry-run").stdout
    for words in (
        "150 steps",
        "torch on 1 CPU worker, 8 rows at a time",
        "a worker of 6.1 GB",
        "once for the run",
        "fits",
        "setting cpu_gflops",
        " USD (2 cores at 36",
    ):
        assert words in table
    assert cli.run(*CREATE, "--training-file", file_id, "--dry-run", "-o", "yaml").stdout.startswith("object: fine_tuning.job.estimate")
    assert state(server) == before


def test_a_dry_run_of_a_local_file_counts_it_here_and_uploads_nothing(server: Served, here: Cli, rows: Path) -> None:
    before = state(server)
    found = here.data(*CREATE, "--training-file", rows, "--dry-run")
    assert (found["training"], found["resolved"]["steps"]) == (None, 39)
    assert state(server) == before
    elsewhere = Cli(here.env | {"TUNESMITH_DATA_DIR": "/nowhere"})
    result = elsewhere.run(*CREATE, "--training-file", rows, "--dry-run", exit_code=3)
    assert "has not been pulled" in result.stderr
    assert "Or upload the file first and name its id." in result.stderr


def test_the_estimate_is_the_plan_and_the_job_is_created(server: Served, here: Cli, rows: Path) -> None:
    result = here.run(*CREATE, "--training-file", rows, "-o", "json")
    for words in (
        "100 rows, ",
        " tokens; will be uploaded",
        "auto (here 3)",
        "steps          39",
        "memory ",
        "cluster        fits",
        "time  ",
    ):
        assert words in result.stderr
    assert json.loads(result.stdout)["id"] in server.app.jobs
    plain = here.run(*CREATE, "--training-file", rows, "--no-check").stderr
    assert "steps          about 39" in plain
    assert "memory" not in plain


def test_faulty_data_ends_it(server: Served, here: Cli, tmp_path: Path) -> None:
    bad = {"messages": [{"role": "usr", "content": "hello"}]}
    path = write_rows(tmp_path / "bad.jsonl", [bad, *[chat_row() for _ in range(12)]])
    before = state(server)
    refused = here.run(*CREATE, "--training-file", path, exit_code=1)
    assert "the training file can't be trained on; nothing was created" in refused.stderr
    assert "messages[0].role" in refused.stdout
    report = json.loads(here.run(*CREATE, "--training-file", path, "--dry-run", "-o", "json", exit_code=1).stdout)
    assert (report["ok"], report["training"]["faults"][0]["line"]) == (False, 1)
    assert state(server) == before
    file_id = here.data("files", "upload", path)[0]["id"]
    there = here.run(*CREATE, "--training-file", file_id, "--dry-run", exit_code=1)
    assert "bad_role" in there.stdout


def test_a_job_that_can_not_fit(cli: Cli, rows: Path) -> None:
    file_id = cli.data("files", "upload", rows)[0]["id"]
    result = cli.run(*CREATE, "--training-file", file_id, "--gpus-per-worker", "1", "--dry-run", exit_code=1)
    assert "it does not fit: waiting for 1 GPU, 0 in all" in result.stderr
    assert "cluster" in result.stdout


def test_a_preview_shows_what_is_trained_on(data_dir: Path, rows: Path) -> None:
    shown = Cli().run("files", "check", rows, "--preview", "2", "--data-dir", data_dir).stdout
    assert "line 2: " in shown
    assert "<|im_start|>user\nhello 1<|im_end|>\n<|im_start|>assistant\n[[world<|im_end|>]]" in shown
    report = Cli().data("files", "check", rows, "--preview", "1", "--data-dir", data_dir)
    assert [part["trained"] for part in report["preview"][0]["parts"]] == [False, True, False]
