"""A runtime without Ray whose runs are real: every rank is a process of tests/rank.py, and they meet over gloo as on Ray."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from service.runtime import Observation, RunState
from tests.fake_runtime import FakeRuntime
from trainers.spec import RunSpec

ROOT = Path(__file__).parents[1]


@dataclass
class RankRuntime(FakeRuntime):
    """`environment` goes to every rank and tells it what to suffer, see tests/rank.py. `end` kills what is left."""

    directory: Path = Path()
    environment: dict[str, str] = field(default_factory=dict)
    ranks: dict[str, list[subprocess.Popen[bytes]]] = field(default_factory=dict)
    cut_off: set[str] = field(default_factory=set)
    """Runs whose processes can't be seen or reached, as behind a network that broke."""

    async def launch(self, spec: RunSpec) -> None:
        if spec.run_id in self.ranks:
            return
        self.launched.append(spec)
        workers = spec.tunesmith.resources.workers
        env = os.environ | {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(_free_port()),
            "WORLD_SIZE": str(workers),
            "OMP_NUM_THREADS": "1",
        }
        env |= {"PYTHONPATH": str(ROOT), "STORAGE": spec.storage_url, "SPEC": f"{spec.run_prefix}/spec.json"}
        env |= {"TUNESMITH_CACHE_DIR": str(self.directory / "cache"), **self.environment}
        with (self.directory / f"{spec.run_id}.log").open("ab") as log:
            self.ranks[spec.run_id] = [
                subprocess.Popen([sys.executable, "-m", "tests.rank"], env=env | {"RANK": str(rank)}, stdout=log, stderr=log, cwd=ROOT)
                for rank in range(workers)
            ]

    async def observe(self, run_id: str) -> Observation:
        ranks = self.ranks.get(run_id)
        if ranks is None or run_id in self.cut_off:
            return Observation(RunState.UNKNOWN, alive=False)
        codes = [rank.poll() for rank in ranks]
        if None in codes:
            return Observation(RunState.RUNNING, alive=True)
        state = RunState.SUCCEEDED if not any(codes) else RunState.FAILED
        return Observation(state, alive=False, message=f"exit codes {codes}")

    async def stop(self, run_id: str) -> None:
        self.stopped.append(run_id)
        if run_id not in self.cut_off:
            self.kill(run_id)

    async def live_runs(self) -> list[str]:
        return [run_id for run_id in self.ranks if (await self.observe(run_id)).alive]

    def kill(self, run_id: str, *ranks: int, number: int = signal.SIGKILL) -> None:
        """Send a signal to some ranks of a run, to all unless any is named."""
        for rank, process in enumerate(self.ranks[run_id]):
            if (not ranks or rank in ranks) and process.poll() is None:
                process.send_signal(number)

    def log(self, run_id: str) -> str:
        """What the ranks wrote."""
        return (self.directory / f"{run_id}.log").read_text()

    def end(self) -> None:
        """Nothing is left."""
        for run_id, ranks in self.ranks.items():
            self.kill(run_id)
            for rank in ranks:
                rank.wait(30)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]
