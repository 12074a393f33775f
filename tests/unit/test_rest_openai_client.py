"""What the official client sees, strict, of things in every state; all of its calls are in tests/contract/test_official_client.py."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace

import openai
import pytest

from service.jobs import Event, Job, JobError, JobStatus, Progress, checkpoint_model_name
from service.records import Checkpoint, Model
from tests.fakes import API_KEY, BASE_MODEL, OTHER_KEY
from tests.rest_server import Served, served
from trainers.spec import Resolved

ROWS = b'{"messages": []}\n'


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(tmp_path_factory.mktemp("data")) as running:
        yield running


@pytest.fixture
def client(server: Served) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=API_KEY, _strict_response_validation=True, max_retries=0) as client:
        yield client


def create(client: openai.OpenAI, **fields: object) -> str:
    file = client.files.create(file=("train.jsonl", ROWS), purpose="fine-tune")
    return client.fine_tuning.jobs.create(model=BASE_MODEL, training_file=file.id, **fields).id  # type: ignore[arg-type]


def change(server: Served, job_id: str, **fields: object) -> Job:
    server.app.jobs[job_id] = replace(server.app.jobs[job_id], **fields)  # type: ignore[arg-type]
    return server.app.jobs[job_id]


def test_file_life(client: openai.OpenAI) -> None:
    file = client.files.create(file=("train.jsonl", ROWS * 1000), purpose="fine-tune")
    assert (file.object, file.bytes, file.filename, file.purpose) == ("file", len(ROWS) * 1000, "train.jsonl", "fine-tune")
    assert client.files.retrieve(file.id) == file
    assert client.files.content(file.id).read() == ROWS * 1000
    assert client.files.wait_for_processing(file.id).status == "processed"
    assert client.files.delete(file.id).deleted
    with pytest.raises(openai.NotFoundError) as error:
        client.files.retrieve(file.id)
    assert error.value.code == "file_not_found"
    assert error.value.request_id


def test_files_page_both_ways(client: openai.OpenAI) -> None:
    made = [client.files.create(file=(f"{n}.jsonl", ROWS), purpose="fine-tune").id for n in range(5)]
    newest_first = [file.id for file in itertools.islice(client.files.list(limit=2), 5)]
    assert newest_first == made[::-1]
    oldest_first = [file.id for file in client.files.list(limit=2, order="asc", purpose="fine-tune", after=made[1])]
    assert oldest_first == made[2:]


def test_job_as_created(client: openai.OpenAI) -> None:
    file = client.files.create(file=("train.jsonl", ROWS), purpose="fine-tune")
    job = client.fine_tuning.jobs.create(
        model=BASE_MODEL,
        training_file=file.id,
        validation_file=file.id,
        suffix="tweets",
        seed=42,
        metadata={"team": "a"},
        method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2}}},
        extra_body={"tunesmith": {"adapter": {"r": 8}, "priority": 5}},
    )
    assert (job.status, job.model, job.seed, job.metadata) == ("validating_files", BASE_MODEL, 42, {"team": "a"})
    assert (job.error, job.fine_tuned_model, job.finished_at, job.estimated_finish, job.trained_tokens) == (None,) * 5
    assert job.hyperparameters.n_epochs == 2
    assert job.hyperparameters.batch_size == "auto"
    assert job.method is not None
    assert job.method.supervised is not None
    assert job.method.supervised.hyperparameters is not None
    assert job.method.supervised.hyperparameters.n_epochs == 2
    assert job.model_extra is not None
    ours = job.model_extra["tunesmith"]
    assert (ours["phase"], ours["adapter"]["r"], ours["adapter"]["alpha"], ours["priority"]) == ("validating", 8, 32, 5)
    assert job.model_extra["user_provided_suffix"] == "tweets"
    assert client.fine_tuning.jobs.retrieve(job.id) == job


def test_job_while_it_runs(server: Served, client: openai.OpenAI) -> None:
    job_id = create(client)
    resolved = Resolved(n_epochs=3, batch_size=8, learning_rate_multiplier=1.5, learning_rate=3e-4, engine="torch", steps=60)
    progress = Progress(stage="training", step=10, total_steps=60, loss=1.25, eta_seconds=100)
    change(server, job_id, status=JobStatus.RUNNING, resolved=resolved, progress=progress, epoch=2, started_at=5.5)
    job = client.fine_tuning.jobs.retrieve(job_id)
    assert job.status == "running"
    assert (job.hyperparameters.n_epochs, job.hyperparameters.batch_size, job.hyperparameters.learning_rate_multiplier) == (3, 8, 1.5)
    assert job.estimated_finish is not None
    assert job.estimated_finish > job.created_at + 90
    assert job.model_extra is not None
    ours = job.model_extra["tunesmith"]
    assert (ours["epoch"], ours["progress"]["step"], ours["resolved"]["steps"], ours["started_at"]) == (2, 10, 60, 5)


def test_job_that_failed(server: Served, client: openai.OpenAI) -> None:
    job_id = create(client)
    report = {"errors": [{"line": 3, "rule": "role"}]}
    error = JobError(code="invalid_training_file", message="Line 3: …", param="training_file", cause="data", details={"report": report})
    change(server, job_id, status=JobStatus.FAILED, error=error, tuned_model="never")
    job = client.fine_tuning.jobs.retrieve(job_id)
    assert job.status == "failed"
    assert job.error is not None
    assert (job.error.code, job.error.param) == ("invalid_training_file", "training_file")
    assert job.fine_tuned_model is None
    assert job.model_extra is not None
    place = {"hint": "", "rank": None, "node": "", "last_good_step": None}
    assert job.model_extra["tunesmith"]["error"] == {"cause": "data", "details": {"report": report}} | place


def test_every_phase_passes_strict_validation(server: Served, client: openai.OpenAI) -> None:
    job_id = create(client)
    for phase in JobStatus:
        change(server, job_id, status=phase)
        if phase is not JobStatus.PAUSED:  # OpenAI's API has this status, their client's types do not
            assert client.fine_tuning.jobs.retrieve(job_id).id == job_id


def test_jobs_page_and_filter(client: openai.OpenAI) -> None:
    made = [create(client, metadata={"run": "page", "n": str(n)}) for n in range(5)]
    assert [job.id for job in client.fine_tuning.jobs.list(limit=2, metadata={"run": "page"})] == made[::-1]
    assert [job.id for job in client.fine_tuning.jobs.list(metadata={"run": "page", "n": "3"})] == [made[3]]
    after = client.fine_tuning.jobs.list(limit=2, after=made[2], metadata={"run": "page"})
    assert [job.id for job in after.data] == [made[1], made[0]]
    assert after.has_more is False


def test_cancel(client: openai.OpenAI) -> None:
    job_id = create(client)
    assert client.fine_tuning.jobs.cancel(job_id).status == "cancelled"
    with pytest.raises(openai.BadRequestError):
        client.fine_tuning.jobs.cancel(job_id)


def test_events(server: Served, client: openai.OpenAI) -> None:
    job_id = create(client)
    server.app.events[job_id] += [
        Event(f"ftevent-{n}", job_id, n, 100.7, "info", f"Step {n}", "metrics", {"step": n, "train_loss": float("nan")})
        for n in range(2, 8)
    ]
    events = list(client.fine_tuning.jobs.list_events(job_id, limit=3))
    assert [event.message for event in events[:-1]] == [f"Step {n}" for n in range(7, 1, -1)]
    assert (events[0].type, events[0].created_at, events[0].data) == ("metrics", 100, {"step": 7, "train_loss": None})
    assert (events[-1].type, events[-1].data) == ("message", {})
    oldest_first = client.fine_tuning.jobs.list_events(job_id, limit=3, extra_query={"order": "asc"})
    assert [event.id for event in oldest_first] == [event.id for event in reversed(events)]


def test_checkpoints(server: Served, client: openai.OpenAI) -> None:
    job_id = create(client)
    job = server.app.finish(job_id, {})
    assert job.tuned_model
    for step in (20, 40, 60):
        name = checkpoint_model_name(job.tuned_model, step, 60)
        metrics = {"train_loss": 1.5, "valid_loss": float("inf"), "grad_norm": 2.0}
        server.app.checkpoints[job_id].append(Checkpoint(f"ftckpt_{step}", job_id, 1, step, 9.5, "p", name, metrics))
    checkpoints = list(client.fine_tuning.jobs.checkpoints.list(job_id, limit=2))
    assert [c.step_number for c in checkpoints] == [60, 40, 20]
    assert checkpoints[0].fine_tuned_model_checkpoint == client.fine_tuning.jobs.retrieve(job_id).fine_tuned_model
    assert checkpoints[1].fine_tuned_model_checkpoint == f"{job.tuned_model}:ckpt-step-40"
    assert (checkpoints[0].metrics.step, checkpoints[0].metrics.train_loss, checkpoints[0].metrics.valid_loss) == (60, 1.5, None)
    first = client.fine_tuning.jobs.checkpoints.list(job_id, limit=2)
    assert first.model_extra == {"first_id": "ftckpt_60", "last_id": "ftckpt_40", **(first.model_extra or {})}


def test_models(server: Served, client: openai.OpenAI) -> None:
    job = server.app.finish(create(client, suffix="mine"), {})
    assert job.tuned_model
    assert {BASE_MODEL, job.tuned_model} <= {model.id for model in client.models.list()}
    tuned = client.models.retrieve(job.tuned_model)
    assert (tuned.object, tuned.owned_by) == ("model", "org_1")
    assert client.models.delete(job.tuned_model).deleted
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve(job.tuned_model)
    with pytest.raises(openai.PermissionDeniedError):
        client.models.delete(BASE_MODEL)


def test_model_names_with_slashes(server: Served, client: openai.OpenAI) -> None:
    name = "ft:Org/Base-1.5:org::x"
    server.app.models[name] = Model(name, 1.0, "org", "ftjob-1", None)
    assert client.models.retrieve(name).id == name
    assert client.models.delete(name).id == name


def test_errors_as_the_client_sees_them(server: Served, client: openai.OpenAI) -> None:
    with pytest.raises(openai.AuthenticationError) as unknown:
        client.with_options(api_key="wrong").models.list()
    assert unknown.value.code == "invalid_api_key"
    with pytest.raises(openai.BadRequestError) as bad:
        create(client, hyperparameters={"n_epochs": 51})
    assert bad.value.param == "hyperparameters.n_epochs"
    job_id = create(client)
    with pytest.raises(openai.NotFoundError) as foreign:
        client.with_options(api_key=OTHER_KEY).fine_tuning.jobs.retrieve(job_id)
    with pytest.raises(openai.NotFoundError) as missing:
        client.fine_tuning.jobs.retrieve("ftjob-0000")
    assert str(foreign.value).replace(job_id, "ftjob-0000") == str(missing.value)


def test_a_retry_of_the_client_makes_no_twin(server: Served, client: openai.OpenAI) -> None:
    file = client.files.create(file=("train.jsonl", ROWS), purpose="fine-tune")

    def post(**headers: str) -> str:
        return client.fine_tuning.jobs.create(model=BASE_MODEL, training_file=file.id, extra_headers=headers).id

    first = post()
    assert post(**{"x-stainless-retry-count": "1"}) == first
    assert post() != first
    keyed = post(**{"Idempotency-Key": "k"})
    assert post(**{"Idempotency-Key": "k"}) == keyed
    with pytest.raises(openai.BadRequestError):
        post(**{"Idempotency-Key": "k" * 256})
