"""The process that runs a python grader's source: gives up every right it can, then calls `grade(sample, item)` once.

Standard library only; it starts without site-packages. The order comes on standard input, one line of JSON is the answer, and what the
source itself prints goes nowhere. The parent's half is python_grader.py.
"""

from __future__ import annotations

import json
import math
import os
import resource
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NoReturn

from trainers.graders import jail
from trainers.graders.syscalls import deny_syscalls
from trainers.self_limits import die_with, die_with_parent, limit, limit_self

FILE = "grader.py"
"""What the source is called in its own tracebacks."""
MAX_DETAILS = 2000
SCRATCH_BYTES, OPEN_FILES = 2**20, 32


def main() -> NoReturn:
    """Read the order, leave the machine behind, run the source, answer."""
    order: dict[str, Any] = json.loads(sys.stdin.buffer.read())
    die_with(order["parent"])
    answer = _take_streams()
    for wall in (lambda: _isolate(order["directory"]), lambda: _limit(order), deny_syscalls):
        try:
            wall()
        except OSError as error:
            if not order["allow_unisolated"]:
                _say(answer, unavailable=error.strerror or str(error))
    # Made beforehand: when memory is out there is none to say so.
    out_of_memory = _line(error=f"MemoryError: needs more than {order['memory_bytes']:,} bytes, or is nested too deeply to be read")
    try:
        result = _checked(order["source"]) if order["sample"] is None else _reward(order)
    except MemoryError:
        os.write(answer, out_of_memory)
        os._exit(0)
    except BaseException as error:  # SystemExit among them: whatever the source raises is its own fault
        _say(answer, error=_explained(error))
    _say(answer, reward=result)


def _take_streams() -> int:
    """Where the answer goes; standard input, output and error lead nowhere from here on."""
    answer = os.dup(1)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in range(3):
        os.dup2(nowhere, stream)
    os.close(nowhere)
    return answer


def _isolate(directory: str) -> None:
    """Go on in a child that is alone in its namespaces, while this process waits and ends as it ends."""
    jail.enter(directory)
    child = os.fork()
    if child == 0:
        die_with_parent()
        return
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status < 0:
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    os._exit(abs(status))


def _limit(order: dict[str, Any]) -> None:
    os.environ.clear()
    sys.argv[:] = [FILE]
    limit_self(memory_bytes=order["memory_bytes"], cpu_seconds=order["cpu_seconds"], file_bytes=SCRATCH_BYTES)
    limit(resource.RLIMIT_NOFILE, OPEN_FILES)
    limit(resource.RLIMIT_NPROC, 0)
    jail.drop_capabilities()


def _compiled(source: str) -> Any:
    return compile(source, FILE, "exec", dont_inherit=True)


def _checked(source: str) -> None:
    """Raises what is wrong with a source that is not run."""
    if "grade" not in _compiled(source).co_names:
        raise NameError("the source must define grade(sample, item)")


def _reward(order: dict[str, Any]) -> float:
    module: dict[str, Any] = {"__name__": "grader"}
    exec(_compiled(order["source"]), module)
    grade: Callable[[dict[str, Any], Any], object] | None = module.get("grade")
    if not callable(grade):
        raise NameError("the source must define grade(sample, item)")
    result = grade(_sample(order["sample"]), order["item"])
    if not isinstance(result, int | float):
        raise TypeError(f"grade must return a number, not {type(result).__name__}")
    if not math.isfinite(result):
        raise ValueError(f"grade returned {result}, which is not a finite number")
    return float(result)


def _sample(text: str) -> dict[str, Any]:
    """OpenAI's dictionary of one output."""
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
    sample: dict[str, Any] = {"output_text": text, "output_json": None, "output_tools": [], "choices": [choice]}
    with suppress(ValueError, RecursionError):
        sample["output_json"] = json.loads(text)
    return sample


def _explained(error: BaseException) -> str:
    """The error's type and words, and the line of the source where it arose."""
    line, trace = None, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == FILE:
            line = trace.tb_lineno
        trace = trace.tb_next
    words = f"{type(error).__name__}: {error}"[:MAX_DETAILS]
    return f"{words} (line {line})" if line else words


def _say(answer: int, **content: object) -> NoReturn:
    os.write(answer, _line(**content))
    os._exit(0)


def _line(**content: object) -> bytes:
    return f"{json.dumps(content)}\n".encode()
