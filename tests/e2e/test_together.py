"""All parts of a deployment at once: two gateways with a scheduler each, PostgreSQL, SeaweedFS, and a Ray cluster of a head and two nodes.

A node, a gateway and the head are killed under jobs that train, and a gateway is restarted in order, while clients follow them.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from openai import OpenAI

from service.store import tables as t
from tests.e2e.stack import Stack, artifacts, until
from tests.e2e.together import Doors, Follower, end_gateway, state_of
from tests.ray_cluster import RayCluster, ray_cluster
from tests.seaweed import SeaweedFS
from tests.soundness import assert_manifests, assert_one_end, assert_untold, rows
from tests.tiny_model import write_catalogue, write_tiny_model
from trainers import manifest
from trainers.spec import RunSpec, model_prefix, run_prefix
from trainers.storage import Storage, open_storage

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
TWEETS = Path(__file__).parents[2] / "examples" / "tweets"
ADAPTER = "adapter/adapter_model.safetensors"
PASSWORD = "not-to-be-told"
"""The database asks for none and takes any."""
PATIENCE = 300
"""Seconds that anything may take on a machine that does much else."""
CHECKPOINT = 5
GANG_EPOCHS, ALONE_EPOCHS = 24, 12
"""Of 13 steps: neither job is through before its last fault, be the machine idle or busy."""


@dataclass
class Deployment:
    """The parts, and what of them must not be told."""

    stacks: list[Stack]
    doors: Doors
    cluster: RayCluster
    database: str
    storage: Storage
    secrets: set[str] = field(default_factory=set[str])

    def job(self, job_id: str) -> Any:
        """The job's row."""
        (row,) = rows(self.database, sa.select(t.jobs).where(t.jobs.c.id == job_id))
        return row

    def note_tokens(self) -> None:
        """Remember what runs prove themselves by; a job that succeeded leaves none."""
        self.secrets |= {self.storage.get(info.key).decode() for info in self.storage.list("runs/") if info.key.endswith("/token")}

    def launcher(self, job_id: str, epoch: int) -> Stack:
        """Whose scheduler has launched this run."""
        spec = RunSpec.model_validate_json(self.storage.get(f"{run_prefix(job_id, epoch)}/spec.json"))
        return next(stack for stack in self.stacks if state_of(stack).grpc_address == spec.report_address)


@pytest.fixture
def deployment(tmp_path: Path, postgres_url: str, s3_url: str, seaweed: SeaweedFS) -> Iterator[Deployment]:
    with ExitStack() as stack:
        cluster = stack.enter_context(ray_cluster(placement_seconds=60))
        for _ in range(2):
            cluster.add_node(2)
        catalogue = write_catalogue(tmp_path / "catalogue.yaml", write_tiny_model(tmp_path / "tiny"))
        environment = {
            "TUNESMITH_CATALOGUE": str(catalogue),
            "TUNESMITH_DATABASE_URL": postgres_url.replace("postgres@", f"postgres:{PASSWORD}@"),
            "TUNESMITH_STORAGE_URL": s3_url,
            "TUNESMITH_RAY_ADDRESS": cluster.url,
            "TUNESMITH_RAY_TOKEN": cluster.address.token or "",
            "TUNESMITH_HEARTBEAT": "PT1S",
            "TUNESMITH_LEASE_TTL": "PT4S",
            "TUNESMITH_RETRY_BACKOFF": "PT0.5S",
            "TUNESMITH_MIN_FREE_BYTES": "0",
        }
        stacks = [Stack(tmp_path / name, environment) for name in ("one", "two")]
        stacks[0].command("models", "pull", "tiny")
        for one in stacks:
            stack.callback(one.down)
            one.up()
        doors = Doors(stacks)
        doors.open()
        secrets = {PASSWORD, seaweed.secret_key, cluster.address.token or "", *(client.api_key for client in doors.clients)}
        yield Deployment(stacks, doors, cluster, postgres_url, open_storage(s3_url), secrets)


