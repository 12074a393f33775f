"""One contract, three surfaces: each scenario is written once, acts through one surface, and what it left is asked of all three.

Each scenario has a project of its own, so that lists hold nothing else.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import httpx
import pytest

from service.runtime import Capacity
from tests.contract.surfaces import Surfaces, surfaces
from tests.contract.vocabulary import Refusal, Surface
from tests.fake_run import PUBLISHED, FakeRun, until
from tests.gateway import MODEL, Gateway, running_gateway

ROWS = b'{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}\n' * 12
PROJECTS = "/v1/organization/projects"


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    graces = {"cancel_grace": timedelta(seconds=1), "pause_grace": timedelta(seconds=0.2), "heartbeat": timedelta(seconds=0.5)}
    with running_gateway(tmp_path_factory.mktemp("contract"), cpu_gflops=50, **graces) as running:
        running.runtime.total = Capacity(cpus=64, gpus=0, nodes=32)
        yield running


@pytest.fixture(params=["app", "rest", "rpc"])
def surface(request: pytest.FixtureRequest) -> str:
    """Name of the surface that a scenario acts through."""
    return request.param


asked_of_all = pytest.mark.parametrize("surface", ["app"], indirect=True)
"""For a scenario that asks everything of all three, and so is run once."""


@dataclass
class Project:
    """A scenario's own project, seen with one key."""

    gateway: Gateway
    id: str
    all: Surfaces
    acting: Surface
    others: list[Any] = field(default_factory=list)

    def seen_with(self, *scopes: str) -> Surfaces:
        """All surfaces with another key of this project."""
        return self._opened(self.id, *scopes)

    def of_a_stranger(self) -> Surfaces:
        """All surfaces with a key of another project."""
        return self._opened(made(self.gateway, PROJECTS, name="stranger")["id"], "read", "write")

    def _opened(self, project_id: str, *scopes: str) -> Surfaces:
        opened = surfaces(self.gateway, key(self.gateway, project_id, *scopes))
        self.others.append(opened)
        return opened.__enter__()


@pytest.fixture
def project(gateway: Gateway, surface: str, request: pytest.FixtureRequest) -> Iterator[Project]:
    """A new project, with the quotas of the test's `quotas` mark where it has one."""
    quotas = getattr(request.function, "quotas", {})
    project_id = made(gateway, PROJECTS, name="scenario", tunesmith={"quotas": quotas})["id"]
    with surfaces(gateway, key(gateway, project_id, "read", "write")) as three:
        project = Project(gateway, project_id, three, three.named(surface))
        yield project
        for opened in project.others:
            opened.__exit__(None, None, None)


def made(gateway: Gateway, path: str, **body: Any) -> dict[str, Any]:
    with gateway.http() as admin:
        answer: httpx.Response = admin.post(path, json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def key(gateway: Gateway, project_id: str, *scopes: str) -> str:
    return made(gateway, f"{PROJECTS}/{project_id}/api_keys", name="ci", scopes=scopes)["value"]


@dataclass
class Run(FakeRun):
    """A run of a scenario's job: the first key, with which a FakeRun asks, does not see it."""

    project: Project = field(init=False)

    def until_is(self, status: str) -> None:
        reaches(self.project, self.spec.job_id, status)


def run_of(project: Project, job_id: str, epoch: int = 1) -> Run:
    """The run, once the scheduler has launched it; its workers are up."""
    run = Run.of(project.gateway, job_id, epoch)
    assert isinstance(run, Run)
    run.project = project
    run.start(resumed_step=epoch - 1)
    return run


def with_quotas(**quotas: int) -> Callable[[Any], Any]:
    """Of the project that a scenario gets."""

    def mark(scenario: Any) -> Any:
        scenario.quotas = quotas
        return scenario

    return mark


def refused(ask: Callable[[], object]) -> Refusal:
    with pytest.raises(Refusal) as caught:
        ask()
    return caught.value


def job(file_id: str, **more: Any) -> dict[str, Any]:
    return {"model": MODEL, "training_file": file_id, **more}


def reaches(project: Project, job_id: str, phase: str) -> None:
    until(f"{job_id} {phase}", lambda: project.acting.job(job_id).phase == phase)


def test_the_life_of_a_job(project: Project) -> None:
    acting = project.acting
    file = acting.upload(ROWS)
    asked = job(
        file.id,
        suffix="mine",
        seed=7,
        metadata={"team": "a"},
        method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2}}},
        tunesmith={"adapter": {"r": 8}, "training": {"schedule": "linear"}},
    )
    created = acting.create(asked)
    assert (created.phase, created.suffix, created.seed, created.metadata, created.r) == ("validating", "mine", 7, {"team": "a"}, 8)
    run = run_of(project, created.id)
    run.step(1, 2.5)
    run.checkpoint(1)
    assert project.all.agree(lambda s: s.job(created.id)).phase == "running"
    run.finish()
    done = project.all.agree(lambda s: s.job(created.id))
    assert (done.phase, done.epochs, done.epoch, done.outcomes, done.error) == ("succeeded", 2, 1, ("succeeded",), None)
    assert (done.tuned_model or "").startswith(f"ft:{MODEL}:")
    assert "mine" in (done.tuned_model or "")
    assert (done.trained_tokens, len(done.result_files)) == (256, 1)
    events = project.all.agree(lambda s: s.watch(created.id))
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    assert events[0].message == f"Created fine-tuning job: {created.id}"
    assert [event.data["train_loss"] for event in events if event.type == "metrics"] == [2.5]
    assert {event.level for event in events} == {"info"}
    [checkpoint] = project.all.agree(lambda s: s.checkpoints(created.id)).items
    assert (checkpoint.step, checkpoint.train_loss) == (1, 2.5)
    assert project.all.agree(lambda s: s.download(done.result_files[0])) == PUBLISHED["metrics.csv"]


