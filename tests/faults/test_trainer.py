"""What befalls a run, one test for each row of the table in README.md: real ranks over gloo, a real gateway, no Ray."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.fake_run import until
from tests.gateway import Gateway, running_gateway
from tests.rank_runtime import RankRuntime
from trainers import manifest
from trainers.spec import model_prefix

TWEETS = Path(__file__).parents[2] / "examples" / "tweets" / "tweets-train.jsonl"
ADAPTER = "adapter/adapter_model.safetensors"
POLL = 0.2
"""Seconds between two looks: the ranks need the processor more."""


@dataclass
class Cluster:
    """A gateway and its runs."""

    gateway: Gateway
    runtime: RankRuntime
    training: str

    def post(self, *, engine: str = "torch", dropout: float = 0.1, **suffer: Any) -> str:
        """A job on two workers, whose ranks suffer that."""
        self.runtime.environment = {"SUFFER": json.dumps(suffer)}
        job = self.gateway.client(strict=False).fine_tuning.jobs.create(
            model="tiny",
            training_file=self.training,
            seed=7,
            method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 4, "batch_size": 8}}},
            extra_body={
                "tunesmith": {
                    "checkpoints": {"every_steps": 4},
                    "adapter": {"r": 4, "dropout": dropout},
                    "resources": {"workers": 2, "cpus_per_worker": 1, "engine": engine},
                }
            },
        )
        return job.id

    def job(self, job_id: str) -> dict[str, Any]:
        """The job on the wire."""
        with self.gateway.http() as http:
            return http.get(f"/v1/fine_tuning/jobs/{job_id}").json()

    def at_step(self, job_id: str, step: int) -> None:
        """Wait until the first run has reported that step."""

        def there() -> bool:
            time.sleep(POLL)
            return self.job(job_id)["tunesmith"]["progress"]["step"] >= step

        until(f"step {step}", there, 120)

    def ended(self, job_id: str) -> dict[str, Any]:
        """The job, once it has succeeded or failed."""

        def over() -> dict[str, Any] | None:
            time.sleep(POLL)
            job = self.job(job_id)
            return job if job["status"] in ("succeeded", "failed", "cancelled") else None

        return until(f"the end of {job_id}", over, 120)

    def adapter(self, job: dict[str, Any]) -> str:
        """Hash of what the job published."""
        assert job["status"] == "succeeded", (job["error"], [self.runtime.log(run) for run in self.runtime.ranks if job["id"] in run])
        prefix = model_prefix(job["id"], job["tunesmith"]["epoch"])
        return manifest.read(self.gateway.parts.storage, prefix).sha256_of(ADAPTER)

    def losses(self, job: dict[str, Any]) -> list[float]:
        """Of each step, where it was done twice the later one's."""
        assert job["status"] == "succeeded", (job["error"], [self.runtime.log(run) for run in self.runtime.ranks if job["id"] in run])
        with self.gateway.http() as http:
            data = http.get(f"/v1/fine_tuning/jobs/{job['id']}/metrics").json()["data"]
        assert data["step"] == list(range(1, 13))
        return data["train_loss"]

    def events(self, job_id: str) -> list[str]:
        """Its history, first to last."""
        return [e.message for e in self.gateway.client(strict=False).fine_tuning.jobs.list_events(job_id, limit=100)][::-1]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    directory = tmp_path_factory.mktemp("cluster")
    runtime = RankRuntime(directory=directory)
    settings = {"retry_backoff": "PT0.1S", "heartbeat": "PT0.5S", "run_silence": "PT6S"}
    with running_gateway(directory, runtime=runtime, **settings) as gateway:
        rows = b"".join(TWEETS.read_bytes().splitlines(keepends=True)[:24])
        training = gateway.client().files.create(file=("train.jsonl", rows), purpose="fine-tune")
        yield Cluster(gateway, runtime, training.id)
    runtime.end()


@pytest.fixture(scope="module")
def undisturbed(cluster: Cluster) -> str:
    """The adapter of a job that nothing befell."""
    return cluster.adapter(cluster.ended(cluster.post()))


def killed(cluster: Cluster, rank: int) -> dict[str, Any]:
    """A job whose first run lost that rank in a step."""
    job_id = cluster.post(pause=0.2)
    cluster.at_step(job_id, 5)
    until("a checkpoint", lambda: any(message.startswith("Checkpoint created") for message in cluster.events(job_id)))
    cluster.runtime.kill(f"{job_id}-1", rank)
    job = cluster.ended(job_id)
    first, second = job["tunesmith"]["attempts"]
    assert (first["code"], first["cause"]) == ("worker_lost", "infrastructure")
    # A checkpoint that was written and not told any more is adopted, see row 9.
    assert second["resumed_step"] >= first["last_good_step"] >= 4
    return job