def post(client: OpenAI, seed: int, epochs: int, resources: dict[str, Any]) -> str:
    training = client.files.create(file=TWEETS / "tweets-train.jsonl", purpose="fine-tune")
    job = client.fine_tuning.jobs.create(
        model="tiny",
        training_file=training.id,
        seed=seed,
        method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": epochs, "batch_size": 32}}},
        extra_body={
            "tunesmith": {
                "checkpoints": {"every_steps": CHECKPOINT},
                "adapter": {"dropout": 0.1},
                "resources": {"cpus_per_worker": 1, **resources},
            }
        },
    )
    return job.id


def ours(client: OpenAI, job_id: str) -> dict[str, Any]:
    extra = client.fine_tuning.jobs.retrieve(job_id).model_extra
    assert extra is not None
    return extra["tunesmith"]


def trains(deployment: Deployment, job_id: str, epoch: int, steps: int) -> int:
    """Wait until this run or a later one has done so many steps; its number."""

    def there() -> int:
        job = deployment.doors.ask(lambda client: ours(client, job_id))
        assert job["phase"] not in ("succeeded", "failed", "cancelled"), f"{job_id} is {job['phase']} too early ({job['error']})"
        attempt = job["attempts"][-1] if job["attempts"] else None
        far = attempt and attempt["epoch"] >= epoch and attempt["last_step"] - (attempt["resumed_step"] or 0) >= steps
        return attempt["epoch"] if far and job["phase"] == "running" else 0

    return until(f"step {steps} of run {epoch} of {job_id}", there, PATIENCE, pause=0.1)


def succeeds(deployment: Deployment, job_id: str) -> None:
    """Wait for it."""

    def there() -> bool:
        job = deployment.doors.ask(lambda client: client.fine_tuning.jobs.retrieve(job_id))
        assert job.status not in ("failed", "cancelled"), job.error
        return job.status == "succeeded"

    until(f"the end of {job_id}", there, PATIENCE, pause=0.5)


def lose_a_node(deployment: Deployment, gang: str) -> None:
    """The gang's first run can't outlive it, and waits until there are two nodes again."""
    deployment.cluster.kill_node(2)
    until("the end of the first run", lambda: deployment.doors.ask(lambda client: ours(client, gang))["attempts"][0]["outcome"], PATIENCE)
    deployment.cluster.add_node(2)


def lose_a_gateway(deployment: Deployment, gang: str, run: int) -> tuple[str, Stack]:
    """The one that has launched the gang's run. Gives a job that was posted while it was away, and the other, which had to take it."""
    victim = deployment.launcher(gang, run)
    (other,) = (stack for stack in deployment.stacks if stack is not victim)
    end_and_take_over(deployment, gang, victim, signal.SIGKILL)
    alone = deployment.doors.ask(lambda client: post(client, 9, ALONE_EPOCHS, {}))
    victim.up()
    return alone, other


def restart_a_gateway(deployment: Deployment, gang: str, stack: Stack) -> str:
    """As an update does. Gives a job that was posted while it was away."""
    end_and_take_over(deployment, gang, stack, signal.SIGTERM)
    late = deployment.doors.ask(lambda client: post(client, 10, 1, {}))
    stack.up()
    return late


def end_and_take_over(deployment: Deployment, gang: str, stack: Stack, number: signal.Signals) -> None:
    """Its leases go to the other gateway: at once when it ends in order, else when they have run out."""
    owner = deployment.job(gang).lease_owner
    end_gateway(stack, number)
    until("another owner", lambda: deployment.job(gang).lease_owner not in (owner, None), PATIENCE)


def lose_the_head(deployment: Deployment) -> None:
    """All that Ray knew is gone, and the nodes leave with it."""
    deployment.cluster.kill_node(0)
    deployment.cluster.restart_head()
    for _ in range(2):
        deployment.cluster.add_node(2)


