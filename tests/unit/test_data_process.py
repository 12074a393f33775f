"""The data check in its own process: whatever becomes of that process, there is a report and nothing else is left."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest

from service.data_process import run_check
from service.data_report import CheckRequest, DataReport
from service.datasets import check
from tests.tiny_chat import CHATML, chat_row, write_chat_model, write_rows

MEMORY = 2**30
ENDLESS = "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}{% endfor %}{% endfor %}{% endfor %}"
ROOT = Path(__file__).resolve().parents[2]


def request(tmp_path: Path, lines: list[Any], template: str = CHATML, **asked: Any) -> CheckRequest:
    defaults: dict[str, Any] = {"method": "supervised", "max_length": 64, "overlong": "truncate", "min_rows": 1}
    return CheckRequest(
        path=str(write_rows(tmp_path / "rows.jsonl", lines)),
        model_dir=str(write_chat_model(tmp_path / "model", template)),
        out_dir=str(tmp_path / "out"),
        **(defaults | asked),
    )


async def run(asked: CheckRequest, *, memory_bytes: int = MEMORY, seconds: float = 60, **more: Any) -> DataReport:
    return await run_check(asked, memory_bytes=memory_bytes, timeout=timedelta(seconds=seconds), **more)


async def limited_child() -> psutil.Process:
    """The process of the check now running, once it has limited itself."""
    for _ in range(600):
        for child in psutil.Process().children():
            if "service.data_process" in child.cmdline() and child.rlimit(psutil.RLIMIT_CORE) == (0, 0):
                return child
        await asyncio.sleep(0.05)
    raise AssertionError("no process checks a file")


def children() -> list[psutil.Process]:
    return [child for child in psutil.Process().children(recursive=True) if "service.data_process" in child.cmdline()]


async def test_the_report_is_that_of_a_check_in_this_process(tmp_path: Path) -> None:
    for lines in ([chat_row()] * 3, [chat_row(), "{", chat_row("<|im_end|>"), {"messages": [{"role": "é😀", "content": "x"}]}]):
        asked = request(tmp_path, lines)
        report = await run(asked)
        assert report == check(asked.model_copy(update={"out_dir": str(tmp_path / "here")}))
        assert (tmp_path / "out" / "meta.json").exists() == report.ok
        assert (tmp_path / "out").exists() == report.ok, "a dataset with faults is removed"
        assert children() == []


async def test_a_report_of_many_faults_comes_through_whole(tmp_path: Path) -> None:
    report = await run(request(tmp_path, ["x" * 100] * 11_000, limit=10_000))
    assert (len(report.faults), report.fault_count) == (10_000, 11_000)


async def test_progress_is_told(tmp_path: Path) -> None:
    asked = request(tmp_path, [chat_row(f"row {i}") for i in range(2_000)])
    seen: list[tuple[int, int]] = []
    assert (await run(asked, on_progress=lambda *place: seen.append(place))).ok
    assert seen[0][0] == 512
    assert seen == sorted(seen)
    assert seen[-1][1] <= Path(asked.path).stat().st_size


@pytest.mark.parametrize("error", [ValueError("no display"), BrokenPipeError()])
async def test_an_error_of_the_callers_display_is_the_callers(tmp_path: Path, error: Exception) -> None:
    def display(rows: int, bytes_read: int) -> None:
        raise error

    with pytest.raises(type(error)):
        await run(request(tmp_path, [chat_row()]), on_progress=display)
    assert children() == []
    assert not (tmp_path / "out").exists()


async def test_a_template_that_never_ends_is_killed_and_reported(tmp_path: Path) -> None:
    report = await run(request(tmp_path, [chat_row()], ENDLESS), seconds=2)
    assert (report.failure, report.faults[0].rule, report.retryable) == ("time", "check_time", False)
    assert "limit 2 s" in report.summary
    assert children() == []
    assert not (tmp_path / "out").exists()


async def test_a_template_that_wants_all_memory_is_reported(tmp_path: Path) -> None:
    report = await run(request(tmp_path, [chat_row()], "{{ 'x' * 9_000_000_000 }}"))
    assert (report.failure, report.faults[0].rule) == ("memory", "check_memory")


async def test_a_tokenizer_that_wants_all_memory_is_reported(tmp_path: Path) -> None:
    report = await run(request(tmp_path, [chat_row()], "{{ 'x y' * 20_000_000 }}"), memory_bytes=400 * 2**20)
    assert report.failure == "memory"


async def test_a_killed_process_is_reported(tmp_path: Path) -> None:
    task = asyncio.create_task(run(request(tmp_path, [chat_row()], ENDLESS)))
    (await limited_child()).send_signal(signal.SIGKILL)
    report = await task
    assert (report.failure, report.error_code) == ("crash", "data_check_crashed")
    assert "SIGKILL" in report.summary
    assert not (tmp_path / "out").exists()


async def test_a_cancelled_check_leaves_no_process_and_no_file(tmp_path: Path) -> None:
    task = asyncio.create_task(run(request(tmp_path, [chat_row()], ENDLESS)))
    child = await limited_child()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not child.is_running()
    assert not (tmp_path / "out").exists()


async def test_the_process_is_limited_and_holds_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNESMITH_RAY_TOKEN", "tok-hush")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "aws-hush")
    task = asyncio.create_task(run(request(tmp_path, [chat_row()], ENDLESS)))
    child = await limited_child()
    assert child.rlimit(psutil.RLIMIT_AS) == (MEMORY, MEMORY)
    assert child.rlimit(psutil.RLIMIT_CPU)[1] <= 60 * (os.cpu_count() or 1) + 3
    assert 0 < child.rlimit(psutil.RLIMIT_FSIZE)[1] < 65 * 2**20
    assert os.getpgid(child.pid) == child.pid
    told = " ".join([*child.cmdline(), *child.environ().values(), *child.environ()])
    assert "hush" not in told
    assert "TOKEN" not in told
    assert "rows.jsonl" not in told, "what is checked is no argument either"
    assert "NoNewPrivs:\t1" in Path(f"/proc/{child.pid}/status").read_text()
    task.cancel()
    await asyncio.wait([task])


async def test_a_disk_that_fails_is_worth_another_try(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    asked = request(tmp_path, [chat_row()])
    for wrong in ({"out_dir": str(tmp_path / "file" / "out")}, {"path": str(tmp_path / "none.jsonl")}):
        report = await run(asked.model_copy(update=wrong))
        assert (report.failure, report.retryable) == ("storage", True)
        assert "[Errno" in report.summary


# Checks in a process whose only child they are: limits are inherited, and its children's peak memory is that of the check.

ALONE = """
import asyncio, json, os, resource, sys
from datetime import timedelta
from service.data_process import run_check
from service.data_report import CheckRequest
order = json.load(sys.stdin)
if order["file_bytes"]:
    resource.setrlimit(resource.RLIMIT_FSIZE, (order["file_bytes"],) * 2)
