"""kill -9 in the middle of a run, then `tunesmith up`: the job succeeds with the very adapter of a run nobody touched."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from openai import OpenAI

from tests.e2e.stack import Stack, artifacts, at_step, ended, kill, processes_of, until
from tests.tiny_model import write_catalogue, write_tiny_model

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
TWEETS = Path(__file__).parents[2] / "examples" / "tweets"
ADAPTER = "adapter/adapter_model.safetensors"


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    scratch = tmp_path_factory.mktemp("kills")
    model = write_tiny_model(scratch / "tiny")
    env = {
        "TUNESMITH_CATALOGUE": str(write_catalogue(scratch / "catalogue.yaml", model)),
        "TUNESMITH_RETRY_BACKOFF": "PT0.5S",
        "TUNESMITH_MIN_FREE_BYTES": "0",
    }
    stack = Stack(scratch / "data", env)
    stack.command("models", "pull", "tiny")
    stack.up()
    yield stack
    stack.down()


def post(client: OpenAI, workers: int = 1) -> str:
    training = client.files.create(file=TWEETS / "tweets-train.jsonl", purpose="fine-tune")
    job = client.fine_tuning.jobs.create(
        model="tiny",
        training_file=training.id,
        seed=7,
        method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 12, "batch_size": 16}}},
        extra_body={
            "tunesmith": {
                "checkpoints": {"every_steps": 40},
                "adapter": {"dropout": 0.1},
                "resources": {"workers": workers, "cpus_per_worker": 1} if workers > 1 else {},
            }
        },
    )
    return job.id


@pytest.fixture(scope="module")
def undisturbed(stack: Stack) -> str:
    """The adapter's hash of a run that nobody touched."""
    client = stack.client()
    job = ended(client, post(client))
    assert job.status == "succeeded", job.error
    return artifacts(client, job.id)[ADAPTER]


def gateway(stack: Stack, job_id: str) -> list[int]:
    return [stack.status()["pids"]["gateway"]]


def ray_head(stack: Stack, job_id: str) -> list[int]:
    return list(stack.status()["pids"]["ray"])


def trainer(stack: Stack, job_id: str) -> list[int]:
    # The worker itself, not the driver that started it.
    return [p.pid for p in processes_of(f"{job_id}-1") if any("ray::" in part for part in p.cmdline())]


def everything(stack: Stack, job_id: str) -> list[int]:
    return gateway(stack, job_id) + ray_head(stack, job_id) + [p.pid for p in processes_of(f"{job_id}-1")]


def up_again(stack: Stack) -> bool:
    """As a user would; where the gateway lives, it brings its Ray head back by itself and refuses a second `up`."""
    return stack.command("up", "--detach", check=False).returncode == 0 or stack.status()["running"]


@pytest.mark.parametrize("victims", [gateway, ray_head, trainer, everything])
def test_11_a_killed_part_costs_nothing(stack: Stack, undisturbed: str, victims: Callable[[Stack, str], list[int]]) -> None:
    client = stack.client()
    job_id = post(client)
    at_step(client, job_id, 60)
    pids = victims(stack, job_id)
    assert pids
    kill(pids)
    if victims is not trainer:
        until("a stack that answers", lambda: up_again(stack), 240)
    client = stack.client()
    job = ended(client, job_id)
    assert job.status == "succeeded", (job.error, stack.log_tail())
    assert artifacts(client, job_id)[ADAPTER] == undisturbed
    attempts = job.model_extra["tunesmith"]["epoch"] if job.model_extra else 0
    assert attempts == (1 if victims is gateway else 2)
    for epoch in range(1, attempts + 1):
        until(f"the end of every process of run {epoch}", lambda epoch=epoch: not processes_of(f"{job_id}-{epoch}"), 30)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_paused_job_leaves_no_process_and_no_step_behind(stack: Stack, undisturbed: str, workers: int) -> None:
    client = stack.client(strict=False)  # the strict client does not know the status "paused"
    job_id = post(client, workers)
    at_step(client, job_id, 60)
    assert processes_of(f"{job_id}-1")
    client.fine_tuning.jobs.pause(job_id)
    until("the pause", lambda: client.fine_tuning.jobs.retrieve(job_id).status == "paused")
    assert processes_of(f"{job_id}-1") == [], "paused is said only when nothing is left"
    last = client.fine_tuning.jobs.checkpoints.list(job_id).data[0].step_number
    assert last >= 60
    client.fine_tuning.jobs.resume(job_id)
    job = ended(client, job_id)
    assert job.status == "succeeded", (job.error, stack.log_tail())
    assert (job.model_extra or {})["tunesmith"]["epoch"] == 2
    events = list(client.fine_tuning.jobs.list_events(job_id, limit=1000))[::-1]
    assert [event.data["step"] for event in events if event.type == "metrics" and isinstance(event.data, dict)] == list(range(1, 301))
    assert f"Fine-tuning resumed from step {last}" in [event.message for event in events]
    assert not [event for event in events if event.level != "info"], "nothing was killed"
    assert workers > 1 or artifacts(client, job_id)[ADAPTER] == undisturbed


def test_finished_jobs_stay_finished(stack: Stack, undisturbed: str) -> None:
    before = {job.id: job.status for job in stack.client().fine_tuning.jobs.list(limit=100)}
    kill(gateway(stack, "") + ray_head(stack, ""))
    stack.up()
    after = {job.id: job.status for job in stack.client().fine_tuning.jobs.list(limit=100)}
    assert after == before
    assert set(after.values()) == {"succeeded"}


def test_the_scheduler_killed_between_claim_and_launch(stack: Stack, undisturbed: str) -> None:
    """The gateway process holds the scheduler: killed while the run is being started, another adopts the run."""
    client = stack.client()
    job_id = post(client)

    def starting() -> bool:
        job = client.fine_tuning.jobs.retrieve(job_id)
        assert job.model_extra is not None
        return job.model_extra["tunesmith"]["phase"] == "starting"

    until("the claim", starting, pause=0.01)
    kill(gateway(stack, job_id))
    stack.up()
    client = stack.client()
    job = ended(client, job_id)
    assert job.status == "succeeded", (job.error, stack.log_tail())
    assert artifacts(client, job_id)[ADAPTER] == undisturbed
