"""Runs a python grader's source in a process that has no network, no files of ours, no environment and little of anything else.

The parent's half; python_child.py is the other. Called by grade.py.
"""

from __future__ import annotations

import json
import math
import os
import sys
import tempfile
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from trainers.graders.outcome import Errors, Refused, Unscored, sendable
from trainers.graders.template import Sample
from trainers.limited_process import Command, Ended, NotStarted, run_limited

LONGEST_ANSWER = 2**15
_ROOT = str(Path(__file__).resolve().parents[2])
_START = "import sys; sys.path.insert(0, sys.argv[1]); from trainers.graders.python_child import main; del sys.path[0]; main()"
UNAVAILABLE = (
    "python graders are off: this kernel offers no network isolation ({reason}); allow user namespaces to the service "
    "(docs/graders.md), or set TUNESMITH_GRADER_ALLOW_UNISOLATED if every key holder may run code on its machine"
)


@dataclass(frozen=True)
class PythonLimits:
    """What a source may use."""

    memory_bytes: int
    """Address space of the process, the interpreter's own included."""
    allow_unisolated: bool = False
    """Run it even where the kernel gives it no namespaces of its own."""


async def run_source(source: str, sample: Sample, limits: PythonLimits, timeout: timedelta) -> float:
    """What `grade(sample, item)` returns. Raises Unscored, and Refused where it can't be isolated."""
    answer = await _ask(source, limits, timeout, sample=sample.output_text, item=sample.item)
    reward = answer.get("reward")
    if isinstance(reward, float) and math.isfinite(reward):
        return reward
    raise _failed(sendable(str(answer.get("error", "ended without a reward"))))


async def check_source(source: str, limits: PythonLimits, timeout: timedelta) -> None:
    """Compile the source, run nothing of it. Raises Refused when it is not Python or defines no `grade`."""
    try:
        answer = await _ask(source, limits, timeout, sample=None, item=None)
        fault = answer.get("error")
    except Unscored as unscored:
        fault = unscored.errors.python_grader_runtime_error_details or unscored.errors.python_grader_server_error_type
    if fault is not None:
        raise Refused("source", sendable(f"'source' can't be run: {fault}."))


async def _ask(source: str, limits: PythonLimits, timeout: timedelta, **asked: object) -> dict[str, Any]:
    """What the process answers. Raises Unscored when it does not, Refused when it could not be isolated."""
    order = {
        **asked,
        "source": source,
        "parent": os.getpid(),
        "memory_bytes": limits.memory_bytes,
        "cpu_seconds": math.ceil(timeout.total_seconds()) + 3,
        "allow_unisolated": limits.allow_unisolated,
    }
    try:
        with tempfile.TemporaryDirectory(prefix="tunesmith-grader-") as directory:
            told = json.dumps({**order, "directory": directory}).encode()
            answer, ended = await _heard(_command(Path(directory)), told, timeout)
    except (OSError, NotStarted) as error:
        raise Unscored(Errors(python_grader_server_error=True, python_grader_server_error_type=str(error))) from error
    if "unavailable" in answer:
        raise Refused("type", UNAVAILABLE.format(reason=answer["unavailable"]))
    if ended.late:
        raise _failed(f"took longer than {timeout.total_seconds():g} s", unresponsive_reward_error=True)
    return answer or {"error": f"ended without a reward ({ended.words})"}


def _command(directory: Path) -> Command:
    kept = {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}  # the interpreter may need it to start
    arguments = (sys.executable, "-I", "-S", "-X", "utf8", "-c", _START, _ROOT)
    return Command(arguments, kept, directory, longest_line=LONGEST_ANSWER)


async def _heard(command: Command, order: bytes, timeout: timedelta) -> tuple[dict[str, Any], Ended]:
    """The last answer, {} when there is none, and how the process ended."""
    answer: dict[str, Any] = {}
    length = 0

    def hear(line: bytes) -> None:
        nonlocal answer, length
        length += len(line)
        # A source can find the pipe and write there. What it says is the reward it gives itself; it shall not say it for ever.
        if length > LONGEST_ANSWER or line == b"\n":
            raise _failed(f"answered more than {LONGEST_ANSWER:,} bytes", truncated_observation_error=True)
        answer = _read(line)

    ended = await run_limited(command, order, hear, timeout=timeout)
    return answer, ended


def _read(line: bytes) -> dict[str, Any]:
    try:
        said = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return said if isinstance(said, dict) else {}


def _failed(details: str, **more: bool) -> Unscored:
    return Unscored(Errors(python_grader_runtime_error=True, python_grader_runtime_error_details=details, **more))
