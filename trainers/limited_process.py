"""A process that does work on what comes from outside, from its parent's side: told by standard input, heard by lines, killed at the end.

Nothing is left when the work is done, late, cancelled or broken off, and when this process dies the other one dies with it
(self_limits.py is the child's half). Knows no work. Called by service/data_process.py and graders/python_grader.py.
"""

from __future__ import annotations

import asyncio
import os
import signal
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

LAST_WORDS_BYTES = 4096
RUST_OUT_OF_MEMORY = "memory allocation of"
"""How Rust's allocator, and so the tokenizer, ends a process."""
Hear = Callable[[bytes], None]


class NotStarted(Exception):
    """The machine could not start the process."""


@dataclass(frozen=True)
class Command:
    """What to start, and how much of it is listened to."""

    arguments: Sequence[str]
    environment: Mapping[str, str]
    directory: Path | None = None
    longest_line: int = 2**16
    """A longer line is heard as a blank one."""


@dataclass(frozen=True)
class Ended:
    """How the process ended."""

    status: int
    """Exit status; below 0 the signal that killed it."""
    last_words: str
    """The last line on standard error."""
    late: bool = False
    """Its time was over."""

    @property
    def words(self) -> str:
        """The end, for a person."""
        names = {number.value: number.name for number in signal.Signals}
        ending = f"exit status {self.status}" if self.status >= 0 else f"killed by {names.get(-self.status, f'signal {-self.status}')}"
        return f"{ending}; {self.last_words}" if self.last_words else ending


async def run_limited(command: Command, order: bytes, hear: Hear, *, timeout: timedelta) -> Ended:
    """Start the process, tell it `order` and pass on each line that it says, until it ends or `timeout` has passed.

    Raises NotStarted, and what `hear` raises; the process is gone either way.
    """
    try:
        process = await _spawn(command)
    except OSError as error:
        raise NotStarted(str(error)) from error
    clock = asyncio.timeout(timeout.total_seconds())
    async with _ended_afterwards(process) as last_words:
        try:
            async with clock:
                await _talk(process, order, hear)
        except TimeoutError:
            if not clock.expired():
                raise
    return Ended(process.returncode or 0, last_words.result(), clock.expired())


async def _spawn(command: Command) -> Process:
    return await asyncio.create_subprocess_exec(
        *command.arguments,
        stdin=PIPE,
        stdout=PIPE,
        stderr=PIPE,
        env=dict(command.environment),
        cwd=command.directory,
        start_new_session=True,
        limit=command.longest_line,
    )


@asynccontextmanager
async def _ended_afterwards(process: Process) -> AsyncGenerator[asyncio.Task[str]]:
    """What the process says last on standard error, known at the end, when nothing of its group is left."""
    assert process.stdout is not None
    assert process.stderr is not None
    last_words = asyncio.create_task(_last_words(process.stderr))
    try:
        yield last_words
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        # asyncio learns of the end only once its pipes are at theirs, and a flood that nobody reads keeps them from it.
        while await process.stdout.read(2**16):
            pass
        await process.wait()
        await last_words


async def _talk(process: Process, order: bytes, hear: Hear) -> None:
    assert process.stdin is not None
    assert process.stdout is not None
    with suppress(ConnectionError):  # it may die before it has read; its exit status tells more
        process.stdin.write(order)
        await process.stdin.drain()
        process.stdin.close()
    while line := await _line(process.stdout):
        hear(line)
    await process.wait()


async def _line(stream: asyncio.StreamReader) -> bytes:
    """The next line, a blank one in place of one that is too long, b"" at the end."""
    try:
        return await stream.readline()
    except ValueError:
        return b"\n"


async def _last_words(stream: asyncio.StreamReader) -> str:
    """The last line of a stream, or the one in which Rust's allocator says that memory is out."""
    end = b""
    while piece := await stream.read(2**16):
        end = (end + piece)[-LAST_WORDS_BYTES:]
    lines = end.decode(errors="replace").strip().splitlines()
    return next((line for line in reversed(lines) if RUST_OUT_OF_MEMORY in line), lines[-1] if lines else "")[:300]
