"""Two workers over gloo: the losses of one worker, and exact resumption."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from protos.tunesmith.v1 import runs_pb2 as pb
from service import objects
from tests.small_run import Recorder, SmallRun, small_run
from trainers.spec import RunSpec

RANK = """
import json, os, sys, torch, torch.distributed as dist
from pathlib import Path
from tests.small_run import Recorder
from trainers.failure import Stopped
from trainers.model import TrainingModel
from trainers.run import Place, execute
from trainers.spec import RunSpec
from trainers.storage import open_storage

torch.set_num_threads(1)
dist.init_process_group("gloo")
spec = RunSpec.model_validate_json(os.environ["SPEC"])
recorder = Recorder({int(at): what for at, what in json.loads(os.environ["STOP_AT"]).items()} if dist.get_rank() == 0 else None)
place = Place(dist.get_rank(), dist.get_world_size(), torch.device("cpu"), Path(os.environ["CACHE"]))
scarce, score = int(os.environ.get("OUT_OF_MEMORY_ON", "-1")), TrainingModel.score


def starving(self, batch):
    if dist.get_rank() == scarce and torch.is_grad_enabled() and len(batch.input_ids) > 2:
        raise MemoryError
    return score(self, batch)


TrainingModel.score = starving
stopped = [False] * place.world_size
left = False
try:
    execute(spec, open_storage(spec.storage_url), recorder, place)
except Stopped:
    left = True
dist.all_gather_object(stopped, left)
dist.destroy_process_group()
if place.rank == 0:
    told = {"losses": [s.train_loss for s in recorder.of("step")], "valid": [e.valid_loss for e in recorder.of("evaluated")]}
    told |= {"tokens": [s.tokens for s in recorder.of("step")], "resumed": recorder.of("started")[0].resumed_step}
    told["stopped"] = stopped
    told["notices"] = [n.message for n in recorder.of("notice")]
    Path(os.environ["ANSWER"]).write_text(json.dumps(told))
"""


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    return small_run(tmp_path_factory.mktemp("workers"))


def execute_on_two(small: SmallRun, spec: RunSpec, stop_at: dict[int, int] | None = None, **more: str) -> dict[str, Any]:
    """Run the spec on two processes; what rank 0 told. `more` goes to their environment."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    answer = small.directory / "answer.json"
    env = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "SPEC": spec.model_dump_json()}
    env |= {
        "STOP_AT": json.dumps(stop_at or {}),
        "CACHE": str(small.directory / "cache"),
        "ANSWER": str(answer),
        "OMP_NUM_THREADS": "1",
    } | more
    root = str(Path(__file__).parents[2])
    ranks = [subprocess.Popen([sys.executable, "-c", RANK], env=env | {"RANK": str(rank), "PYTHONPATH": root}) for rank in range(2)]
    assert [rank.wait(200) for rank in ranks] == [0, 0]
    return json.loads(answer.read_text())


def test_two_workers_see_the_losses_of_one(small: SmallRun) -> None:
    changes = {"adapter": {"dropout": 0.0}}
    one: Recorder = small.execute(small.spec(job="ftjob-one", **changes))
    two = execute_on_two(small, small.spec(job="ftjob-two", **changes, resources={"workers": 2}))
    assert two["losses"] == pytest.approx([s.train_loss for s in one.of("step")], rel=1e-4)
    assert two["valid"] == pytest.approx([e.valid_loss for e in one.of("evaluated")], rel=1e-4)
    assert two["tokens"] == [s.tokens for s in one.of("step")]


def test_one_rank_out_of_memory_is_all_ranks_matter(small: SmallRun) -> None:
    """Row 34: rank 1 alone finds no memory; both halve the micro-batch in the same step, and the numbers stay those of one worker."""
    changes = {"adapter": {"dropout": 0.0}}
    one: Recorder = small.execute(small.spec(job="ftjob-roomy", **changes))
    two = execute_on_two(small, small.spec(job="ftjob-scarce", **changes, resources={"workers": 2}), OUT_OF_MEMORY_ON="1")
    assert two["notices"] == ["Out of memory at step 1: micro-batch halved from 4 to 2, the global batch stays 8"]
    assert two["losses"] == pytest.approx([s.train_loss for s in one.of("step")], rel=1e-4)
    assert two["tokens"] == [s.tokens for s in one.of("step")]


def test_two_workers_resume_to_the_same_bytes(small: SmallRun) -> None:
    whole = small.spec(job="ftjob-whole2", resources={"workers": 2})
    execute_on_two(small, whole)
    execute_on_two(small, small.spec(job="ftjob-part2", resources={"workers": 2}), {6: 2})
    known = objects.checkpoint_prefixes(small.storage, "ftjob-part2", 2)
    rest = small.spec(job="ftjob-part2", epoch=2, resume_from=known, resources={"workers": 2})
    assert execute_on_two(small, rest)["resumed"] == 4
    assert small.adapter_sha256(rest) == small.adapter_sha256(whole)


def test_two_workers_pause_at_a_step_and_rank_0_goes_last(small: SmallRun) -> None:
    """An error of another rank would make Ray end the run while rank 0 still writes the checkpoint."""
    whole = small.spec(job="ftjob-whole2", epoch=2, resources={"workers": 2})
    execute_on_two(small, whole)
    paused = small.spec(job="ftjob-pause2", resources={"workers": 2})
    assert execute_on_two(small, paused, {6: pb.DIRECTIVE_CHECKPOINT_AND_STOP})["stopped"] == [True, False]
    known = objects.checkpoint_prefixes(small.storage, "ftjob-pause2", 2)
    rest = small.spec(job="ftjob-pause2", epoch=2, resume_from=known, resources={"workers": 2})
    assert execute_on_two(small, rest)["resumed"] == 6
    assert small.adapter_sha256(rest) == small.adapter_sha256(whole)


def test_one_worker_goes_on_where_two_stopped(small: SmallRun) -> None:
    """Another world size keeps the order of rows and the global batch; the numbers differ by rounding only."""
    changes = {"adapter": {"dropout": 0.0}}
    execute_on_two(small, small.spec(job="ftjob-shrink", **changes, resources={"workers": 2}), {6: 2})
    known = objects.checkpoint_prefixes(small.storage, "ftjob-shrink", 2)
    rest = small.execute(small.spec(job="ftjob-shrink", epoch=2, resume_from=known, **changes))
    whole = small.execute(small.spec(job="ftjob-alone", **changes))
    losses = [s.train_loss for s in whole.of("step")]
    assert [s.train_loss for s in rest.of("step")] == pytest.approx(losses[4:], rel=1e-4)
    assert [s.tokens for s in rest.of("step")] == [s.tokens for s in whole.of("step")][4:], "the same rows at every step"
