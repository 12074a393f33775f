"""The data check in a process of its own, with limits: rows and chat templates come from outside.

`run_check` is the parent's half, called by validation.py and by `tunesmith files check`; `main` is the
child's. The order goes in on standard input; progress and, last, the report come out as lines of JSON on
standard output, so nothing is left behind when either is killed. What is checked is datasets.py's business,
how a limited process is run that of trainers/limited_process.py.
"""

from __future__ import annotations

import errno
import os
import shutil
import signal
import sys
import time
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

from pydantic import TypeAdapter

from service.data_report import CheckRequest, DataReport, Failure, failed_report
from service.datasets import OnProgress, check, quiet
from service.formats.packed import Growth, grows
from trainers.limited_process import RUST_OUT_OF_MEMORY, Command, Ended, NotStarted, run_limited
from trainers.registry import Fault
from trainers.self_limits import die_with, limit_self
from trainers.spec import Frozen

MAX_REPORT_BYTES = 32 * 2**20
"""Longest line taken from the child; a report of 10,000 faults fits."""
PROGRESS_SECONDS = 1.0
EXIT_MEMORY, EXIT_SIZE, EXIT_STORAGE = 70, 71, 74
_ENDED: dict[Failure, tuple[str, str, str]] = {
    "memory": ("check_memory", "checking the file needed more memory than it may use", "Shorten the longest rows or split them."),
    "time": ("check_time", "checking the file took longer than it may", "Split the file, or choose another base model."),
    "size": ("check_size", "the tokenised rows take more space than they may", "Split the file, or choose another base model."),
    "crash": ("check_crashed", "the process that checked the file ended without a report", ""),
    "storage": ("check_storage", "a file could not be read or written while the rows were checked", "Try again."),
}
"""Rule, message and hint for each way in which the check itself ends early."""


_Progress = TypeAdapter(tuple[int, int])


class _Order(Frozen):
    """What the child is told."""

    request: CheckRequest
    memory_bytes: int
    cpu_seconds: int
    parent: int


async def run_check(request: CheckRequest, *, memory_bytes: int, timeout: timedelta, on_progress: OnProgress | None = None) -> DataReport:
    """`datasets.check` in a limited process. Whatever becomes of that process, the answer is a report.

    `memory_bytes` bounds its address space, `timeout` its wall clock (and, times the cores, its processor
    time). `request.out_dir` must be a new or empty directory; it is removed unless the report is ok.
    When the caller is cancelled or dies, the process dies with it.
    """
    cpu_seconds = int(timeout.total_seconds() * (os.cpu_count() or 1)) + 3
    order = _Order(request=request, memory_bytes=memory_bytes, cpu_seconds=cpu_seconds, parent=os.getpid())
    ok = False
    try:
        report = await _supervise(order, timeout, on_progress or quiet)
        ok = report.ok
        return report
    finally:
        if request.out_dir and not ok:
            shutil.rmtree(request.out_dir, ignore_errors=True)


async def _supervise(order: _Order, timeout: timedelta, on_progress: OnProgress) -> DataReport:
    report: DataReport | None = None

    def hear(line: bytes) -> None:
        nonlocal report
        said = _said(line)
        if isinstance(said, DataReport):
            report = said
        elif said is not None:
            on_progress(*said)

    command = Command((sys.executable, "-sP", "-m", "service.data_process"), _environment(), longest_line=MAX_REPORT_BYTES)
    try:
        ended = await run_limited(command, order.model_dump_json().encode(), hear, timeout=timeout)
    except NotStarted as error:
        return _failed(order, "storage", str(error))
    if ended.late:
        return _failed(order, "time", f"limit {timeout.total_seconds():,.0f} s")
    return _judged(order, ended, report)


def _said(line: bytes) -> tuple[int, int] | DataReport | None:
    """Progress or the report; None for a line that is neither, such as one cut off by the child's death."""
    with suppress(ValueError):
        return _Progress.validate_json(line) if line.startswith(b"[") else DataReport.model_validate_json(line)
    return None


def _judged(order: _Order, ended: Ended, report: DataReport | None) -> DataReport:
    """The report, or one of why there is none."""
    if ended.status == 0 and report is not None:
        return report
    if ended.status == EXIT_MEMORY or RUST_OUT_OF_MEMORY in ended.last_words:
        return _failed(order, "memory", f"limit {order.memory_bytes:,} bytes")
    if ended.status in (EXIT_SIZE, EXIT_STORAGE):
        return _failed(order, "size" if ended.status == EXIT_SIZE else "storage", ended.last_words)
    if ended.status == -signal.SIGXCPU:
        return _failed(order, "time", f"limit {order.cpu_seconds:,} s of processor time")
    return _failed(order, "crash", ended.words)


def _failed(order: _Order, failure: Failure, detail: str) -> DataReport:
    rule, message, hint = _ENDED[failure]
    return failed_report(order.request, Fault("", rule, f"{message} ({detail})", hint), failure=failure)


def _environment() -> dict[str, str]:
    """Only what Python needs: chat templates come from outside, and this process shall hold no secret."""
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "LC_ALL", "TZ", "LD_LIBRARY_PATH") if name in os.environ}
    root = str(Path(__file__).resolve().parent.parent)
    # Address space is limited: one malloc arena and one stack for each of many cores would use it up.
    frugal = {"MALLOC_ARENA_MAX": "2", "OPENBLAS_NUM_THREADS": "1", "RAYON_NUM_THREADS": str(min(8, os.cpu_count() or 1))}
    frugal["ARROW_DEFAULT_MEMORY_POOL"] = "system"  # its own pools reserve what they don't use
    return kept | frugal | {"PYTHONPATH": root, "PYTHONUTF8": "1"}


# --- the child ---


def main() -> int:
    """Read the order, check, write the report."""
    order = _Order.model_validate_json(sys.stdin.buffer.read())
    try:
        _limit_self(order)
        report = check(order.request, _throttled())
        _say(report.model_dump_json())
    except MemoryError:
        return EXIT_MEMORY
    except OSError as error:
        sys.stderr.write(f"{error}\n")
        return {errno.ENOMEM: EXIT_MEMORY, errno.EFBIG: EXIT_SIZE}.get(error.errno or 0, EXIT_STORAGE)
    return 0


def _limit_self(order: _Order) -> None:
    """Give up rights before the first byte from outside is read."""
    die_with(order.parent)
    size = _may_hold(order.request)
    file_bytes = 64 * 2**20 + 40 * size  # tokens and weights take at most 6 bytes for each byte, headers more
    limit_self(memory_bytes=order.memory_bytes, cpu_seconds=order.cpu_seconds, file_bytes=file_bytes)


def _may_hold(request: CheckRequest) -> int:
    """Bytes of content that the file may have: more than its own when it is packed, up to where that makes it a bomb."""
    size = os.path.getsize(request.path)
    with open(request.path, "rb") as file:
        packed = grows(file.read(4))
    return Growth(request.max_unpacked_ratio, request.max_unpacked_bytes).limit(size) if packed else size


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _throttled() -> OnProgress:
    """Progress as lines, at most one each `PROGRESS_SECONDS`."""
    last = -PROGRESS_SECONDS

    def report(rows: int, bytes_read: int) -> None:
        nonlocal last
        if (now := time.monotonic()) - last >= PROGRESS_SECONDS:
            last = now
            _say(f"[{rows},{bytes_read}]")

    return report


if __name__ == "__main__":
    sys.exit(main())