def test_artifacts_their_hashes_and_a_model_that_is_deleted(project: Project) -> None:
    acting = project.acting
    job_id = acting.create(job(acting.upload(ROWS).id)).id
    run = run_of(project, job_id)
    early = refused(lambda: project.all.agree(lambda s: s.artifacts(job_id)))
    assert (early.kind, early.param) == ("invalid", "fine_tuning_job_id")
    run.finish()
    listed = {a.name: (a.bytes, a.sha256) for a in project.all.agree(lambda s: s.artifacts(job_id))}
    assert listed == {name: (len(data), hashlib.sha256(data).hexdigest()) for name, data in PUBLISHED.items()}
    for name, data in PUBLISHED.items():
        assert project.all.agree(lambda s, name=name: s.artifact(job_id, name)) == data
    assert refused(lambda: project.all.agree(lambda s: s.artifact(job_id, "nothing"))).kind == "missing"
    name = acting.job(job_id).tuned_model or ""
    found = project.all.agree(lambda s: s.model(name))
    assert (found.job_id, found.base_model) == (job_id, None)
    assert {MODEL, name} == {model.id for model in project.all.agree(lambda s: s.models())}
    acting.delete_model(name)
    gone = refused(lambda: project.all.agree(lambda s: s.model(name)))
    assert gone == Refusal("missing", "model_not_found", f"No such model: '{name}'", "model")
    assert refused(lambda: acting.delete_model(name)) == gone
    assert refused(lambda: project.all.agree(lambda s: s.artifacts(job_id))).code == "model_not_found"
    assert project.all.agree(lambda s: s.job(job_id)).phase == "succeeded"
    base = refused(lambda: acting.delete_model(MODEL))
    assert base == Refusal("forbidden", "permission_denied", f"'{MODEL}' is a base model; only tuned models can be deleted.", "model")


def test_a_file_goes_up_and_comes_down(project: Project) -> None:
    data = bytes(range(256)) * 5000
    file = project.acting.upload(data, filename="a.jsonl")
    assert (file.filename, file.purpose, file.bytes) == ("a.jsonl", "fine-tune", len(data))
    assert project.all.agree(lambda s: s.file(file.id)) == file
    assert project.all.agree(lambda s: s.download(file.id)) == data
    wrong = refused(lambda: project.acting.upload(data, purpose="vision"))
    assert wrong == Refusal(
        "invalid", "invalid_request", "Files of this purpose are of no use here; 'purpose' must be fine-tune.", "purpose"
    )


def page_of(surface: Surface, listed: str, **asked: Any) -> tuple[list[str], bool]:
    """Ids alone: a job's phase may change between two surfaces."""
    page = getattr(surface, listed)(**asked)
    return [item.id for item in page.items], page.has_more