check = run_check(CheckRequest.model_validate_json(order["request"]), memory_bytes=2**30, timeout=timedelta(seconds=200))
report = asyncio.run(check)
peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
json.dump({"report": report.model_dump_json(), "peak": peak}, sys.stdout)
"""


def alone(asked: CheckRequest, *, file_bytes: int = 0) -> tuple[DataReport, int]:
    """The report of a check, and the peak of its resident memory in bytes."""
    order = json.dumps({"request": asked.model_dump_json(), "file_bytes": file_bytes})
    done = subprocess.run([sys.executable, "-c", ALONE], input=order, capture_output=True, text=True, cwd=ROOT, check=True)
    answer = json.loads(done.stdout)
    return DataReport.model_validate_json(answer["report"]), answer["peak"]


def test_more_output_than_allowed_is_reported(tmp_path: Path) -> None:
    report, _ = alone(request(tmp_path, [chat_row()] * 50), file_bytes=1000)
    assert (report.failure, report.retryable) == ("size", False)


@pytest.mark.slow
def test_one_line_of_500_mb_is_read_in_constant_memory(tmp_path: Path) -> None:
    asked = request(tmp_path, [chat_row()] * 9)
    with open(asked.path, "ab") as file:
        file.write(b'{"messages": [{"role": "user", "content": "' + b"x" * 8192)
        file.truncate(file.tell() + 500 * 2**20)  # a hole takes no disk
        file.seek(0, os.SEEK_END)
        file.write(b'"}]}\n' + json.dumps(chat_row()).encode())
    report, peak = alone(asked)
    assert [(fault.line, fault.rule) for fault in report.faults] == [(10, "line_too_long")]
    assert "524,2" in report.faults[0].message
    assert (report.examples, report.complete) == (11, True)
    assert peak < 160 * 2**20


def test_a_million_tiny_lines_end_early_in_constant_memory(tmp_path: Path) -> None:
    asked = request(tmp_path, [])
    Path(asked.path).write_bytes(b"{}\n" * 1_000_000)
    report, peak = alone(asked)
    assert report.fault_count >= 100_000
    assert (len(report.faults), report.complete) == (50, False)
    assert peak < 160 * 2**20


def test_more_good_rows_take_no_more_memory(tmp_path: Path) -> None:
    few, small = alone(request(tmp_path, [chat_row()] * 600))
    many, large = alone(request(tmp_path, [chat_row()] * 5_000))
    assert few.ok
    assert many.rows == 5_000
    assert large < small + 20 * 2**20


def test_the_process_dies_with_its_parent(tmp_path: Path) -> None:
    order = json.dumps({"request": request(tmp_path, [chat_row()], ENDLESS).model_dump_json(), "file_bytes": 0})
    with subprocess.Popen([sys.executable, "-c", ALONE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT) as parent:
        assert parent.stdin is not None
        parent.stdin.write(order.encode())
        parent.stdin.close()
        while not (found := psutil.Process(parent.pid).children()):
            time.sleep(0.02)
        child = found[0]
        while child.rlimit(psutil.RLIMIT_CORE) != (0, 0):
            time.sleep(0.02)
        parent.kill()
    _, alive = psutil.wait_procs([child], timeout=30)
    for process in alive:
        process.kill()
    assert alive == []