def test_nothing_is_lost_when_everything_is_lost_in_turn(deployment: Deployment) -> None:
    doors = deployment.doors
    gang = doors.ask(lambda client: post(client, 7, GANG_EPOCHS, {"workers": 2, "placement": "strict_spread"}))
    early = doors.ask(lambda client: post(client, 8, 4, {}))
    followers = {job_id: Follower(doors, job_id) for job_id in (gang, early)}
    try:
        for job_id in (gang, early):
            trains(deployment, job_id, 1, CHECKPOINT + 1)
        deployment.note_tokens()
        lose_a_node(deployment, gang)
        run = trains(deployment, gang, 2, 1)
        alone, other = lose_a_gateway(deployment, gang, run)
        late = restart_a_gateway(deployment, gang, other)
        followers |= {job_id: Follower(doors, job_id) for job_id in (alone, late)}
        trains(deployment, alone, 1, CHECKPOINT + 1)
        assert trains(deployment, gang, run, 2) == run, "no gateway's end costs a run"
        deployment.note_tokens()
        lose_the_head(deployment)
        untouched = doors.ask(lambda client: post(client, 9, ALONE_EPOCHS, {}))
        for job_id in (*followers, untouched):
            succeeds(deployment, job_id)
        for follower in followers.values():
            follower.end()
    finally:
        for follower in followers.values():
            follower.leave()
    assert_heard(deployment, followers)
    assert followers[gang].connected > 1, "whichever gateway it listened to has gone once"
    assert_sound(deployment, [*followers, untouched])
    assert_resumed(deployment, gang, 2)
    assert_resumed(deployment, alone, 1)
    assert deployment.job(untouched).epoch == 1
    assert published(deployment, alone)[ADAPTER] == published(deployment, untouched)[ADAPTER]


def assert_heard(deployment: Deployment, followers: dict[str, Follower]) -> None:
    """Whoever follows a job hears every event once and in order, through whichever gateway."""
    for job_id, follower in followers.items():
        last = deployment.job(job_id).event_seq
        assert follower.heard == list(range(1, last + 1))
        assert follower.status == "succeeded"
        assert follower.answers <= {200, 503}


def assert_sound(deployment: Deployment, jobs: list[str]) -> None:
    """See tests/soundness.py; and the artifacts are the manifest's, nothing lives of any run, no log tells a secret."""
    for job_id in jobs:
        job = deployment.job(job_id)
        assert_one_end(deployment.database, job)
        whole = manifest.read(deployment.storage, model_prefix(job_id, job.epoch))
        assert published(deployment, job_id) == {entry.name: entry.sha256 for entry in whole.files}
        for epoch in range(1, job.epoch + 1):
            run_id = f"{job_id}-{epoch}"
            until(f"the end of every process of {run_id}", lambda run_id=run_id: not deployment.cluster.processes(run_id), 60)
    assert_manifests(deployment.storage)
    logs = [path for stack in deployment.stacks for path in (stack.data_dir / "logs").iterdir()]
    assert_untold(deployment.secrets, logs)
    unforeseen = ("scheduler_error", "driver_error", "gateway_failed")
    assert not [line for path in logs for line in path.read_text().splitlines() if any(word in line for word in unforeseen)]


def assert_resumed(deployment: Deployment, job_id: str, losses: int) -> None:
    """Each run but the last was lost to the infrastructure, at last to the head's end, and the last went on from a checkpoint."""
    *lost, last = deployment.doors.ask(lambda client: ours(client, job_id))["attempts"]
    assert len(lost) >= losses
    assert {attempt["cause"] for attempt in lost} == {"infrastructure"}, lost
    assert all(attempt["message"] for attempt in lost)
    assert any("its head was started anew" in attempt["message"] for attempt in lost), lost
    assert last["resumed_step"] >= CHECKPOINT


def published(deployment: Deployment, job_id: str) -> dict[str, str]:
    """sha256 of each published file by its name."""
    return deployment.doors.ask(lambda client: artifacts(client, job_id))
