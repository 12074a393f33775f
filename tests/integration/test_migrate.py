"""`tunesmith migrate openai`: a second whole gateway plays OpenAI, behind a proxy that counts what it is asked and breaks on demand."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import openai
import pytest
import structlog

from service.cli import chunked, migrate_plan, migrate_source
from service.runtime import Capacity
from tests.cli import Cli
from tests.fake_run import until
from tests.fault_proxy import Answer, FaultProxy, Passage, answer_lost, cut_after, fault_proxy, passed, refused
from tests.gateway import Gateway, running_gateway

TWEETS = Path(__file__).parents[2] / "examples" / "tweets"
JOBS = 4


class There(NamedTuple):
    """The source, as it was filled."""

    gateway: Gateway
    jobs: list[str]
    """Oldest first: resolved with validation, resolved by auto, cancelled, full metadata."""
    training: str
    validation: str
    unused: str


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Iterator[There]:
    with structlog.testing.capture_logs(), running_gateway(tmp_path_factory.mktemp("there")) as gateway:
        gateway.runtime.total = Capacity(cpus=1000, gpus=0, nodes=500)
        with gateway.client() as client:
            yield _filled(gateway, client)


def _filled(gateway: Gateway, client: openai.OpenAI) -> There:
    training, validation, unused = (
        client.files.create(file=(f"{name}.jsonl", (TWEETS / "tweets-test.jsonl").read_bytes() + b"\n" * blank), purpose="fine-tune").id
        for name, blank in (("a name", 0), ("valid", 1), ("unused", 2))
    )

    def job(**fields: Any) -> str:
        return client.fine_tuning.jobs.create(**({"model": "tiny", "training_file": training, "seed": 1} | fields)).id

    numbers = {"n_epochs": 2, "batch_size": 4, "learning_rate_multiplier": 1.5}
    method = {"type": "supervised", "supervised": {"hyperparameters": numbers}}
    jobs = [
        job(validation_file=validation, method=method, suffix="support", seed=42, metadata={"team": "search"}),
        job(),
        job(),
        job(metadata={f"key{n}": "x" for n in range(16)}),
    ]
    client.fine_tuning.jobs.cancel(jobs[2])
    listed = client.fine_tuning.jobs.list
    until("the checks", lambda: all(job.status == "cancelled" or job.hyperparameters.n_epochs != "auto" for job in listed()))
    return There(gateway, jobs, training, validation, unused)


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with structlog.testing.capture_logs(), running_gateway(tmp_path_factory.mktemp("here")) as gateway:
        yield gateway


@pytest.fixture
def proxy(there: There, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    """The way to the source; pages are of two."""
    monkeypatch.setattr(migrate_source, "PAGE", 2)
    with fault_proxy(there.gateway.url) as proxy:
        yield proxy


class Mover(NamedTuple):
    """The command of somebody who moves, in a project of its own here."""

    cli: Cli
    directory: Path
    proxy: FaultProxy
    client: openai.OpenAI

    def arguments(self, *more: str) -> list[str]:
        return ["migrate", "openai", "--from", self.proxy.endpoint, "--to", str(self.directory), *more]

    def data(self, *more: str) -> Any:
        return self.cli.data(*self.arguments(*more))

    def created(self) -> list[Any]:
        """The jobs here, oldest first."""
        return list(self.client.fine_tuning.jobs.list())[::-1]


@pytest.fixture
def mover(there: There, here: Gateway, proxy: FaultProxy, tmp_path: Path) -> Iterator[Mover]:
    key = tmp_path / "key"
    key.write_text(here.other_key())
    env = {"TUNESMITH_BASE_URL": here.url, "TUNESMITH_API_KEY_FILE": str(key), "TUNESMITH_DATA_DIR": str(tmp_path / "data")}
    with here.client(key.read_text()) as client:
        yield Mover(Cli(env | {"TUNESMITH_MIGRATE_KEY": there.gateway.key}), tmp_path / "moved", proxy, client)


def test_what_each_job_would_become(mover: Mover, there: There) -> None:
    data = mover.data("--model", "tiny")
    assert [job["job"] for job in data["jobs"]] == there.jobs[::-1]
    first, auto, cancelled, full = data["jobs"][::-1]
    numbers = {"n_epochs": 2, "batch_size": 4, "learning_rate_multiplier": 1.5}
    assert first["request"] == {
        "training_file": there.training,
        "model": "tiny",
        "validation_file": there.validation,
        "method": {"type": "supervised", "supervised": {"hyperparameters": numbers}},
        "suffix": "support",
        "seed": 42,
        "metadata": {"team": "search", "migrated_from": there.jobs[0]},
    }
    resolved = auto["request"]["method"]["supervised"]["hyperparameters"]
    assert all(isinstance(value, int | float) for value in resolved.values()), resolved
    assert (cancelled["moves"], cancelled["request"]) == (False, None)
    assert "it was cancelled there: name it with --jobs" in cancelled["why_not"]
    assert len(full["request"]["metadata"]) == 16
    assert "its metadata is full" in full["notes"][0]
    assert [f"it is {job['status']} there: it would be trained at both" in job["notes"] for job in (first, cancelled)] == [True, False]
    assert mover.created() == []


def test_files_come_byte_for_byte_and_once(mover: Mover, there: There) -> None:
    files = mover.data()["files"]
    assert sorted(file["id"] for file in files) == sorted([there.training, there.validation])
    with there.gateway.client() as client:
        for file in files:
            path = mover.directory / file["path"]
            assert path.read_bytes() == client.files.content(file["id"]).read()
    assert (mover.directory / "files" / there.training / "a name.jsonl").exists()
    before = len(mover.proxy.seen)
    again = mover.cli.run(*mover.arguments("--all-files"))
    assert f"downloaded {there.unused}" in again.stderr
    assert there.training not in again.stderr
    assert len(mover.proxy.seen) - before == 2 + 2 + 1  # pages of files, of jobs, and the one file
    assert set(mover.proxy.seen) == {"GET"}


def test_by_default_files_go_below_the_data_directory(mover: Mover, tmp_path: Path) -> None:
    found = mover.cli.data("migrate", "openai", "--from", mover.proxy.endpoint)
    assert Path(found["directory"]) == tmp_path / "data" / "migrate" / mover.proxy.endpoint.removeprefix("http://").replace(":", "-")
    assert all(job["request"].get("model") is None for job in found["jobs"] if job["moves"])


def test_created_once_however_often_it_runs(mover: Mover, there: There, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunked, "LARGE", 1000)
    create = ("--model", "tiny", "--create", "--yes")
    first = mover.data(*create)
    made = {job["job"]: job["here"] for job in first["jobs"]}
    jobs = mover.created()
    assert [job.id for job in jobs] == [made[job_id] for job_id in there.jobs if job_id != there.jobs[2]]
    assert made[there.jobs[2]] is None
    assert (jobs[0].seed, jobs[0].hyperparameters.n_epochs, jobs[0].metadata["migrated_from"]) == (42, 2, there.jobs[0])
    assert len({job.training_file for job in jobs}) == 1
    assert sorted(file.filename for file in mover.client.files.list()) == ["a name.jsonl", "valid.jsonl"]
    assert mover.data(*create) == first
    assert len(mover.created()) == JOBS - 1
    assert set(mover.proxy.seen) == {"GET"}


def test_without_its_ledger_it_makes_no_job_twice(mover: Mover) -> None:
    create = ("--model", "tiny", "--create", "--yes")
    first = mover.data(*create)
    shutil.rmtree(mover.directory)
    again = mover.cli.run(*mover.arguments(*create), "-o", "json", exit_code=1)
    assert "it was made here before" in again.stderr  # the one without room in its metadata
    assert len(mover.created()) == JOBS - 1
    told = {job["job"]: job["here"] for job in json.loads(again.stdout)["jobs"]}
    assert sum(told[job["job"]] == job["here"] for job in first["jobs"]) == JOBS - 1


def test_an_answer_that_was_lost_makes_no_second_job(mover: Mover, there: There) -> None:
    """Neither the ledger nor the metadata, which is full, tells of the job: only the key of the submission is left."""
    create = ("--model", "tiny", "--create", "--yes", "--jobs", there.jobs[3])
    first = mover.data(*create)
    ledger = mover.directory / "migration.json"
    told = json.loads(ledger.read_text())
    for here in told["here"].values():
        del here["jobs"]
    ledger.write_text(json.dumps(told))
    assert mover.data(*create) == first
    assert len(mover.created()) == 1


def test_a_cancelled_job_moves_when_it_is_named(mover: Mover, there: There) -> None:
    [job] = mover.data("--model", "tiny", "--create", "--yes", "--jobs", there.jobs[2])["jobs"]
    assert [made.id for made in mover.created()] == [job["here"]]


def test_it_asks(mover: Mover) -> None:
    no = mover.cli.run(*mover.arguments("--model", "tiny", "--create"), exit_code=1, text="n\n")
    assert f"Create these {JOBS - 1} jobs" in no.stderr
    assert "nothing was created" in no.stderr
    mover.cli.run(*mover.arguments("--model", "tiny", "--create"), exit_code=1, text="")
    assert (mover.created(), list(mover.client.files.list())) == ([], [])
    mover.cli.run(*mover.arguments("--model", "tiny", "--create"), text="y\n")
    assert len(mover.created()) == JOBS - 1


def gone(proxy: FaultProxy, after: int) -> None:
    """The source answers so many requests and then no more."""
    proxy.harm("GET", passed, times=after)
    proxy.harm("GET", refused, times=3)


def test_the_source_goes_away_between_files(mover: Mover, there: There) -> None:
    gone(mover.proxy, after=2 + 2 + 1)
    stopped = mover.cli.run(*mover.arguments(), exit_code=5)
    assert "does not answer" in stopped.stderr
    assert "The same command goes on where it stopped." in stopped.stderr
    [kept] = json.loads((mover.directory / "migration.json").read_text())["files"]
    mover.proxy.seen.clear()
    resumed = mover.cli.run(*mover.arguments())
    assert f"downloaded {kept}" not in resumed.stderr
    assert len(mover.proxy.seen) == 2 + 2 + 1


def test_the_service_goes_away_between_jobs(mover: Mover, here: Gateway) -> None:
    create = ("--model", "tiny", "--create", "--yes")
    with fault_proxy(here.url) as way:
        cli = Cli(mover.cli.env | {"TUNESMITH_BASE_URL": f"{way.endpoint}/v1"})
        way.harm("POST", passed, times=2 + 1)  # two files, and the first job
        way.harm("POST", refused, times=3)
        stopped = cli.run(*mover.arguments(*create), exit_code=5)
        assert "The same command goes on from there." in stopped.stderr
        assert len(mover.created()) == 1
        way.harm("POST", answer_lost)
        resumed = cli.data(*mover.arguments(*create))
    assert [job.id for job in mover.created()] == [job["here"] for job in resumed["jobs"][::-1] if job["here"]]
    assert len(mover.created()) == JOBS - 1
    assert len(list(mover.client.files.list())) == 2


def test_a_file_that_breaks_off_is_gone_on_with(mover: Mover, there: There, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(migrate_source, "PIECE", 1000)
    seen: list[Answer | None] = []

    def watched(passage: Passage) -> Answer | None:
        seen.append(passed(passage))
        return seen[-1]

    mover.proxy.harm("GET", passed, times=2 + 1)
    mover.proxy.harm("GET", cut_after(20_000))
    one = mover.arguments("--jobs", there.jobs[1])
    mover.cli.run(*one, exit_code=5)
    [partial] = (mover.directory / "files" / there.training).iterdir()
    assert (partial.name, partial.stat().st_size) == ("a name.jsonl.partial", 20_000)
    mover.proxy.harm("GET", passed, times=2 + 1)
    mover.proxy.harm("GET", watched)
    mover.cli.run(*one)
    [path] = (mover.directory / "files" / there.training).iterdir()
    assert path.read_bytes() == (TWEETS / "tweets-test.jsonl").read_bytes()
    assert seen[0] is not None
    assert (seen[0].status, len(seen[0].body)) == (206, path.stat().st_size - 20_000)


def changed(**fields: Any) -> Any:
    """A source whose answer says something else."""

    def fault(passage: Passage) -> Answer:
        answer = passage.forward(passage.body)
        told = json.loads(answer.body)
        told["data"] = [item | fields for item in told["data"]]
        answer.body = json.dumps(told).encode()
        return answer

    return fault


def test_a_file_of_another_size_is_thrown_away(mover: Mover) -> None:
    mover.proxy.harm("GET", changed(bytes=7), times=2)
    ended = mover.cli.run(*mover.arguments(), exit_code=1)
    assert "bytes instead of 7; they were thrown away" in ended.stderr
    assert [path for path in mover.directory.rglob("*") if path.is_file()] == []


def test_a_file_can_not_leave_the_directory(mover: Mover) -> None:
    mover.proxy.harm("GET", changed(filename="../../../../out"), times=2)
    mover.cli.run(*mover.arguments())
    assert [path.name for path in mover.directory.parent.rglob("out")] == ["out", "out"]
    assert all(path.is_relative_to(mover.directory / "files") for path in mover.directory.parent.rglob("out"))


def answering(status: int, body: object, kind: str = "application/json") -> Any:
    text = body if isinstance(body, str) else json.dumps(body)
    return lambda _: Answer(status, [("Content-Type", kind)], text.encode())


def test_files_that_are_gone(mover: Mover, there: There) -> None:
    mover.proxy.harm("GET", answering(200, {"object": "list", "data": [], "has_more": False}))
    found = mover.data("--model", "tiny")["jobs"]
    assert {job["why_not"] for job in found} == {f"its training file {there.training} can't be had there any more"}


def test_a_validation_file_that_is_gone_is_left_out(mover: Mover, there: There) -> None:
    def without(passage: Passage) -> Answer:
        answer = passage.forward(passage.body)
        told = json.loads(answer.body)
        told["data"] = [file for file in told["data"] if file["id"] != there.validation]
        answer.body = json.dumps(told).encode()
        return answer

    mover.proxy.harm("GET", without, times=2)
    first = mover.data("--model", "tiny")["jobs"][-1]
    assert (first["moves"], "validation_file" in first["request"]) == (True, False)
    assert first["notes"][0] == f"its validation file {there.validation} can't be had there any more and is left out"


def test_a_file_that_is_not_handed_out(mover: Mover, there: There) -> None:
    mover.proxy.harm("GET", passed, times=2 + 1)
    mover.proxy.harm("GET", answering(400, {"error": {"message": "downloading is disabled for free accounts"}}))
    told = mover.cli.run(*mover.arguments("--jobs", there.jobs[1]))
    assert f"{there.training} is not handed out: downloading is disabled for free accounts" in told.stderr


@pytest.mark.parametrize(
    ("status", "body", "exit_code", "told"),
    [
        (401, {"error": {"message": "Incorrect API key provided"}}, 4, "refuses the key: Incorrect API key provided"),
        (404, "<html>", 5, "not as OpenAI's API does"),
        (200, "<html>", 5, "not as OpenAI's API does"),
        (200, "{", 5, "not as OpenAI's API does"),
        (200, {"object": "something"}, 5, "not as OpenAI's API does"),
        (403, {"error": {"message": "You have insufficient permissions"}}, 4, "The key was read from TUNESMITH_MIGRATE_KEY"),
    ],
)
def test_what_the_source_refuses(mover: Mover, status: int, body: object, exit_code: int, told: str) -> None:
    mover.proxy.harm("GET", answering(status, body, "text/html" if body == "<html>" else "application/json"))
    ended = mover.cli.run(*mover.arguments(), exit_code=exit_code)
    assert told in ended.stderr
    assert "error: " in ended.stderr


def test_a_wrong_key_and_no_key(mover: Mover, tmp_path: Path, there: There) -> None:
    wrong = tmp_path / "wrong"
    wrong.write_text("ts_wrong\n")
    assert str(wrong) in mover.cli.run(*mover.arguments("--key-file", str(wrong)), exit_code=4).stderr
    none = Cli(mover.cli.env | {"TUNESMITH_MIGRATE_KEY": ""})
    assert "there is no API key for the source" in none.run(*mover.arguments(), exit_code=4).stderr
    shown = mover.cli.run(*mover.arguments())
    assert there.gateway.key not in shown.output + (mover.directory / "migration.json").read_text()


def test_no_jobs_and_no_such_job(mover: Mover, there: There, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.write_text(there.gateway.other_key())
    assert "there are no fine-tuning jobs" in mover.cli.run(*mover.arguments("--key-file", str(empty)), exit_code=3).stderr
    assert "ftjob-nobody" in mover.cli.run(*mover.arguments("--jobs", "ftjob-nobody"), exit_code=3).stderr


def test_wrong_use(mover: Mover, tmp_path: Path) -> None:
    assert "--create needs a base model" in mover.cli.run(*mover.arguments("--create"), exit_code=2).stderr
    mover.cli.run(*mover.arguments("--create", "--model", "nobody"), exit_code=3)
    assert mover.proxy.seen == []
    mover.cli.run("migrate", "openai", "--from", "nowhere", exit_code=2)
    mover.cli.run(*mover.arguments())
    other = ["migrate", "openai", "--from", "http://127.0.0.1:9", "--to", mover.directory]
    assert "Name another directory with --to" in mover.cli.run(*other, exit_code=2).stderr
    (mover.directory / "migration.json").write_text("{")
    assert "is damaged" in mover.cli.run(*mover.arguments(), exit_code=1).stderr


def openais(**fields: Any) -> dict[str, Any]:
    """A job as OpenAI lists it."""
    job = {"id": "ftjob-x", "status": "succeeded", "model": "gpt-4o-mini-2024-07-18", "training_file": "file-a", "seed": 3}
    return job | {"hyperparameters": {"n_epochs": 3, "batch_size": 1, "learning_rate_multiplier": 1.8}} | fields


@pytest.mark.parametrize(
    ("method", "why_not"),
    [("dpo", "preference tuning (dpo)"), ("reinforcement", "its grader steers nothing"), ("new", "the method 'new' is not offered")],
)
def test_methods_that_are_not_offered(method: str, why_not: str) -> None:
    assert why_not in migrate_plan.plan(openais(method={"type": method}), "tiny", ["file-a"], named=True).why_not


def test_what_has_other_bounds_here() -> None:
    numbers = {"n_epochs": 99, "batch_size": 1, "learning_rate_multiplier": 1.8}
    job = openais(
        hyperparameters=numbers, fine_tuned_model="ft:gpt-4o-mini-2024-07-18:org:my suffix!:AbC", integrations=[{"type": "wandb"}]
    )
    move = migrate_plan.plan(job, "tiny", ["file-a"], named=False)
    hyperparameters = move.request["method"]["supervised"]["hyperparameters"]
    assert (move.why_not, hyperparameters) == ("", numbers | {"n_epochs": "auto"})
    assert move.request["suffix"] == "my-suffix-"
    assert len(move.notes) == 3
    assert "is out of bounds here" in migrate_plan.plan(openais(hyperparameters=numbers), "tiny", ["file-a"], named=False).notes[0]


def test_what_the_service_would_refuse_is_told_before() -> None:
    assert "seed" in migrate_plan.plan(openais(seed=-1), "tiny", ["file-a"], named=False).why_not
