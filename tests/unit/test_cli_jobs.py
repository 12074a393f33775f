"""`tunesmith jobs …` against the REST application: create from files and flags, list, get, cancel, events, checkpoints."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from service.cli import jobfile
from service.cli.output import Ended
from service.jobs import Attempt, Event, JobError, JobStatus, Progress
from service.records import Checkpoint
from tests.cli import Cli, cli_of, served_quietly
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
def rows(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "train.jsonl", [chat_row() for _ in range(400)])


@pytest.fixture
def job_id(cli: Cli, rows: Path) -> str:
    return cli.data("jobs", "create", "--model", BASE_MODEL, "--training-file", rows)["id"]


def files_of(server: Served) -> set[str]:
    return set(server.app.files)


def test_create_from_flags_uploads_local_files_and_shows_the_plan(server: Served, cli: Cli, rows: Path) -> None:
    before = files_of(server)
    flags = ["--epochs", "2", "--rank", "8", "--learning-rate", "0.001", "--seed", "7", "--suffix", "tweets", "--metadata", "team=a"]
    flags += ["--set", "tunesmith.training.warmup_ratio=1e-1", "--set", "tunesmith.adapter.target_modules=[q_proj]"]
    result = cli.run("jobs", "create", "--model", BASE_MODEL, "--training-file", rows, *flags, "-o", "json")
    job = json.loads(result.stdout)
    (uploaded,) = files_of(server) - before
    assert server.app.data[uploaded] == rows.read_bytes()
    spec = server.app.jobs[job["id"]].spec
    assert (spec.training_file, spec.seed, spec.suffix, spec.metadata) == (uploaded, 7, "tweets", {"team": "a"})
    assert spec.method.hyperparameters.n_epochs == 2
    ours = spec.tunesmith
    assert (ours.adapter.r, ours.adapter.target_modules) == (8, ["q_proj"])
    assert (ours.training.learning_rate, ours.training.warmup_ratio) == (0.001, 0.1)
    for line in ("400 rows; will be uploaded", "epochs         2", "batch size     auto (here 8)", "steps          about 100", "lora r=8"):
        assert line in result.stderr
    assert f"tunesmith jobs watch {job['id']}" in result.stderr


JOB_YAML = """
model: smollm2-135m-instruct
training_file: train.jsonl
hyperparameters: {n_epochs: 3, batch_size: 4}
tunesmith:
  training: {learning_rate: 2e-4, max_length: 512}