@with_quotas(running_jobs=0)
def test_paging(project: Project) -> None:
    acting = project.acting
    files = [acting.upload(ROWS, filename=f"{n}.jsonl").id for n in range(3)]
    made = [acting.create(job(files[0], metadata={"n": str(n % 2)})).id for n in range(3)]
    for listed, ids in (("files", files), ("jobs", made)):
        assert project.all.agree(lambda s, listed=listed: page_of(s, listed, limit=2)) == (ids[:0:-1], True)
        assert project.all.agree(lambda s, listed=listed, after=ids[1]: page_of(s, listed, limit=2, after=after)) == (ids[:1], False)
        with_nothing = refused(lambda listed=listed: project.all.agree(lambda s: page_of(s, listed, after="nothing")))
        message = "'after' names nothing in this list; pass the id of the last item you have."
        assert with_nothing == Refusal("invalid", "invalid_request", message, "after")
    assert project.all.agree(lambda s: page_of(s, "jobs", metadata={"n": "1"})) == ([made[1]], False)


@with_quotas(running_jobs=0)
def test_cancelling_twice(project: Project) -> None:
    acting = project.acting
    job_id = acting.create(job(acting.upload(ROWS).id)).id
    assert acting.cancel(job_id).phase == "cancelled"
    message = "The job is cancelled already and can no longer be cancelled."
    again = refused(lambda: project.all.agree(lambda s: s.cancel(job_id)))
    assert again == Refusal("invalid", "invalid_request", message, "fine_tuning_job_id")
    assert [event.message for event in project.all.agree(lambda s: s.watch(job_id))][-1] == "The job has been cancelled"


def test_a_running_job_is_cancelled_when_its_processes_are_gone(project: Project) -> None:
    acting = project.acting
    job_id = acting.create(job(acting.upload(ROWS).id)).id
    run_of(project, job_id)
    assert [acting.cancel(job_id).phase, acting.cancel(job_id).phase] == ["cancelling", "cancelling"]
    reaches(project, job_id, "cancelled")
    assert project.all.agree(lambda s: s.job(job_id)).outcomes == ("stopped",)


@with_quotas(running_jobs=0)
def test_pausing_and_resuming_while_it_waits(project: Project) -> None:
    acting = project.acting
    job_id = acting.create(job(acting.upload(ROWS).id)).id
    reaches(project, job_id, "queued")
    assert [acting.pause(job_id).phase, acting.pause(job_id).phase] == ["paused", "paused"]
    assert acting.resume(job_id).phase == "queued"
    message = "The job is queued; only a paused job can be resumed."
    again = refused(lambda: project.all.agree(lambda s: s.resume(job_id)))
    assert again == Refusal("invalid", "invalid_request", message, "fine_tuning_job_id")
    acting.cancel(job_id)
    late = refused(lambda: project.all.agree(lambda s: s.pause(job_id)))
    assert late.message == "The job is cancelled and can no longer be paused."


def test_pausing_and_resuming_while_it_runs(project: Project) -> None:
    acting = project.acting
    job_id = acting.create(job(acting.upload(ROWS).id)).id
    run = run_of(project, job_id)
    run.step(1)
    run.checkpoint(1)
    assert acting.pause(job_id).phase == "pausing"
    reaches(project, job_id, "paused")
    assert acting.resume(job_id).phase == "queued"
    run_of(project, job_id, epoch=2).finish()
    done = project.all.agree(lambda s: s.job(job_id))
    assert (done.phase, done.epoch, done.outcomes) == ("succeeded", 2, ("stopped", "succeeded"))


NAMED: dict[str, Callable[[Surface, str], object]] = {
    "file": lambda s, name: s.file(name),
    "download": lambda s, name: s.download(name),
    "delete a file": lambda s, name: s.delete_file(name),
    "check": lambda s, name: s.check(name, model=MODEL),
    "train on": lambda s, name: s.create(job(name)),
    "validate on": lambda s, name: s.create(job(name, validation_file=name)),
    "estimate": lambda s, name: s.estimate(job(name)),
    "job": lambda s, name: s.job(name),
    "cancel": lambda s, name: s.cancel(name),
    "pause": lambda s, name: s.pause(name),
    "resume": lambda s, name: s.resume(name),
    "watch": lambda s, name: s.watch(name),
    "checkpoints": lambda s, name: s.checkpoints(name),
    "artifacts": lambda s, name: s.artifacts(name),
    "artifact": lambda s, name: s.artifact(name, "metrics.csv"),
    "model": lambda s, name: s.model(name),
    "delete a model": lambda s, name: s.delete_model(name),
}
"""Everything that names a thing."""
FILES = ("file", "download", "delete a file", "check", "train on", "validate on", "estimate")
TUNED = ("model", "delete a model")


