"""The entry of a gateway under test: `service.gateway` as it is, with local processes in place of Ray's.

    python -m tests.faults.gateway_process --data-dir DIR …

What shall befall it is in its environment: FAULTS_KILL names the point at which it kills itself with SIGKILL,
FAULTS_CLOCK moves this process's clock by so many seconds. The product knows of neither.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from contextlib import AsyncExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import sqlalchemy as sa
from grpc._cython import cygrpc
from sqlalchemy.engine.default import DefaultDialect

from service import gateway
from service.runtime import Runtime
from service.settings import Settings
from tests.faults.process_runtime import ProcessRuntime
from trainers.spec import RunSpec

BEFORE_COMMIT, AFTER_COMMIT, AFTER_LAUNCH = "before-commit", "after-commit", "after-launch"


def main() -> int:
    """The gateway's own main, once the stage is set."""
    runtime = ProcessRuntime(Path(os.environ["FAULTS_RUNS"]), float(os.environ.get("FAULTS_CPUS", "4")))
    point, _, table = os.environ.get("FAULTS_KILL", "").partition(":")
    if point in (BEFORE_COMMIT, AFTER_COMMIT):
        kill_at_commit(f"INSERT INTO {table}", after=point == AFTER_COMMIT)
    if shift := float(os.environ.get("FAULTS_CLOCK", "0")):
        shift_clock(shift)

    async def in_place_of_ray(settings: Settings, stack: AsyncExitStack, stop: asyncio.Event) -> Runtime:
        return KilledOnceLaunched(runtime) if point == AFTER_LAUNCH else runtime

    gateway._ray = in_place_of_ray  # type: ignore[assignment]
    return gateway.main()


def shift_clock(seconds: float) -> None:
    """Let Python's wall clock be wrong. gRPC keeps the right one: it compares it with a clock of its own, which this can't move."""
    real = time.time
    cygrpc.time = SimpleNamespace(time=real)  # type: ignore[attr-defined]
    time.time = lambda: real() + seconds


def kill_at_commit(statement: str, *, after: bool) -> None:
    """SIGKILL at the COMMIT of the first transaction that has run such a statement, before or after the database has it."""
    commit = DefaultDialect.do_commit

    def noticed(connection: sa.Connection, cursor: Any, text: str, *_: Any) -> None:
        if text.startswith(statement):
            connection.info["faults_doomed"] = True

    def do_commit(self: DefaultDialect, connection: Any) -> None:
        doomed = connection.info.get("faults_doomed", False)
        if doomed and not after:
            die()
        commit(self, connection)
        if doomed:
            die()

    sa.event.listen(sa.Engine, "before_cursor_execute", noticed)
    DefaultDialect.do_commit = do_commit  # type: ignore[method-assign]


def die() -> None:
    """As kill -9 does."""
    os.kill(os.getpid(), signal.SIGKILL)


class KilledOnceLaunched:
    """A runtime whose first launch is the last thing its gateway does."""

    def __init__(self, runtime: ProcessRuntime) -> None:
        self._runtime = runtime

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runtime, name)

    async def launch(self, spec: RunSpec) -> None:
        await self._runtime.launch(spec)
        die()


if __name__ == "__main__":
    sys.exit(main())
