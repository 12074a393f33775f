"""A real Ray cluster of several nodes: what it says it has, a gang over two nodes, and a node that dies under it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI

from service.gangs import fits_ever, gang, shortage
from service.ray_runtime import RayRuntime
from tests.e2e.stack import artifacts, at_step, ended, until
from tests.gateway import MODEL, Gateway, running_gateway
from tests.ray_cluster import RayCluster, ray_cluster
from trainers.spec import ResourceSpec

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
TWEETS = Path(__file__).parents[2] / "examples" / "tweets"
ADAPTER = "adapter/adapter_model.safetensors"
SPREAD = {"workers": 2, "cpus_per_worker": 1, "placement": "strict_spread"}


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    with ray_cluster() as cluster:
        cluster.add_node(2, labels={"zone": "a"})
        cluster.add_node(1, resources={"accelerator_type:H100": 1}, labels={"zone": "b"})
        yield cluster


@pytest.fixture(scope="module")
def gateway(cluster: RayCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    runtime = RayRuntime(lambda: cluster.address, entrypoint=(sys.executable, "-m", "trainers.worker"), require_token=True)
    with running_gateway(tmp_path_factory.mktemp("nodes"), runtime=runtime, retry_backoff="PT0.2S", nearly_done="PT0S") as gateway:
        yield gateway


def post(client: OpenAI, resources: dict[str, Any], priority: int = 0) -> str:
    training = client.files.create(file=TWEETS / "tweets-train.jsonl", purpose="fine-tune")
    job = client.fine_tuning.jobs.create(
        model=MODEL,
        training_file=training.id,
        seed=7,
        method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2, "batch_size": 16}}},
        extra_body={
            "tunesmith": {"checkpoints": {"every_steps": 10}, "adapter": {"dropout": 0.1}, "resources": resources, "priority": priority}
        },
    )
    return job.id


def ours(client: OpenAI, job_id: str) -> dict[str, Any]:
    extra = client.fine_tuning.jobs.retrieve(job_id).model_extra
    assert extra is not None
    return extra["tunesmith"]


def messages(client: OpenAI, job_id: str) -> list[str]:
    return [event.message for event in client.fine_tuning.jobs.list_events(job_id, limit=100)]


def test_capacity_is_told_node_by_node(gateway: Gateway) -> None:
    capacity = gateway.do(gateway.runtime.capacity())
    found = {dict(node.labels)["zone"]: (node.cpus, node.gpus, node.gpu_type) for node in capacity.each}
    assert found == {"a": (2, 0, None), "b": (1, 0, "H100")}, "the head has no cores, so it can hold no worker"
    assert (capacity.cpus, capacity.nodes, capacity.gpu_types) == (3, 2, ("H100",))
    assert all(node.memory_bytes for node in capacity.each)
    wide = gang(ResourceSpec(cpus_per_worker=3), capacity)
    assert not fits_ever(wide, capacity), "3 cores over 2 nodes hold no worker of 3"
    spread = gang(ResourceSpec(workers=2, placement="strict_spread"), capacity)
    assert (spread.cpus_per_worker, shortage(spread, capacity, [])) == (1, "")
    labelled = gang(ResourceSpec(labels={"zone": "c"}), capacity)
    assert shortage(labelled, capacity, []) == "no node has the label zone=c: the cluster is too small for this job"


@pytest.fixture(scope="module")
def undisturbed(gateway: Gateway, cluster: RayCluster) -> str:
    """The adapter's hash of a gang over two nodes that nobody touched."""
    client = gateway.client()
    job_id = post(client, SPREAD)
    at_step(client, job_id, 1, timeout=240)
    assert cluster.nodes_of(f"{job_id}-1") == {"127.0.0.3", "127.0.0.4"}
    job = ended(client, job_id)
    assert job.status == "succeeded", job.error
    return artifacts(client, job_id)[ADAPTER]


def test_a_gang_is_spread_over_nodes_by_their_labels(undisturbed: str, gateway: Gateway, cluster: RayCluster) -> None:
    client = gateway.client()
    job_id = post(client, {"workers": 1, "labels": {"zone": "b"}})
    until("the worker", lambda: cluster.nodes_of(f"{job_id}-1"), 240)
    assert cluster.nodes_of(f"{job_id}-1") == {"127.0.0.4"}
    client.fine_tuning.jobs.cancel(job_id)
    assert ended(client, job_id).status == "cancelled"


def test_a_job_of_higher_priority_has_the_nodes_and_both_end_with_the_same_bytes(undisturbed: str, gateway: Gateway) -> None:
    client = gateway.client()
    low = post(client, SPREAD)
    at_step(client, low, 3, timeout=240)
    high = post(client, SPREAD, priority=5)
    until("the room", lambda: ours(client, low)["attempts"][0]["code"] == "outranked", 240)
    assert ours(client, low)["attempts"][0]["outcome"] == "stopped"
    for job_id in (high, low):
        job = ended(client, job_id)
        assert job.status == "succeeded", job.error
        assert artifacts(client, job_id)[ADAPTER] == undisturbed
    first, second = ours(client, low)["attempts"]
    assert second["resumed_step"] == first["last_good_step"] >= 3
    assert len(ours(client, high)["attempts"]) == 1


def test_a_run_that_finds_no_place_ends_and_is_tried_again(gateway: Gateway, cluster: RayCluster) -> None:
    """Somebody else is on the cluster, so the gateway takes it for emptier than it is."""
    client = gateway.client()
    with cluster.stranger(1, {"accelerator_type:H100": 0.001}):
        job_id = post(client, SPREAD)
        until(
            "the end of the first run", lambda: ours(client, job_id)["attempts"][:1] and ours(client, job_id)["attempts"][0]["outcome"], 240
        )
        first = ours(client, job_id)["attempts"][0]
        assert (first["code"], first["cause"]) == ("gang_not_placed", "infrastructure")
        assert first["message"].startswith("Ray had no place for 2 workers at once within 8 s")
        client.fine_tuning.jobs.cancel(job_id)
        assert ended(client, job_id).status == "cancelled"


def test_a_run_whose_node_dies_goes_on_once_there_is_another(undisturbed: str, gateway: Gateway, cluster: RayCluster) -> None:
    client = gateway.client()
    job_id = post(client, SPREAD)
    at_step(client, job_id, 12, timeout=240)
    cluster.kill_node(2)
    until("the job in the queue", lambda: ours(client, job_id)["phase"] == "queued", 240)
    assert any(message.startswith("Run 1 was lost") for message in messages(client, job_id))
    # Not at once: what Ray sets beside a driver, to end it should its supervisor die, looks once a second.
    until("the end of every process of the run", lambda: not cluster.processes(f"{job_id}-1"), 20)
    (lost,) = ours(client, job_id)["attempts"]
    assert (lost["code"], lost["cause"]) == ("worker_lost", "infrastructure")
    waits = "2 workers with 1 processor core each on a node of its own: 1 node has room"
    until("the reason", lambda: waits in ours(client, job_id)["reason"], 60)
    cluster.add_node(1)
    job = ended(client, job_id)
    assert job.status == "succeeded", job.error
    assert ours(client, job_id)["attempts"][-1]["resumed_step"] >= 10
    assert artifacts(client, job_id)[ADAPTER] == undisturbed