@asked_of_all
def test_foreign_ids_are_unknown_ids(project: Project) -> None:
    acting = project.acting
    file = acting.upload(ROWS).id
    job_id = acting.create(job(file)).id
    run = run_of(project, job_id)
    run.finish()
    model = acting.job(job_id).tuned_model or ""
    stranger = project.of_a_stranger()
    for name, ask in NAMED.items():
        foreign = file if name in FILES else model if name in TUNED else job_id
        unknown = foreign[:-1] + ("0" if foreign[-1] != "0" else "1")
        said = refused(lambda ask=ask, foreign=foreign: stranger.agree(lambda s: ask(s, foreign)))
        missing = refused(lambda ask=ask, unknown=unknown: stranger.agree(lambda s: ask(s, unknown)))
        assert said.kind == ("invalid" if name in ("train on", "validate on", "estimate") else "missing"), name
        assert said.message.replace(foreign, "X") == missing.message.replace(unknown, "X"), name
        assert (said.kind, said.code, said.param) == (missing.kind, missing.code, missing.param), name
    assert project.all.agree(lambda s: s.job(job_id)).phase == "succeeded"


@with_quotas(running_jobs=0)
def test_an_idempotency_key_makes_one_job(project: Project) -> None:
    acting = project.acting
    body = job(acting.upload(ROWS).id, seed=1)
    first = acting.create(body, key="k-1")
    assert project.all.agree(lambda s: s.create(body, key="k-1").id) == first.id
    other = refused(lambda: project.all.agree(lambda s: s.create(body | {"seed": 2}, key="k-1")))
    message = "This Idempotency-Key was used with another request body; take a new key."
    assert other == Refusal("invalid", "invalid_request", message, "Idempotency-Key")
    assert acting.create(body).id != first.id
    assert len(project.all.agree(lambda s: page_of(s, "jobs"))[0]) == 2


def supervised(**hyperparameters: Any) -> dict[str, Any]:
    return {"method": {"type": "supervised", "supervised": {"hyperparameters": hyperparameters}}}


WRONG: list[tuple[dict[str, Any], str, str]] = [
    ({"model": "nobody/knows"}, "model", "is not in the catalogue"),
    ({"training_file": "file-none"}, "training_file", "No such file: 'file-none'"),
    ({"suffix": "not a suffix"}, "suffix", "matching"),
    ({"seed": 2**31}, "seed", "an integer from 0 to 2147483647"),
    ({"metadata": {"k": "x" * 513}}, "metadata.k", "at most 512"),
    ({"metadata": {str(n): "x" for n in range(17)}}, "metadata", "at most 16 entries"),
    ({"method": {"type": "magic"}}, "method.type", "Unknown method 'magic'"),
    (supervised(n_epochs=51), "method.supervised.hyperparameters.n_epochs", "an integer from 1 to 50, not 51"),
    (supervised(batch_size=0), "method.supervised.hyperparameters.batch_size", "from 1 to 256, not 0"),
    ({"tunesmith": {"adapter": {"r": 513}}}, "tunesmith.adapter.r", "an integer from 1 to 512, not 513"),
    ({"tunesmith": {"adapter": {"target_modules": ["no_such"]}}}, "tunesmith.adapter.target_modules", "no_such"),
    ({"tunesmith": {"training": {"learning_rate": 2.0}}}, "tunesmith.training.learning_rate", "above 0 and at most 1"),
    ({"tunesmith": {"training": {"max_length": 131072}}}, "tunesmith.training.max_length", ""),
    ({"tunesmith": {"evaluation": {"early_stopping": {"patience": 0}}}}, "tunesmith.evaluation.early_stopping.patience", "an integer"),
    ({"tunesmith": {"data": {"mapping": {"prompt": "a"}}}}, "tunesmith.data.mapping", ""),
    ({"tunesmith": {"priority": 101}}, "tunesmith.priority", "from -100 to 100, not 101"),
]


@asked_of_all
def test_wrong_settings_are_refused_at_their_field(project: Project) -> None:
    file_id = project.acting.upload(ROWS).id
    for fields, param, words in WRONG:
        said = refused(lambda fields=fields: project.all.agree(lambda s: s.create(job(file_id) | fields)))
        assert (said.kind, said.param) == ("invalid", param), fields
        assert words in said.message
        assert refused(lambda fields=fields: project.all.agree(lambda s: s.estimate(job(file_id) | fields))) == said
    assert project.all.agree(lambda s: s.jobs()).items == []