"""


def test_create_from_a_file_with_flags_over_it(
    server: Served, cli: Cli, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "job.yaml").write_text(JOB_YAML)
    monkeypatch.chdir("/")  # paths in the file are meant from where the file is
    job = cli.data("jobs", "create", "-f", tmp_path / "job.yaml", "--epochs", "1", "--max-length", "64", "-y")
    spec = server.app.jobs[job["id"]].spec
    assert (spec.method.hyperparameters.n_epochs, spec.method.hyperparameters.batch_size) == (1, 4)
    assert (spec.tunesmith.training.learning_rate, spec.tunesmith.training.max_length) == (2e-4, 64)


def test_create_from_a_table_with_a_mapping(server: Served, cli: Cli, tmp_path: Path) -> None:
    table = tmp_path / "faq.csv"
    table.write_text("question,answer\n" + "hello,world\n" * 12)
    told = ("--format", "csv", "--map", "messages=chat", "--map", "roles.human=user", "--map", "role=from")
    result = cli.run("jobs", "create", "--model", BASE_MODEL, "--training-file", table, *told, "-o", "json")
    data = server.app.jobs[json.loads(result.stdout)["id"]].spec.tunesmith.data
    assert data.format == "csv"
    assert data.mapping is not None
    assert (data.mapping.messages, data.mapping.role, data.mapping.roles) == ("chat", "from", {"human": "user"})
    assert "csv, messages = chat, role = from" in result.stderr
    assert "13 rows" not in result.stderr, "lines of a CSV file are no rows"
    shown = cli.data("jobs", "get", json.loads(result.stdout)["id"])["tunesmith"]["data"]
    assert shown["mapping"]["roles"] == {"human": "user"}


def test_create_with_the_id_of_an_uploaded_file(server: Served, cli: Cli, rows: Path) -> None:
    file_id = cli.data("files", "upload", rows)[0]["id"]
    before = files_of(server)
    result = cli.run("jobs", "create", "--model", BASE_MODEL, "--training-file", file_id, "-o", "json")
    assert json.loads(result.stdout)["training_file"] == file_id
    assert files_of(server) == before
    assert f"{file_id} (train.jsonl)" in result.stderr
    assert (
        "No such file: 'file-0000'" in cli.run("jobs", "create", "--model", BASE_MODEL, "--training-file", "file-0000", exit_code=3).stderr
    )


def test_refused_by_the_service_after_the_upload(cli: Cli, rows: Path) -> None:
    result = cli.run("jobs", "create", "--model", "unknown", "--training-file", rows, exit_code=2)
    assert "The file stays uploaded; use it again with --training-file file-" in result.stderr
    assert "error: The model 'unknown' is not in the catalogue. (request req_" in result.stderr


WRONG = {
    "tunesmith: {adaptor: {r: 8}}": "Unknown field 'tunesmith.adaptor'; did you mean 'adapter'?",
    "learning_rate: 1": "Unknown field 'learning_rate'",
    "tunesmith: {adapter: {r: 0}}": "'tunesmith.adapter.r' must be an integer from 1 to 512, not 0.",
    "tunesmith: {data: {mapping: {prompt: a, messages: b}}}": "'tunesmith.data.mapping' names prompt beside messages",
    "seed: 'three'": "'seed' must be an integer",
    "seed: 1\nseed: 2": "the key 'seed' stands twice",
    "seed: [1": "line 3, column",
    "suffix: *anchor": "undefined alias",
}


@pytest.mark.parametrize("line", WRONG)
def test_a_wrong_job_file_is_told_before_anything_is_uploaded(line: str, tmp_path: Path, rows: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(f"model: {BASE_MODEL}\n{line}\n")
    # There is no service here: nothing is asked of it.
    result = Cli().run("jobs", "create", "-f", path, "--training-file", rows, exit_code=2)
    assert WRONG[line] in result.stderr
    assert len(result.stderr.splitlines()) <= 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["-f", "/nowhere/job.yaml"], "can't be read: No such file"),
        (["--training-file", "file-1"], "Missing required field 'model'"),
        (["--model", "m"], "Missing required field 'training_file'"),
        (["--model", "m", "--training-file", "file-1", "--metadata", "team"], "'team' is not KEY=VALUE"),
        (["--model", "m", "--training-file", "file-1", "--set", "model.id=1"], "'model' is not an object"),
        (["--model", "m", "--training-file", "file-1", "--epochs", "many"], "n_epochs' must be"),
        (["--model", "m", "--training-file", "file-1", "--set", "seed=[1"], "--set seed, line 1"),
    ],
)
def test_wrong_options(arguments: list[str], said: str) -> None:
    assert said in Cli().run("jobs", "create", *arguments, exit_code=2).stderr


def test_a_local_file_that_is_not_there(cli: Cli, tmp_path: Path) -> None:
    result = cli.run("jobs", "create", "--model", BASE_MODEL, "--training-file", tmp_path / "none.jsonl", exit_code=2)
    assert "none.jsonl can't be read: No such file or directory" in result.stderr


def test_numbers_without_a_dot_are_numbers() -> None:
    assert jobfile.parse("[2e-4, 1E3, -5e-1, 2, e5, 2.5e-1]", "here") == [2e-4, 1e3, -0.5, 2, "e5", 0.25]
    with pytest.raises(Ended):
        jobfile.parse("!!python/object/apply:os.system [ls]", "here")


def test_list(server: Served, cli: Cli, job_id: str) -> None:
    progress = Progress(stage="training", step=27, total_steps=60, loss=1.5, eta_seconds=95)
    server.app.jobs[job_id] = replace(server.app.jobs[job_id], status=JobStatus.RUNNING, progress=progress, created_at=time.time() - 3700)
    heading, *lines = cli.run("jobs", "list").stdout.splitlines()
    assert heading.split() == ["ID", "MODEL", "PHASE", "PROGRESS", "ETA", "AGE", "TUNED", "MODEL"]
    line = next(line for line in lines if line.startswith(job_id))
    assert line.split()[1:5] == [BASE_MODEL, "running", "45%", "27/60"]
    assert "1m 3" in line
    assert line.endswith("1h 01m")
    assert cli.data("jobs", "list", "-n", "1")[0]["id"] == job_id
    assert cli.data("jobs", "list", "--metadata", "team=nobody") == []


def test_get_shows_the_error_with_its_hints(server: Served, cli: Cli, job_id: str) -> None:
    fault = {"line": 3, "path": "messages[0].role", "rule": "role", "message": "no such role\x1b[31m", "hint": "Use user."}
    report = {"faults": [fault | {"line": line} for line in range(3, 13)], "fault_count": 10}
    error = JobError(
        code="invalid_training_file", message="Line 3: no such role", param="training_file", cause="data", details={"report": report}
    )
    server.app.jobs[job_id] = replace(server.app.jobs[job_id], status=JobStatus.FAILED, error=error, finished_at=time.time())
    shown = cli.run("jobs", "get", job_id).stdout
    assert "phase          failed" in shown
    assert "invalid_training_file: Line 3: no such role" in shown
    assert "  line 3, messages[0].role: no such role\\x1b[31m [role]. Use user." in shown
    assert f"`tunesmith jobs get {job_id} -o json` lists 10" in shown
    assert "tunesmith files check" in shown
    assert cli.data("jobs", "get", job_id)["tunesmith"]["error"]["details"]["report"] == report


def test_get_of_an_unknown_job(cli: Cli) -> None:
    result = cli.run("jobs", "get", "ftjob-none", exit_code=3)
    assert result.stdout == ""
    assert result.stderr.startswith("error: No such fine-tuning job: 'ftjob-none' (request req_")


def test_cancel(cli: Cli, job_id: str) -> None:
    assert cli.data("jobs", "cancel", job_id)["status"] == "cancelled"
    assert "can no longer be cancelled" in cli.run("jobs", "cancel", job_id, exit_code=2).stderr


def test_pause_and_resume(server: Served, cli: Cli, job_id: str) -> None:
    assert cli.data("jobs", "pause", job_id)["status"] == "paused"
    assert f"tunesmith jobs watch {job_id}" in cli.run("jobs", "resume", job_id).stderr
    assert "only a paused job can be resumed" in cli.run("jobs", "resume", job_id, exit_code=2).stderr
    server.app.jobs[job_id] = replace(server.app.jobs[job_id], status=JobStatus.RUNNING)
    assert f"is being paused. See whether its run has left: tunesmith jobs get {job_id}" in cli.run("jobs", "pause", job_id).stderr


def test_events_oldest_first(server: Served, cli: Cli, job_id: str) -> None:
    events = server.app.events[job_id]
    events += [Event(f"ftevent-{job_id}-{n}", job_id, n, 5.0 + n, "info", f"event {n}\n") for n in range(2, 130)]
    told = [event["message"] for event in cli.data("jobs", "events", job_id)]
    assert told == [event.message for event in events]
    assert cli.run("jobs", "events", job_id, "-n", "2").stdout.splitlines()[1:] == [
        *cli.run("jobs", "events", job_id).stdout.splitlines()[-2:]
    ]
    assert cli.run("jobs", "events", job_id, "-n", "1").stdout.splitlines()[-1].endswith("event 129\\n")


def test_events_follow_until_the_job_has_ended(server: Served, cli: Cli, job_id: str) -> None:
    server.app.finish(job_id, {})
    told = cli.run("jobs", "events", job_id, "--follow", "-o", "json").stdout.splitlines()
    assert [json.loads(line)["id"] for line in told] == [event.id for event in server.app.events[job_id]]
    assert cli.run("jobs", "events", job_id, "--follow", "-o", "yaml").stdout.startswith("---\nid: ftevent-")


def test_checkpoints(server: Served, cli: Cli, job_id: str) -> None:
    server.app.checkpoints[job_id] = [
        Checkpoint(f"ftckpt_{step}", job_id, 1, step, 5.0, f"runs/x/{step}", f"ft:m:ckpt-step-{step}", {"train_loss": 1.0 / step})
        for step in (20, 40)
    ]
    assert [row["step_number"] for row in cli.data("jobs", "checkpoints", job_id)] == [40, 20]
    assert cli.run("jobs", "checkpoints", job_id).stdout.splitlines()[1].split()[:2] == ["40", "0.0250"]


def test_logs(server: Served, cli: Cli, job_id: str) -> None:
    result = cli.run("jobs", "logs", job_id, "--attempt", "2", "--rank", "driver", "--tail", "5")
    assert result.stdout == "{'attempt': 2, 'rank': 'driver', 'tail': 5, 'follow': False}\n"
    assert result.stderr == "rank-0 of run 2\n"
    assert "'follow': True" in cli.run("jobs", "logs", job_id, "--follow").stdout
    assert "No such fine-tuning job" in cli.run("jobs", "logs", "ftjob-none", exit_code=3).stderr
    assert "'rank'" in cli.run("jobs", "logs", job_id, "--rank", "all", exit_code=2).stderr


def test_metrics(server: Served, cli: Cli, job_id: str) -> None:
    events = server.app.events[job_id]
    for step in range(1, 101):
        events.append(Event(f"e-{step}", job_id, step + 1, 5.0, "info", "Step", "metrics", {"step": step, "train_loss": 1.0 / step}))
    heading, *lines = cli.run("jobs", "metrics", job_id).stdout.splitlines()
    assert heading.split() == ["STEP", "TRAIN", "LOSS"]
    assert (lines[0].split(), lines[-1].split(), len(lines) <= 40) == (["1", "1"], ["100", "0.01"], True)
    assert cli.data("jobs", "metrics", job_id, "--after-step", "98")["data"]["step"] == [99, 100]
    table = cli.run("jobs", "metrics", job_id, "-o", "csv").stdout.splitlines()
    assert (len(table), table[0].split(",")[:2], table[2].split(",")[:2]) == (101, ["step", "train_loss"], ["2", "0.5"])


def test_get_shows_the_attempts(server: Served, cli: Cli, job_id: str) -> None:
    lost = Attempt(1, 100.0, 160.0, 0, 12, "lost", "worker_lost", "a worker died", "infrastructure", 3)
    server.app.jobs[job_id] = replace(
        server.app.jobs[job_id], attempts=(lost, Attempt(2, time.time(), None, 10, 14, None)), queue_position=2
    )
    shown = cli.run("jobs", "get", job_id).stdout
    assert "queue position" in shown
    heading, first, second = shown.partition("\nattempts\n")[2].splitlines()
    assert heading.split() == ["RUN", "STARTED", "TOOK", "STEPS", "OUTCOME", "WHY"]
    assert first.endswith("1m 00s  0 to 12   lost     worker_lost: a worker died (rank 3)")
    assert second.split()[-5:] == ["10", "to", "14", "goes", "on"]
