"""One rank of a run as a plain process, `python -m tests.rank`: what trainers.worker does on Ray, and the faults that a test asks for.

SUFFER is a JSON object: `pause` seconds before every forward pass, so that a test can come in between; `floor`, the watch's
patience; `segv`, to die at once; `scarce`, after how many passes of the first run there is memory for two rows of a rank at a
time, and no more.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

suffer: dict[str, Any] = json.loads(os.environ.get("SUFFER", "{}"))
if "segv" in suffer:
    os.kill(os.getpid(), signal.SIGSEGV)

import torch  # noqa: E402  after the fault that comes before it
import torch.distributed as dist  # noqa: E402

from trainers import watch, worker  # noqa: E402
from trainers.leaving import Leaving  # noqa: E402
from trainers.model import TrainingModel  # noqa: E402
from trainers.report import Silent  # noqa: E402
from trainers.run import Place, execute  # noqa: E402
from trainers.spec import RunSpec  # noqa: E402
from trainers.storage import open_storage  # noqa: E402


def main() -> int:
    """The exit status of the driver: 0 finished, 1 failed, 3 left."""
    logging.basicConfig(level=logging.INFO)
    storage = open_storage(os.environ["STORAGE"])
    spec = RunSpec.model_validate_json(storage.get(os.environ["SPEC"]))
    token = storage.get(f"{spec.run_prefix}/token").decode()
    torch.set_num_threads(1)
    if "floor" in suffer:
        watch.FLOOR_SECONDS = suffer["floor"]
    _slow(suffer.get("pause", 0.0))
    if "scarce" in suffer:
        _scarce(suffer["scarce"] if spec.epoch == 1 else 0)
    leaving = Leaving()
    leaving.listen()
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    dist.init_process_group("gloo")
    place = Place(rank, world_size, torch.device("cpu"), Path(os.environ["TUNESMITH_CACHE_DIR"]), leaving)
    try:
        with ExitStack() as stack:
            reporter = worker._gateway(spec, token, stack) if rank == 0 else Silent()
            worker._logged(lambda: execute(spec, storage, reporter, place), rank)
    except BaseException as error:
        return worker._ended(spec, token, error) if rank == 0 else 1
    return 0


def _slow(pause: float) -> None:
    score = TrainingModel.score

    def slowly(self: Any, batch: Any) -> Any:
        time.sleep(pause)
        return score(self, batch)

    TrainingModel.score = slowly


def _scarce(after: int) -> None:
    score, passes = TrainingModel.score, iter(range(sys.maxsize))

    def starving(self: Any, batch: Any) -> Any:
        if torch.is_grad_enabled() and next(passes) >= after and len(batch.input_ids) > 2:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried to allocate 2 GB")
        return score(self, batch)

    TrainingModel.score = starving


if __name__ == "__main__":
    status = main()
    logging.shutdown()
    sys.stdout.flush()
    # As a killed worker: gloo's threads may wait for peers that are gone.
    os._exit(status)
