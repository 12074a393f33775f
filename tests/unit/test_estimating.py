"""Whether a job fits, and why not: pure, for clusters that no test has."""

from __future__ import annotations

from dataclasses import replace

import pytest

from service.devices import GPUS, gpu
from service.estimate import Estimate
from service.estimating import Known, estimate
from service.jobs import JobSpec, MethodSpec
from service.runtime import Capacity
from service.settings import Settings
from tests.sizes import LLAMA_8B, SMOLLM2
from trainers.model_files import Sizes
from trainers.plan import RUN_BYTES, USABLE_SHARE
from trainers.spec import DatasetRef, DeepSpeedSpec, Hyperparameters, ResourceSpec, TunesmithSpec

GIB = 2**30
DATA = DatasetRef(prefix="d", sha256="d", rows=1000, tokens=500_000, trained_tokens=250_000, longest=1024)


def made(resources: ResourceSpec, known: Known, settings: Settings | None = None) -> Estimate:
    method = MethodSpec(type="supervised", hyperparameters=Hyperparameters(batch_size=8))
    spec = JobSpec(model="m", training_file="f", method=method, tunesmith=TunesmithSpec(resources=resources))
    return estimate(spec, DATA, None, known, settings or Settings())


def cluster(gpu_type: str, gpus: int = 1, nodes: int = 1, sizes: Sizes = LLAMA_8B, gib: int = 64) -> Known:
    capacity = Capacity(cpus=16 * nodes, gpus=gpus, nodes=nodes, memory_bytes=gib * GIB, gpu_types=(gpu_type,) if gpus else ())
    return Known(sizes, capacity, gib * GIB, (), (), gpu(Settings(), capacity.gpu_types), (None, None))


GPU = ResourceSpec(gpus_per_worker=1)


@pytest.mark.parametrize(("gpu_type", "fits"), [("L4", False), ("A10G", False), ("A100-40G", True), ("H100", True)])
def test_an_8b_model_fits_where_it_does(gpu_type: str, fits: bool) -> None:
    found = made(GPU, cluster(gpu_type))
    assert found.plan is not None
    assert found.placement is not None
    assert found.placement.fits is fits, found.plan.memory
    assert found.plan.memory.available == int(GPUS[gpu_type][1] * GIB * USABLE_SHARE)
    assert found.plan.run_memory == 0
    assert fits or "a worker needs about" in found.placement.reason


def test_workers_of_a_node_share_its_memory() -> None:
    alone = made(ResourceSpec(), cluster("", gpus=0, sizes=SMOLLM2, gib=8))
    together = made(ResourceSpec(workers=4), cluster("", gpus=0, sizes=SMOLLM2, gib=8))
    apart = made(ResourceSpec(workers=4), cluster("", gpus=0, nodes=4, sizes=SMOLLM2, gib=8))
    packed = made(ResourceSpec(workers=4, cpus_per_worker=4), cluster("", gpus=0, nodes=4, sizes=SMOLLM2, gib=8))
    left = int(8 * GIB * USABLE_SHARE) - RUN_BYTES
    for found, fits, sharing in ((alone, True, 1), (together, False, 4), (apart, True, 1), (packed, False, 4)):
        assert found.plan is not None
        assert found.placement is not None
        assert (found.placement.fits, found.plan.memory.available) == (fits, left // sharing)
        assert found.plan.run_memory == RUN_BYTES


def test_what_the_run_and_the_node_need_beside_a_worker_is_not_given_away() -> None:
    need = made(ResourceSpec(), cluster("", gpus=0, sizes=SMOLLM2, gib=64))
    assert need.plan is not None
    small = replace(cluster("", gpus=0, sizes=SMOLLM2), node_memory=need.plan.memory.total)
    found = made(ResourceSpec(), small)
    assert found.placement is not None
    assert found.placement.fits is False
    assert "may take" in found.placement.reason


def test_memory_that_is_not_known_fits_nothing() -> None:
    known = cluster("", gpus=2)
    found = made(GPU, replace(known, device=gpu(Settings(), ("UNHEARD-OF",))))
    assert found.placement is not None
    assert found.placement.fits is None
    assert any("TUNESMITH_GPU_MEMORY_BYTES" in note for note in found.notes)


def test_a_busy_cluster_is_told_from_one_that_is_too_small() -> None:
    known = cluster("H100", gpus=2)
    busy = made(GPU, replace(known, others=(ResourceSpec(workers=2, gpus_per_worker=1),)))
    assert busy.placement is not None
    assert (busy.placement.fits, busy.placement.starts_now, busy.placement.reason) == (True, False, "fits; waiting for 1 GPU, 0 free")
    small = made(ResourceSpec(workers=4, gpus_per_worker=1), known)
    assert small.placement is not None
    assert (small.placement.fits, small.placement.reason.startswith("waiting for 4 GPUs, 2 in all")) == (False, True)


def test_costs_are_of_what_is_taken() -> None:
    prices = Settings(price_per_gpu_hour=3.0, price_per_cpu_hour=0.1, currency="EUR")
    found = made(ResourceSpec(workers=2, gpus_per_worker=1, cpus_per_worker=4), cluster("H100", gpus=2), prices)
    assert found.time is not None
    assert found.cost is not None
    assert found.cost.low == pytest.approx(found.time.low / 3600 * (2 * 3.0 + 8 * 0.1))
    assert found.cost.based_on == "2 GPUs at 3 and 8 cores at 0.1 EUR an hour each"
    assert made(GPU, cluster("H100"), Settings(price_per_cpu_hour=0.1)).cost is None, "the larger part has no price"
    assert made(GPU, cluster("H100")).cost is None


def test_what_state_on_nvme_takes_there_is_told() -> None:
    on_nvme = DeepSpeedSpec.model_validate({"zero_optimization": {"offload_optimizer": {"device": "nvme"}}})
    found = made(ResourceSpec(workers=2, gpus_per_worker=1, engine="zero2", deepspeed=on_nvme), cluster("H100", gpus=2))
    assert found.plan is not None
    assert any("optimizer state lies on NVMe: 0.1 GiB of each worker's node" in reason for reason in found.plan.reasons), found.plan.reasons


def test_a_micro_batch_that_splits_a_step_says_so() -> None:
    found = made(ResourceSpec(), cluster("", gpus=0, sizes=SMOLLM2))
    assert found.plan is not None
    assert (found.plan.micro_batch, found.plan.micro_batches) == (2, 4)
    assert "they go through 2 at a time" in found.plan.reasons[-1]
