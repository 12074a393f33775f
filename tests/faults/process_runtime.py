"""A runtime whose runs are processes of this machine, so that what is left of a killed gateway is real. Not Ray.

A run is known by its directory, which is made once: launching twice cannot start two. Nothing is kept in memory that
another gateway, or the next one, could not read again. The run itself is `run_process`.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import psutil

from service.runtime import Capacity, Observation, RunState
from trainers.spec import RunSpec

RUN_ID = "TUNESMITH_RUN_ID"


class ProcessRuntime:
    """Runs below `directory`, which gateways share."""

    def __init__(self, directory: Path, cpus: float = 4) -> None:
        self.directory, self.cpus = directory, cpus
        self._children: list[subprocess.Popen[bytes]] = []

    async def launch(self, spec: RunSpec) -> None:
        home = self.directory / spec.run_id
        try:
            home.mkdir(parents=True)
        except FileExistsError:
            return
        (home / "spec.json").write_text(spec.model_dump_json())
        with (home / "log").open("wb") as log:
            command = [sys.executable, "-m", "tests.faults.run_process", str(home)]
            environment = os.environ | {RUN_ID: spec.run_id}
            child = subprocess.Popen(command, start_new_session=True, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment)
        (home / "pid").write_text(str(child.pid))
        self._children.append(child)

    async def observe(self, run_id: str) -> Observation:
        self._children = [child for child in self._children if child.poll() is None]
        home = self.directory / run_id
        if not home.exists():
            return Observation(RunState.UNKNOWN, alive=False)
        if process_of(home) is not None:
            return Observation(RunState.RUNNING, alive=True)
        said = home / "exit"
        return Observation(RunState(said.read_text()) if said.exists() else RunState.FAILED, alive=False, message="the process is gone")

    async def stop(self, run_id: str) -> None:
        process = process_of(self.directory / run_id)
        if process is not None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)

    async def log_tail(self, run_id: str, lines: int = 50) -> list[str]:
        log = self.directory / run_id / "log"
        return log.read_text(errors="replace").splitlines()[-lines:] if log.exists() else []

    async def capacity(self) -> Capacity:
        return Capacity(cpus=self.cpus, gpus=0, nodes=1)

    async def live_runs(self) -> list[str]:
        return live_runs(self.directory)


def live_runs(directory: Path) -> list[str]:
    """Ids of the runs below `directory` whose process lives."""
    return [home.name for home in directory.glob("*") if process_of(home) is not None]


def process_of(home: Path) -> psutil.Process | None:
    """The living process of the run whose directory this is."""
    with suppress(OSError, ValueError):
        return _if_it_is(int((home / "pid").read_text()), home.name)
    if not home.exists() or (home / "exit").exists():
        return None
    # The gateway was killed after it had started the process and before it had written down which.
    return next((found for pid in psutil.pids() if (found := _if_it_is(pid, home.name)) is not None), None)


def _if_it_is(pid: int, run_id: str) -> psutil.Process | None:
    try:
        process = psutil.Process(pid)
        alive = process.status() != psutil.STATUS_ZOMBIE and process.environ().get(RUN_ID) == run_id
    except (psutil.NoSuchProcess, psutil.AccessDenied, OSError):
        return None
    return process if alive else None
