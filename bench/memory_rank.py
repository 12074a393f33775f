"""One rank of a real run as a plain process, and how much memory it took: `python -m bench.memory_rank SPEC ANSWER CACHE TOKENS`.

What `trainers.worker` does on Ray, with Ray imported as there and not started. `memory.py` starts it, and tests do. TOKENS
bounds a forward pass, so that the micro-batch is the one that is to be measured. RANK, WORLD_SIZE, MASTER_ADDR and
MASTER_PORT say which rank it is. The answer is JSON: bytes resident at the most (VmHWM, which the kernel keeps), in all and
stage by stage.
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import suppress
from pathlib import Path

from trainers.report import Silent

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def resident(name: str = "VmHWM") -> int:
    """Bytes of a line of this process's status."""
    return int(next(line for line in STATUS.read_text().splitlines() if line.startswith(f"{name}:")).split()[1]) * 1024


class Stages(Silent):
    """Reads the peak whenever the run says that it is at something else, and begins anew."""

    def __init__(self) -> None:
        self.peaks: dict[str, int] = {}
        self._stage = "imports"

    @property
    def stage(self) -> str:
        """What the run is at."""
        return self._stage

    @stage.setter
    def stage(self, value: str) -> None:
        self.note()
        self._stage = value

    def note(self) -> None:
        """The peak since the last time counts for the stage that was."""
        self.peaks[self._stage] = max(self.peaks.get(self._stage, 0), resident())
        with suppress(OSError):
            CLEAR.write_text("5")  # the high-water mark starts again from what is resident now: proc_pid_clear_refs(5)


def main(spec_file: Path, answer: Path, cache: Path, tokens: int) -> None:
    """Execute the run, then write what it took."""
    stages = Stages()
    import ray.train.torch  # noqa: F401  a worker of Ray's has it
    import torch
    import torch.distributed as dist

    from trainers import plan
    from trainers.run import Place, execute
    from trainers.spec import RunSpec
    from trainers.storage import open_storage
    from trainers.worker import node_nvme

    spec = RunSpec.model_validate_json(spec_file.read_text())
    plan.CPU_TOKENS = tokens
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    if world_size > 1:
        dist.init_process_group("gloo")
    execute(spec, open_storage(spec.storage_url), stages, Place(rank, world_size, torch.device("cpu"), cache, nvme=node_nvme()))
    stages.note()
    answer.write_text(json.dumps({"peak": max(stages.peaks.values()), "stages": stages.peaks}))


if __name__ == "__main__":
    main(*(Path(argument) for argument in sys.argv[1:4]), int(sys.argv[4]))
    sys.stdout.flush()
    os._exit(0)  # gloo's threads may wait for peers that are gone already