def test_a_deleted_file(project: Project) -> None:
    acting = project.acting
    file_id = acting.upload(ROWS).id
    acting.delete_file(file_id)
    gone = Refusal("missing", "file_not_found", f"No such file: '{file_id}'", "file_id")
    for ask in (lambda s: s.file(file_id), lambda s: s.download(file_id), lambda s: s.delete_file(file_id)):
        assert refused(lambda ask=ask: project.all.agree(ask)) == gone
    unusable = refused(lambda: project.all.agree(lambda s: s.create(job(file_id))))
    assert unusable == Refusal("invalid", "invalid_training_file", f"No such file: '{file_id}'", "training_file")
    assert project.all.agree(lambda s: s.files()).items == []


@with_quotas(stored_bytes=len(ROWS), queued_jobs=1, running_jobs=0)
def test_a_quota_that_is_used_up(project: Project) -> None:
    acting = project.acting
    file_id = acting.upload(ROWS).id
    full = refused(lambda: project.all.agree(lambda s: s.upload(ROWS)))
    assert (full.kind, full.code, full.param) == ("exhausted", "quota_exceeded", "stored_bytes")
    assert f"{len(ROWS)} of {len(ROWS)} bytes are stored" in full.message
    job_id = acting.create(job(file_id)).id
    waiting = refused(lambda: project.all.agree(lambda s: s.create(job(file_id))))
    assert (waiting.kind, waiting.code, waiting.param) == ("exhausted", "quota_exceeded", "queued_jobs")
    assert "1 of 1 jobs wait already" in waiting.message
    acting.cancel(job_id)
    assert acting.create(job(file_id)).id != job_id


@with_quotas(requests_per_minute=1)
def test_a_request_rate_that_is_used_up(project: Project) -> None:
    project.acting.models()
    late = refused(project.acting.models)
    assert (late.kind, late.code, late.param) == ("exhausted", "rate_limit_exceeded", "requests_per_minute")


@asked_of_all
def test_a_key_that_may_only_read(project: Project) -> None:
    acting = project.acting
    file_id = acting.upload(ROWS).id
    job_id = acting.create(job(file_id)).id
    reader = project.seen_with("read")
    writes: list[Callable[[Surface], object]] = [
        lambda s: s.upload(ROWS),
        lambda s: s.delete_file(file_id),
        lambda s: s.create(job(file_id)),
        lambda s: s.cancel(job_id),
        lambda s: s.pause(job_id),
        lambda s: s.resume(job_id),
        lambda s: s.estimate(job(file_id)),
        lambda s: s.check(file_id, model=MODEL),
        lambda s: s.delete_model(MODEL),
    ]
    for write in writes:
        said = refused(lambda write=write: reader.agree(write))
        assert said == Refusal("forbidden", "permission_denied", "This API key lacks the scope 'write'.", None)
    assert reader.agree(lambda s: s.file(file_id).id) == file_id
    assert reader.agree(lambda s: s.job(job_id).id) == job_id
    writer = project.seen_with("write")
    said = refused(lambda: writer.agree(lambda s: s.job(job_id)))
    assert said == Refusal("forbidden", "permission_denied", "This API key lacks the scope 'read'.", None)
    acting.cancel(job_id)


@asked_of_all
def test_estimates_of_good_and_of_faulty_data(project: Project) -> None:
    acting = project.acting
    good, bad = acting.upload(ROWS).id, acting.upload(ROWS + b"{\n").id
    found = project.all.agree(lambda s: s.estimate(job(good)))
    assert (found.ok, found.training.rows, found.fits) == (True, 12, True)
    assert (found.steps or 0) > 0
    assert (found.memory or 0) > 0
    assert (found.trained_tokens or 0) % found.training.trained_tokens == 0
    faulty = project.all.agree(lambda s: s.estimate(job(bad)))
    assert (faulty.ok, faulty.steps, faulty.memory, faulty.fits) == (False, None, None, None)
    assert [(fault.line, fault.rule) for fault in faulty.training.faults] == [(13, "bad_json")]
    report = project.all.agree(lambda s: s.check(bad, model=MODEL))
    assert report == faulty.training
    assert project.all.agree(lambda s: s.jobs()).items == []
    failed = acting.create(job(bad)).id
    reaches(project, failed, "failed")
    error = project.all.agree(lambda s: s.job(failed)).error
    assert error is not None
    assert (error.code, error.param, error.cause, error.faults) == ("invalid_training_file", "training_file", "data", report.faults)
