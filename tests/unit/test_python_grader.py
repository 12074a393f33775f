"""A python grader's source in its process: it grades, whatever it does ends in time, and it reaches nothing of ours."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import psutil
import pytest

from trainers.graders.outcome import Errors, Refused, Unscored
from trainers.graders.python_grader import PythonLimits, check_source, run_source
from trainers.graders.template import Sample

ROOT = Path(__file__).resolve().parents[2]
LIMITS = PythonLimits(memory_bytes=256 * 2**20)
SAMPLE = Sample('{"answer": 42}', {"wanted": 42, "text": "ü\ud800"})


def source(body: str) -> str:
    return "def grade(sample, item):\n" + "".join(f"    {line}\n" for line in body.splitlines())


async def run(body: str, *, seconds: float = 10, limits: PythonLimits = LIMITS) -> float:
    try:
        return await run_source(source(body), SAMPLE, limits, timedelta(seconds=seconds))
    finally:
        assert [child for child in psutil.Process().children(recursive=True) if child.name().startswith("python")] == []


async def failure(body: str, *, seconds: float = 10, limits: PythonLimits = LIMITS) -> Errors:
    with pytest.raises(Unscored) as unscored:
        await run(body, seconds=seconds, limits=limits)
    return unscored.value.errors


async def details(body: str) -> str:
    errors = await failure(body)
    assert errors == Errors(
        python_grader_runtime_error=True, python_grader_runtime_error_details=errors.python_grader_runtime_error_details
    )
    return errors.python_grader_runtime_error_details or ""


@pytest.mark.parametrize(
    ("body", "reward"),
    [
        ("return 0.5", 0.5),
        ("return 1 if sample['output_json']['answer'] == item['wanted'] else 0", 1.0),
        ("return True", 1.0),
        ("return -3", -3.0),
        ("return len(sample['output_text'])", 14.0),
        ("return float(sample['choices'][0]['message']['content'] == sample['output_text'])", 1.0),
        ("return len(item['text'])", 2.0),
        ("print('noise' * 1000)\nimport sys\nsys.stderr.write('noise')\nreturn 1.0", 1.0),
        ("import difflib, hashlib, sqlite3, ssl, decimal, re, json, statistics\nreturn 1", 1.0),
    ],
)
async def test_rewards(body: str, reward: float) -> None:
    assert await run(body) == reward


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("return 'x'", "TypeError: grade must return a number, not str"),
        ("pass", "not NoneType"),
        ("return 1j", "not complex"),
        ("return float('nan')", "nan, which is not a finite number"),
        ("return -float('inf')", "-inf, which is not a finite number"),
        ("return 10 ** 400", "OverflowError"),
        ("x = 1\nreturn x / 0", "ZeroDivisionError: division by zero (line 3)"),
        ("import numpy", "ModuleNotFoundError"),
        ("import sys\nsys.exit(0)", "SystemExit"),
        ("import os\nos._exit(0)", "ended without a reward (exit status 0)"),
        ("import ctypes\nctypes.string_at(0)", "killed by SIGSEGV"),
        ("def down(): down()\ndown()", "RecursionError"),
        ("raise Exception('x' * 10_000_000)", "Exception: xxx"),
        ("raise Exception('\\ud800' + '\U0001f600' * 1999)", "Exception: ?\U0001f600"),
        ("class Evil(Exception):\n    def __str__(self): raise self\nraise Evil()", "ended without a reward"),
    ],
)
async def test_sources_that_fail(body: str, said: str) -> None:
    told = await details(body)
    assert said in told
    assert len(told) < 2100


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("def grade(:", "SyntaxError"),
        ("x = 1", "must define grade"),
        ("grade = 3", "must define grade"),
        ("1" * 250_000, "SyntaxError"),
        ("(" * 250_000, "SyntaxError"),
        ("-" * 250_000 + "1", "nested too deeply"),
        ("a = " + "+".join(["1"] * 100_000), "RecursionError"),
        ("\0", "null bytes"),
        ("def grade(a): return 1", "TypeError"),
    ],
    ids=range(9),
)
async def test_texts_that_are_no_grader(text: str, said: str) -> None:
    with pytest.raises(Unscored) as unscored:
        await run_source(text, SAMPLE, LIMITS, timedelta(seconds=10))
    assert said in (unscored.value.errors.python_grader_runtime_error_details or "")


async def test_a_source_is_checked_without_running_it() -> None:
    for good in (
        source("return 1"),
        "from m import grade",
        "grade = lambda sample, item: 1",
        "while True: pass\ndef grade(s, i): return 1",
    ):
        await check_source(good, LIMITS, timedelta(seconds=10))
    for bad in ("def grade(:", "x = 1", "(" * 250_000):
        with pytest.raises(Refused) as refused:
            await check_source(bad, LIMITS, timedelta(seconds=10))
        assert refused.value.field == "source"


@pytest.mark.parametrize(
    "body", ["while True: pass", "import time\ntime.sleep(1000)", "'a' * 30 in 'b'; import re; re.match('(a+)+$', 'a' * 40 + 'b')"]
)
async def test_an_endless_source_is_ended(body: str) -> None:
    began = time.monotonic()
    errors = await failure(body, seconds=1)
    assert time.monotonic() - began < 5
    assert errors.unresponsive_reward_error
    assert errors.python_grader_runtime_error_details == "took longer than 1 s"


@pytest.mark.parametrize(
    "body", ["x = [0]\nwhile True: x = x * 2", "return len('x' * 10 ** 9)", "x = []\nwhile True: x.append(bytes(2 ** 20))"]
)
async def test_a_source_that_wants_all_memory(body: str) -> None:
    assert "MemoryError: needs more than 268,435,456 bytes" in await details(body)


async def test_a_source_cannot_multiply() -> None:
    for body in ("import os\nwhile True: os.fork()", "import subprocess\nsubprocess.run(['/bin/true'])", "import os\nos.setsid()"):
        assert "Operation not permitted" in await details(body)
    assert "can't start new thread" in await details("import threading\nwhile True: threading.Thread(target=print).start()")
    assert "PermissionError" in await details("import multiprocessing.shared_memory as m\nimport os\nos.memfd_create('x')")


async def test_a_source_that_floods_its_answer_is_ended() -> None:
    flood = "import os\nfor fd in range(3, 32):\n    try:\n        while True: os.write(fd, {})\n    except OSError: pass"
    for piece in ("b'x' * 100_000", "b'{}\\n'"):
        began = time.monotonic()
        errors = await failure(flood.format(piece), seconds=60)
        assert time.monotonic() - began < 20
        assert errors.truncated_observation_error
        assert errors.python_grader_runtime_error


async def test_a_source_reads_no_environment_and_no_file_of_ours(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TUNESMITH_GRADER_API_KEY", "hush")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hush")
    secret = tmp_path / "api-key"
    secret.write_text("hush")
    assert "{} ['grader.py']" in await details("import os, sys\nraise Exception(f'{dict(os.environ)} {sys.argv}')")
    for path in (secret, Path(__file__), "/proc/self/environ", "/proc/1/environ", "/etc/passwd", "/dev/null", "/sys/kernel"):
        assert "No such file or directory" in await details(f"open({str(path)!r})")
    assert "([], 1)" in await details("import os\nraise Exception(os.listdir('.'), os.getpid())"), (
        "an empty directory, no process before it"
    )
    roots = {"tmp", "usr", "lib", "lib64", Path(sys.base_prefix).parts[1]}
    assert await run(f"import os\nreturn set(os.listdir('/')) <= {roots}") == 1


async def test_a_source_writes_a_little_and_nowhere_else() -> None:
    for directory in ("os.path.dirname(os.__file__)", "'/usr/lib'"):
        assert "Read-only file system" in await details(f"import os\nopen({directory} + '/tunesmith-probe', 'x')")
    assert await run("open('notes', 'w').write('x' * 1000)\nreturn len(open('notes').read())") == 1000
    large = "with open('x', 'wb') as file:\n    while True: file.write(bytes(2 ** 16))"
    assert "OSError" in await details(large)
    assert "OSError" in await details("for n in range(10_000):\n    open(str(n), 'wb').write(bytes(2 ** 16))")


async def test_a_machine_that_cannot_start_a_source_is_not_its_fault(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "none"))
    errors = await failure("return 1")
    assert errors == Errors(python_grader_server_error=True, python_grader_server_error_type=errors.python_grader_server_error_type)
    assert "No such file or directory" in (errors.python_grader_server_error_type or "")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("sys.executable", str(tmp_path / "python"))
    assert (await failure("return 1")).python_grader_server_error


async def test_a_source_has_no_capability() -> None:
    asks = "import ctypes\nhead, held = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()\n"
    assert await run(asks + "return ctypes.CDLL(None).capget(head, held) + sum(held)") == 0


@contextmanager
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.3)
        yield server


def heard(server: socket.socket) -> bool:
    try:
        server.accept()[0].close()
    except TimeoutError:
        return False
    return True


async def test_a_source_reaches_no_socket() -> None:
    with listener() as server:
        port = server.getsockname()[1]
        socket.create_connection(("127.0.0.1", port)).close()
        assert heard(server), "somebody who may connect is heard"
        assert "Operation not permitted" in await details(f"import socket\nsocket.create_connection(('127.0.0.1', {port}), 2)")
        assert not heard(server)


# Each wall by itself: scripts that raise one of them alone, in a process of their own.

WALL = """
import os, socket, sys
sys.path.insert(0, sys.argv[1])
from trainers.graders import jail, syscalls
from trainers.self_limits import die_with_parent
die_with_parent()
"""


def alone(script: str, *arguments: object) -> str:
    command = [sys.executable, "-I", "-S", "-c", WALL + script, str(ROOT), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_namespaces_alone_keep_the_network_out(tmp_path: Path) -> None:
    with listener() as server:
        said = alone(
            """
