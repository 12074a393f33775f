"""The local Ray head of an embedded stack: started or adopted, watched, started again when it dies, stopped.

It runs in a session of its own, so that a gateway that dies leaves the head and the training on it alone, and the next
gateway adopts it. It listens on loopback only and wants a token; both are checked before a run is given to it.
Called by the gateway.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import timedelta
from importlib import metadata
from pathlib import Path

import structlog
from pydantic import TypeAdapter, ValidationError

from service.embedded import CannotStart, write_whole
from service.processes import StackProcesses, send
from service.ray_command import NotOurs, head_command, ray_dir
from service.ray_runtime import RayAddress, RayRuntime
from service.runtime import RuntimeUnavailable

log = structlog.get_logger(__name__)
START_LIMIT = timedelta(seconds=120)
SILENCE_LIMIT = timedelta(seconds=30)
"""A head that does not answer this long is taken for dead, though its processes live."""
GLANCE = timedelta(seconds=1)
STOP_GRACE = timedelta(seconds=5)
FIRST_PAUSE, LONGEST_PAUSE = timedelta(seconds=0.5), timedelta(seconds=30)
STEADY = timedelta(seconds=60)
"""A head that lived this long was not started in vain: its death is answered at once."""


class HeadFailed(Exception):
    """The head did not start, or must not be used."""


@dataclass(frozen=True)
class HeadFacts:
    """What another gateway needs to adopt the head."""

    pid: int
    url: str
    ray_version: str


class EmbeddedRay:
    """The Ray head of one data directory."""

    def __init__(self, data_dir: Path, entrypoint: Sequence[str] = (sys.executable, "-m", "trainers.worker")) -> None:
        self._data_dir = data_dir.resolve()
        self._facts_path = self._data_dir / "ray.json"
        self._token_path = self._data_dir / "ray-token"
        self._log_path = self._data_dir / "logs" / "ray.log"
        self._processes = StackProcesses.of(self._data_dir)
        self._child: subprocess.Popen[bytes] | None = None
        self._address: RayAddress | None = None
        self._why_not = "the local Ray head is starting"
        self._tried = RayAddress("http://127.0.0.1", None)
        # Apart from `runtime`, so that no run is given to a head before it has passed.
        self._trial = RayRuntime(lambda: self._tried, processes=self._processes)
        self.runtime = RayRuntime(self._current, processes=self._processes, entrypoint=entrypoint)

    def _current(self) -> RayAddress:
        if self._address is None:
            raise RuntimeUnavailable(self._why_not)
        return self._address

    async def run(self) -> None:
        """Keep a head alive until cancelled."""
        pause = FIRST_PAUSE
        while True:
            started = time.monotonic()
            try:
                facts = await self._adopted() or await self._started()
                self._address = RayAddress(facts.url, self._token())
                log.info("ray_ready", dashboard=facts.url, seconds=round(time.monotonic() - started, 1))
                started = time.monotonic()
                self._why_not = await self._until_dead(facts)
            except (HeadFailed, NotOurs, CannotStart, OSError) as error:
                self._why_not = str(error)
            self._address = None
            log.error("ray_lost", cause=self._why_not)
            await self._clear()
            pause = FIRST_PAUSE if time.monotonic() - started > STEADY.total_seconds() else min(pause * 2, LONGEST_PAUSE)
            await asyncio.sleep(pause.total_seconds())

    async def stop(self) -> None:
        """End the head and every run on it, and remove what they kept in temporary files."""
        self._address, self._why_not = None, "the local Ray head has been stopped"
        await self.leave()
        await asyncio.to_thread(stop_head, self._data_dir)
        await asyncio.to_thread(self._bury)

    async def leave(self) -> None:
        """Close the connections and let the head live."""
        await self.runtime.close()
        await self._trial.close()

    # Starting

    async def _adopted(self) -> HeadFacts | None:
        """The head that an earlier gateway left, if it is of use; otherwise nothing is left of it."""
        facts = _facts(self._data_dir)
        if facts is not None and facts.ray_version == metadata.version("ray") and await self._healthy(facts):
            log.info("ray_adopted", pid=facts.pid)
            return facts
        await self._clear()
        return None

    async def _healthy(self, facts: HeadFacts) -> bool:
        if not self._lives(facts.pid) or not self._token_path.exists():
            return False
        try:
            await self._until_ready(facts, SILENCE_LIMIT)
        except HeadFailed as error:
            log.warning("ray_not_adopted", cause=str(error))
            return False
        return True

    async def _started(self) -> HeadFacts:
        """Raises HeadFailed."""
        self._why_not = "the local Ray head is starting"
        self._token()
        command = head_command(self._data_dir, self._token_path)
        with open(self._prepared_log(), "wb") as output:
            self._child = subprocess.Popen(
                command.arguments,
                env=command.environment,
                cwd=command.directory,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        facts = HeadFacts(self._child.pid, command.url, metadata.version("ray"))
        await self._until_ready(facts, START_LIMIT)
        write_whole(self._facts_path, json.dumps(asdict(facts)))
        return facts

    async def _until_ready(self, facts: HeadFacts, limit: timedelta) -> None:
        """Raises HeadFailed."""
        deadline = time.monotonic() + limit.total_seconds()
        while True:
            if not self._lives(facts.pid):
                raise HeadFailed(f"the local Ray head did not start: {_last_line(self._log_path)}")
            try:
                return await self._check(facts.url)
            except RuntimeUnavailable as error:
                if time.monotonic() > deadline:
                    raise HeadFailed(f"the local Ray head is not ready after {limit.seconds} s: {error}") from error
            await asyncio.sleep(0.25)

    async def _check(self, url: str) -> None:
        """Raises RuntimeUnavailable when it is not up, HeadFailed when it is open to others."""
        self._tried = RayAddress(url, self._token())
        await self._trial.capacity()
        if not await self._trial.guarded():
            raise HeadFailed("the local Ray head answers without a token, so any user of this machine could run code through it")
        beyond = await asyncio.to_thread(self._processes.beyond_loopback)
        if beyond:
            raise HeadFailed(f"the local Ray head listens beyond loopback ({', '.join(beyond)})")

    def _token(self) -> str:
        if not self._token_path.exists():
            write_whole(self._token_path, secrets.token_hex(32))
        return self._token_path.read_text().strip()

    def _prepared_log(self) -> Path:
        self._log_path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        return self._log_path

    # Watching

    async def _until_dead(self, facts: HeadFacts) -> str:
        """Why the head is of no use any more."""
        answered = time.monotonic()
        while True:
            await asyncio.sleep(GLANCE.total_seconds())
            if not await asyncio.to_thread(self._lives, facts.pid):
                return "the local Ray head has died; it is being started again"
            if time.monotonic() - answered < SILENCE_LIMIT.total_seconds() / 3:
                continue
            try:
                await self.runtime.capacity()
                answered = time.monotonic()
            except RuntimeUnavailable as error:
                if time.monotonic() - answered > SILENCE_LIMIT.total_seconds():
                    return f"the local Ray head has not answered for {SILENCE_LIMIT.seconds} s ({error}); it is being started again"

    def _lives(self, pid: int) -> bool:
        self._reap()
        return self._processes.has(pid)

    def _reap(self) -> None:
        if self._child is not None and self._child.poll() is not None:
            self._child = None

    def _bury(self) -> None:
        """As `_reap`, of a head that was killed: a process that is about to die shows no mark any more, and is not yet dead."""
        if self._child is not None:
            with suppress(subprocess.TimeoutExpired):
                self._child.wait(10)
        self._reap()

    async def _clear(self) -> None:
        """Nothing of the head or its runs is left after this."""
        await asyncio.to_thread(self._processes.end_all)
        await asyncio.to_thread(self._bury)
        self._facts_path.unlink(missing_ok=True)
        await asyncio.to_thread(shutil.rmtree, ray_dir(self._data_dir), ignore_errors=True)


def known_head(data_dir: Path) -> RayAddress | None:
    """Where the head of this directory answers; None when none is alive."""
    facts = _facts(data_dir)
    if facts is None or not StackProcesses.of(data_dir).has(facts.pid):
        return None
    with suppress(OSError):
        return RayAddress(facts.url, (data_dir / "ray-token").read_text().strip())
    return None


def stop_head(data_dir: Path) -> bool:
    """End the head of this directory and its runs: SIGTERM, then SIGKILL. Whether nothing is left. Blocks for seconds."""
    processes = StackProcesses.of(data_dir)
    send(processes.all(), signal.SIGTERM)
    deadline = time.monotonic() + STOP_GRACE.total_seconds()
    while processes.all() and time.monotonic() < deadline:
        time.sleep(0.1)
    gone = processes.end_all()
    (data_dir / "ray.json").unlink(missing_ok=True)
    shutil.rmtree(ray_dir(data_dir), ignore_errors=True)
    return gone


def _facts(data_dir: Path) -> HeadFacts | None:
    with suppress(OSError, ValidationError):
        return TypeAdapter(HeadFacts).validate_json((data_dir / "ray.json").read_bytes())
    return None


def _last_line(path: Path) -> str:
    with suppress(OSError):
        lines = [line for line in path.read_text(errors="replace").splitlines() if line.strip()]
        if lines:
            return lines[-1].strip()[:300]
    return f"see {path}"
