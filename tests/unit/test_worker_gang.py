"""How a worker's driver asks Ray for its gang, and what it says when there is no place."""

from __future__ import annotations

import pytest
from ray.train import ControllerError
from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError

from trainers.spec import ResourceSpec
from trainers.worker import PLACEMENT_LIMIT, _scaling, _unplaced


def test_the_gang_is_asked_for_as_it_is_told() -> None:
    resources = ResourceSpec(
        workers=2, gpus_per_worker=4, cpus_per_worker=8, placement="strict_spread", accelerator_type="H100", labels={"zone": "a"}
    )
    asked = _scaling(resources)
    assert (asked.num_workers, asked.use_gpu, asked.placement_strategy) == (2, True, "STRICT_SPREAD")
    assert asked._resources_per_worker_not_none == {"CPU": 8.0, "GPU": 4.0, "accelerator_type:H100": 0.001}
    assert asked._label_selector_per_worker(2) == [{"zone": "a"}] * 2


def test_a_worker_on_the_processor_asks_for_cores_alone() -> None:
    asked = _scaling(ResourceSpec(cpus_per_worker=2))
    assert (asked.placement_strategy, asked._resources_per_worker_not_none, asked.label_selector) == ("PACK", {"CPU": 2.0}, None)


def test_only_a_gang_without_a_place_is_told_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PLACEMENT_LIMIT, "60")
    failed = _unplaced(ControllerError(WorkerGroupStartupTimeoutError(2)), 2)
    assert failed is not None
    assert (failed.code, failed.cause) == ("gang_not_placed", "infrastructure")
    assert failed.message == "Ray had no place for 2 workers at once within 60 s"
    assert _unplaced(ControllerError(ValueError("a fault of ours")), 2) is None