jail.enter(sys.argv[2])
try: socket.create_connection(("127.0.0.1", int(sys.argv[3])), 2)
except OSError as error: print(error.strerror)
""",
            tmp_path,
            server.getsockname()[1],
        )
        assert not heard(server)
    assert said == "Network is unreachable"


def test_the_filter_alone_keeps_sockets_and_processes_away() -> None:
    said = alone(
        """
syscalls.deny_syscalls()
for attempt in (socket.socket, socket.socketpair, os.fork, os.setsid, lambda: os.execv("/bin/true", ["true"])):
    try: attempt()
    except PermissionError as error: print(error.errno)
"""
    )
    assert said.split() == ["1"] * 5


def test_capabilities_are_gone_and_stay_gone(tmp_path: Path) -> None:
    said = alone(
        """
jail.enter(sys.argv[2])
if (child := os.fork()) == 0:
    jail.drop_capabilities()
    try: jail._call("umount2", b"/usr/lib", 2)
    except OSError as error: print(error.strerror, flush=True)
    os._exit(0)
os.waitpid(child, 0)
""",
        tmp_path,
    )
    assert said == "umount2: Operation not permitted"


NO_NAMESPACES = """
import asyncio, sys
from datetime import timedelta
from trainers.graders.outcome import Refused
from trainers.graders.python_grader import PythonLimits, run_source
from trainers.graders.syscalls import deny_syscalls
from trainers.graders.template import Sample
from trainers.self_limits import die_with_parent
die_with_parent()
deny_syscalls(["unshare"])
limits = PythonLimits(256 * 2**20, allow_unisolated=sys.argv[1] == "allow")
try:
    print(asyncio.run(run_source(sys.argv[2], Sample("x"), limits, timedelta(seconds=20))))
except Refused as refused:
    print(refused.field, refused.message)
"""


def without_namespaces(allow: str, body: str) -> str:
    done = subprocess.run([sys.executable, "-c", NO_NAMESPACES, allow, source(body)], capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_without_namespaces_a_source_is_refused_unless_that_is_allowed() -> None:
    refused = without_namespaces("refuse", "return 1")
    assert refused.startswith("type python graders are off: this kernel offers no network isolation (unshare: Operation not permitted)")
    assert "TUNESMITH_GRADER_ALLOW_UNISOLATED" in refused
    assert without_namespaces("allow", "return 1") == "1.0\n"
    connect = "import socket\ntry: socket.socket()\nexcept PermissionError: return 7"
    assert without_namespaces("allow", connect) == "7.0\n", "the filter stands even then"