def test_06_rank_0_killed_in_a_step_costs_nothing(cluster: Cluster, undisturbed: str) -> None:
    assert cluster.adapter(killed(cluster, 0)) == undisturbed


def test_07_rank_1_killed_in_a_collective_costs_nothing_and_is_named(cluster: Cluster, undisturbed: str) -> None:
    """The step is one forward pass and the collective; rank 0 waits in it as soon as rank 1 is gone."""
    job = killed(cluster, 1)
    assert cluster.adapter(job) == undisturbed
    first = job["tunesmith"]["attempts"][0]
    assert first["rank"] == 1
    assert first["node"]
    assert f"rank 1 on {first['node']} is gone" in first["message"]


def test_12_a_run_that_slept_past_its_end_writes_nothing_more(cluster: Cluster, undisturbed: str) -> None:
    job_id = cluster.post(pause=0.2)
    cluster.at_step(job_id, 5)
    cluster.runtime.cut_off.add(f"{job_id}-1")
    cluster.runtime.kill(f"{job_id}-1", number=signal.SIGSTOP)
    job = cluster.ended(job_id)
    assert cluster.adapter(job) == undisturbed
    assert job["tunesmith"]["attempts"][0]["code"] == "worker_lost"
    before = [info.key for info in cluster.gateway.parts.storage.list(f"models/{job_id}/")]
    cluster.runtime.kill(f"{job_id}-1", number=signal.SIGCONT)
    assert cluster.runtime.ranks[f"{job_id}-1"][0].wait(60) == 3, "asked to leave, not failed"
    assert [info.key for info in cluster.gateway.parts.storage.list(f"models/{job_id}/")] == before
    assert cluster.job(job_id)["tunesmith"]["epoch"] == 2


def test_14_a_rank_that_hangs_is_named(cluster: Cluster, undisturbed: str) -> None:
    job_id = cluster.post(pause=0.2, floor=4.0)
    cluster.at_step(job_id, 5)
    cluster.runtime.kill(f"{job_id}-1", 1, number=signal.SIGSTOP)
    job = cluster.ended(job_id)
    assert cluster.adapter(job) == undisturbed
    first = job["tunesmith"]["attempts"][0]
    assert (first["code"], first["cause"], first["rank"]) == ("run_stuck", "infrastructure", 1)
    assert f"rank 1 on {first['node']} did not get on" in first["message"]
    assert cluster.runtime.ranks[f"{job_id}-1"][1].poll() is not None, "the rank that hung is gone"


def test_16_sigterm_costs_a_checkpoint_and_no_retry(cluster: Cluster, undisturbed: str) -> None:
    job_id = cluster.post(pause=0.2)
    cluster.at_step(job_id, 5)
    cluster.runtime.kill(f"{job_id}-1", 1, number=signal.SIGTERM)
    job = cluster.ended(job_id)
    assert cluster.adapter(job) == undisturbed
    first, second = job["tunesmith"]["attempts"]
    assert (first["code"], job["tunesmith"]["infra_failures"]) == ("preempted", 0)
    assert second["resumed_step"] == first["last_step"] == first["last_good_step"]
    assert any(message.startswith("Run 1 was preempted: a node of the run goes away") for message in cluster.events(job_id))


def test_34_ranks_that_meet_within_a_pass_go_on_with_half_the_micro_batch(cluster: Cluster) -> None:
    """In step 9: the checkpoint of step 4 is complete when that of step 8 is begun. Dropout would be drawn anew for other pieces."""
    whole = cluster.losses(cluster.ended(cluster.post(dropout=0)))
    job = cluster.ended(cluster.post(engine="zero3", dropout=0, scarce=8))
    first, second = job["tunesmith"]["attempts"]
    assert (first["outcome"], first["code"], first["cause"]) == ("failed", "out_of_memory", "resource")
    assert (second["outcome"], second["resumed_step"]) in [("succeeded", step) for step in (4, 8)]
    [told] = [message for message in cluster.events(job["id"]) if message.startswith("Out of memory")]
    assert ": micro-batch halved from 4 to 2, the global batch stays 8. The job will " in told
    assert cluster.losses(job) == pytest.approx(whole, rel=1e-5)


def test_35_a_run_that_always_dies_is_quarantined_and_the_queue_moves_on(cluster: Cluster) -> None:
    job_id = cluster.post(segv=True)
    error = cluster.ended(job_id)
    assert (error["error"]["code"], error["tunesmith"]["error"]["cause"]) == ("quarantined", "infrastructure")
    assert error["tunesmith"]["error"]["details"]["code"] == "worker_lost"
    assert error["tunesmith"]["error"]["hint"]
    assert len(error["tunesmith"]["attempts"]) == 3
    after = cluster.post()
    until("the next run", lambda: f"{after}-1" in cluster.runtime.ranks)
    cluster.gateway.client(strict=False).fine_tuning.jobs.cancel(after)
    assert cluster.ended(after)["status"] == "cancelled"
