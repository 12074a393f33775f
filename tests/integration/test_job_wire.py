"""Jobs as the unmodified official client sees them, strict, sync and async: lists, filters, events, pausing, integrations."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI, OpenAI

from service.runtime import Capacity
from tests.fake_run import FakeRun, in_phase, until
from tests.gateway import Gateway, running_gateway

TWEETS = Path(__file__).parents[2] / "examples" / "tweets"
WANDB = {"type": "wandb", "wandb": {"project": "tweets", "tags": ["a"]}}


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with running_gateway(tmp_path_factory.mktemp("gateway"), wandb_enabled=True) as running:
        running.runtime.total = Capacity(cpus=1000, gpus=0, nodes=500)
        yield running


@pytest.fixture
def client(gateway: Gateway) -> OpenAI:
    return gateway.client()


@pytest.fixture
async def aclient(gateway: Gateway) -> AsyncIterator[AsyncOpenAI]:
    async with gateway.aclient() as client:
        yield client


@pytest.fixture(scope="module")
def file(gateway: Gateway) -> str:
    return gateway.client().files.create(file=TWEETS / "tweets-test.jsonl", purpose="fine-tune").id


def method(**hyperparameters: object) -> dict[str, Any]:
    return {"type": "supervised", "supervised": {"hyperparameters": hyperparameters}}


def create(client: OpenAI, file: str, **fields: Any) -> str:
    return client.fine_tuning.jobs.create(**({"model": "tiny", "training_file": file, "seed": 1} | fields)).id


async def test_jobs_page_and_filter_in_both_clients(client: OpenAI, aclient: AsyncOpenAI, file: str) -> None:
    made = [create(client, file, metadata={"test": "pages", "n": str(n)}) for n in range(5)]
    jobs = client.fine_tuning.jobs
    assert [job.id for job in jobs.list(limit=2, metadata={"test": "pages"})] == made[::-1]
    assert [job.id async for job in aclient.fine_tuning.jobs.list(limit=2, metadata={"test": "pages"})] == made[::-1]
    assert [job.id for job in jobs.list(metadata={"test": "pages", "n": "3"})] == [made[3]]
    assert [job.id for job in jobs.list(metadata={"test": "page"})] == []
    first = jobs.list(limit=2, metadata={"test": "pages"})
    assert (len(first.data), first.has_more) == (2, True)
    for job_id in made:
        jobs.cancel(job_id)
    until("the end of all", lambda: {job.status for job in jobs.list(metadata={"test": "pages"})} == {"cancelled"})


def test_jobs_without_metadata(gateway: Gateway, client: OpenAI, file: str) -> None:
    bare = {create(client, file), create(client, file, metadata={}), create(client, file, metadata=None)}
    tagged = create(client, file, metadata={"null": "null"})
    with gateway.http() as http:
        listed = http.get("/v1/fine_tuning/jobs?metadata=null&limit=100").json()
        assert bare <= {job["id"] for job in listed["data"]}
        assert {repr(job["metadata"]) for job in listed["data"]} == {"None"}
        page = http.get(f"/v1/fine_tuning/jobs?metadata=null&limit=1&after={listed['data'][0]['id']}").json()
        assert page["data"][0]["id"] == listed["data"][1]["id"]
        for query in ("metadata=", "metadata=none", "metadata=null&metadata[a]=b"):
            assert http.get(f"/v1/fine_tuning/jobs?{query}").status_code == 400
        for key in ('"', "a.b", "$", "]", "'", "\\", "*", "a b", "%25", "💥"):
            answer = http.get("/v1/fine_tuning/jobs", params={f"metadata[{key}]": "x"})
            assert (answer.status_code, answer.json()["data"]) == (200, []), key
    for job_id in (*bare, tagged):
        client.fine_tuning.jobs.cancel(job_id)


@pytest.mark.parametrize("limit", ["0", "-1", "x", "1001"])
def test_limits_have_bounds(gateway: Gateway, limit: str) -> None:
    with gateway.http() as http:
        answer = http.get(f"/v1/fine_tuning/jobs?limit={limit}")
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "limit")


def test_what_the_client_may_send_for_a_method(client: OpenAI, file: str) -> None:
    blocks = {"dpo": {"hyperparameters": {"beta": 0}}, "reinforcement": {"grader": 3, "nobody": "knows"}}
    given = method(n_epochs=2) | blocks
    job = client.fine_tuning.jobs.create(model="tiny", training_file=file, method=given, hyperparameters={"batch_size": 4})  # type: ignore[arg-type]
    assert (job.hyperparameters.n_epochs, job.hyperparameters.batch_size) == (2, 4)
    assert (job.error, job.estimated_finish, job.integrations, job.metadata) == (None, None, [], None)
    assert job.method is not None
    assert (job.method.type, job.method.dpo, job.method.reinforcement) == ("supervised", None, None)
    client.fine_tuning.jobs.cancel(job.id)
    with pytest.raises(openai.BadRequestError, match="Unknown method"):
        create(client, file, method={"type": "nothing", "supervised": "is ignored"})


def test_integrations_are_echoed_in_openais_shape(gateway: Gateway, client: OpenAI, file: str) -> None:
    job = client.fine_tuning.jobs.create(model="tiny", training_file=file, integrations=[WANDB, WANDB])  # type: ignore[list-item]
    assert job.integrations is not None
    assert [(i.type, i.wandb.project, i.wandb.tags, i.wandb.name) for i in job.integrations] == [("wandb", "tweets", ["a"], None)] * 2
    assert client.fine_tuning.jobs.retrieve(job.id).integrations == job.integrations
    assert [i.wandb.project for i in FakeRun.of(gateway, job.id).spec.integrations] == ["tweets"] * 2


def test_integrations_are_refused_where_nobody_set_them_up(tmp_path: Path) -> None:
    with running_gateway(tmp_path) as gateway:
        client = gateway.client()
        file = client.files.create(file=TWEETS / "tweets-test.jsonl", purpose="fine-tune").id
        with pytest.raises(openai.BadRequestError, match="TUNESMITH_WANDB_ENABLED") as refusal:
            create(client, file, integrations=[WANDB])
        assert refusal.value.param == "integrations"
        create(client, file, integrations=[])


def started(gateway: Gateway, client: OpenAI, file: str) -> FakeRun:
    """A run of four steps that is evaluated at the second and the last."""
    ours = {"evaluation": {"every_steps": 2}, "checkpoints": {"every_steps": 2}}
    job_id = create(client, file, validation_file=file, method=method(n_epochs=1, batch_size=50), extra_body={"tunesmith": ours})
    run = FakeRun.of(gateway, job_id)
    assert run.spec.resolved.steps == 4
    run.start()
    return run


async def test_the_events_of_a_job_are_openais(gateway: Gateway, client: OpenAI, aclient: AsyncOpenAI, file: str) -> None:
    run = started(gateway, client, file)
    job_id = run.spec.job_id
    for step in range(1, 5):
        run.step(step)
        assert client.fine_tuning.jobs.retrieve(job_id).model_extra["tunesmith"]["progress"]["step"] == step  # type: ignore[index]
        if step % 2 == 0:
            run.evaluate(step)
            run.checkpoint(step)
    job = client.fine_tuning.jobs.retrieve(job_id)
    assert job.estimated_finish is not None
    run.finish()
    model = in_phase(client, job_id, "succeeded")["fine_tuned_model"]
    events = list(client.fine_tuning.jobs.list_events(job_id, limit=3))[::-1]
    assert [event.message for event in events] == [
        f"Created fine-tuning job: {job_id}",
        f"Validating training file: {file} and validation file: {file}",
        "Files validated, moving job to queued state",
        "Fine-tuning job started",
        "Step 1/4: training loss=0.50",
        "Step 2/4: training loss=0.50, validation loss=0.25, full validation loss=0.25",
        f"Checkpoint created at step 2 with Snapshot ID: {model}:ckpt-step-2",
        "Step 3/4: training loss=0.50",
        "Step 4/4: training loss=0.50, validation loss=0.25, full validation loss=0.25",
        f"Checkpoint created at step 4 with Snapshot ID: {model}",
        f"New fine-tuned model created: {model}",
        "The job has successfully completed",
    ]
    assert {event.level for event in events} == {"info"}
    assert [event.type for event in events] == ["message"] * 4 + ["metrics"] * 2 + ["message"] + ["metrics"] * 2 + ["message"] * 3
    last = events[8].data
    assert isinstance(last, dict)
    assert {"step": 4, "total_steps": 4, "train_loss": 0.5, "train_mean_token_accuracy": 0.75, "valid_loss": 0.25}.items() <= last.items()
    assert (last["valid_mean_token_accuracy"], last["full_valid_loss"], last["full_valid_mean_token_accuracy"]) == (0.5, 0.25, 0.5)
    assert [event async for event in aclient.fine_tuning.jobs.list_events(job_id, limit=5)] == events[::-1]
    checkpoints = [checkpoint async for checkpoint in aclient.fine_tuning.jobs.checkpoints.list(job_id, limit=1)]
    assert checkpoints == list(client.fine_tuning.jobs.checkpoints.list(job_id, limit=1))
    assert [c.step_number for c in checkpoints] == [4, 2]
    assert [c.fine_tuned_model_checkpoint for c in checkpoints] == [model, f"{model}:ckpt-step-2"]
    metrics = checkpoints[1].metrics
    assert (metrics.step, metrics.train_loss, metrics.valid_loss, metrics.full_valid_mean_token_accuracy) == (2, 0.5, 0.25, 0.5)
    done = client.fine_tuning.jobs.retrieve(job_id)
    assert (done.status, done.error, done.estimated_finish, done.trained_tokens) == ("succeeded", None, None, 256)


def test_a_step_is_told_though_its_evaluation_never_comes(gateway: Gateway, client: OpenAI, file: str) -> None:
    run = started(gateway, client, file)
    run.step(1)
    run.step(2, loss=float("nan"))
    run.step(3)
    newest = client.fine_tuning.jobs.list_events(run.spec.job_id, limit=2).data
    assert [event.message for event in newest] == ["Step 3/4: training loss=0.50", "Step 2/4: training loss=nan"]
    run.step(4)
    run.finish()
    in_phase(client, run.spec.job_id, "succeeded")
    assert "Step 4/4: training loss=0.50" in [event.message for event in client.fine_tuning.jobs.list_events(run.spec.job_id)]


async def test_pause_and_resume_through_the_client(gateway: Gateway, client: OpenAI, aclient: AsyncOpenAI, file: str) -> None:
    run = started(gateway, client, file)
    job_id = run.spec.job_id
    assert client.fine_tuning.jobs.pause(job_id).status == "running"
    assert (await aclient.fine_tuning.jobs.pause(job_id)).status == "running"
    run.step(1)
    run.checkpoint(1)
    run.leave()
    assert in_phase(client, job_id, "paused")["status"] == "paused"
    with pytest.raises(openai.APIResponseValidationError):  # OpenAI's API has the status, the strict client's types do not
        client.fine_tuning.jobs.retrieve(job_id)
    assert gateway.client(strict=False).fine_tuning.jobs.pause(job_id).status == "paused"
    assert client.fine_tuning.jobs.resume(job_id).status == "queued"
    again = FakeRun.of(gateway, job_id, epoch=2)
    assert again.spec.resume_from == [f"{run.spec.run_prefix}/checkpoints/step-1"]
    again.start(resumed_step=1)
    with pytest.raises(openai.BadRequestError, match="only a paused job can be resumed"):
        await aclient.fine_tuning.jobs.resume(job_id)
    again.finish()
    in_phase(client, job_id, "succeeded")
    with pytest.raises(openai.BadRequestError, match="can no longer be paused"):
        client.fine_tuning.jobs.pause(job_id)
