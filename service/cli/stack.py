"""`tunesmith up`, `down` and `status`: the embedded stack of one data directory. `doctor` is beside it.

The gateway is a process of its own (`python -m service.gateway`), which starts Ray; this module starts it, waits, and
ends it. What runs is read from the lock and the processes themselves, never from a file that a dead process left.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from service.cli.doctor import doctor as doctor
from service.cli.local import Local
from service.cli.options import DataDir, Output
from service.cli.output import Ended, ExitCode, Format, say, show_one

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

    from service.embedded import StackState
    from service.settings import Settings

ADDRESSES = ("base_url", "grpc_address", "api_key_file", "ray_address", "data_dir", "log")
READY_SECONDS = 240.0
"""A first start on a slow, busy machine; half of it is Ray's."""
LEAVE_SECONDS = 60.0
"""Requests in flight, then Ray, get their grace."""
Port = Annotated[
    int | None,
    typer.Option("--port", min=0, max=65535, help="REST port; 0 takes a free one.  [default: the last, else 8400]", show_default=False),
]
GrpcPort = Annotated[
    int | None,
    typer.Option(
        "--grpc-port", min=0, max=65535, help="gRPC port; 0 takes a free one.  [default: the last, else 8401]", show_default=False
    ),
]
Detach = Annotated[bool, typer.Option("--detach", help="Return once the stack is ready, and leave it running.")]


def up(data_dir: DataDir = None, port: Port = None, grpc_port: GrpcPort = None, detach: Detach = False) -> None:
    """Start the service on this machine: gateway, scheduler and, unless TUNESMITH_RAY_ADDRESS is set, a local Ray head.

    Says where it answers, where the API key lies (and at the first start what it is) and how a client connects.
    Exit code 2: it can't start, and one line says why; nothing is left running.
    """
    from service.embedded import CannotStart, preflight

    given = {name: value for name, value in (("port", port), ("grpc_port", grpc_port)) if value is not None}
    settings = Local.of(data_dir).settings.model_copy(update=given)
    try:
        preflight(settings)
    except CannotStart as error:
        raise Ended(ExitCode.USAGE, str(error)) from None
    first_start = not (settings.data_dir / "api-key").exists()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    gateway = _spawn(settings, detach)
    try:
        state = _until_ready(settings, gateway, detach)
        typer.echo(_welcome(state, first_start))
        if not detach:
            raise typer.Exit(_wait(gateway))
    except KeyboardInterrupt:
        say("Stopping …")
        _wait_gone(gateway)
        raise


def down(data_dir: DataDir = None) -> None:
    """Stop the service and its Ray head, and wait until both are gone. Without effect when nothing runs."""
    from service.embedded import Lock
    from service.processes import StackProcesses
    from service.ray_head import stop_head

    directory = Local.of(data_dir).settings.data_dir
    pid = Lock.holder(directory)
    processes = StackProcesses.of(directory)
    if pid is None and not processes.all():
        say(f"Nothing runs on {directory}.")
        return
    if pid is not None and not _ended(directory):
        raise Ended(ExitCode.FAILED, f"the gateway on {directory} (process {pid}) could not be stopped")
    if not stop_head(directory):
        left = ", ".join(str(process.pid) for process in processes.all())
        raise Ended(ExitCode.FAILED, f"Ray on {directory} could not be stopped: processes {left} are left")
    say(f"Stopped what ran on {directory}.")


def status(data_dir: DataDir = None, output: Output = Format.TABLE) -> None:
    """Say what runs on the data directory and where it answers. Exit code 0: the service runs; 5: it does not."""
    facts = stack_facts(Local.of(data_dir).settings.data_dir)
    fields: list[tuple[str, Callable[[Any], object]]] = [
        ("running", lambda row: "yes" if row["running"] else "no"),
        ("ready", lambda row: "yes" if row["ready"] else f"no: {row['waiting_for']}" if row["waiting_for"] else "no"),
        *(
            (name.replace("_", " "), _entry(name))
            for name in ("base_url", "grpc_address", "api_key_file", "ray_address", "data_dir", "log")
        ),
        ("gateway process", lambda row: row["pids"]["gateway"]),
        ("Ray processes", lambda row: " ".join(map(str, row["pids"]["ray"]))),
    ]
    show_one(facts, fields, output)
    if not facts["running"]:
        raise typer.Exit(ExitCode.AWAY)


def stack_facts(data_dir: Path) -> dict[str, Any]:
    """What `status -o json` says; addresses are those of the last gateway when none runs."""
    from service.embedded import Lock, StackState
    from service.processes import StackProcesses

    state, pid = StackState.read(data_dir), Lock.holder(data_dir)
    waiting_for = _waiting_for(state) if state is not None and pid == state.pid else "the gateway is starting" if pid is not None else None
    return {
        "running": pid is not None,
        "ready": pid is not None and waiting_for == "",
        "waiting_for": waiting_for or None,
        "base_url": state.base_url if state else None,
        "grpc_address": state.grpc_address if state else None,
        "api_key_file": state.api_key_file if state else None,
        "ray_address": state.ray_address if state else None,
        "data_dir": str(data_dir.absolute()),
        "log": str(data_dir.absolute() / "logs" / "gateway.log"),
        "pids": {"gateway": pid or None, "ray": sorted(process.pid for process in StackProcesses.of(data_dir).head())},
    }


# Starting


def _spawn(settings: Settings, detach: bool) -> subprocess.Popen[bytes]:
    logs = settings.data_dir / "logs"
    logs.mkdir(exist_ok=True, mode=0o700)
    # -P: a directory named "service" where the command is typed must not take the place of ours.
    command = [sys.executable, "-P", "-m", "service.gateway", "--data-dir", str(settings.data_dir)]
    for name in ("port", "grpc_port"):
        if name in settings.model_fields_set:
            command += [f"--{name.replace('_', '-')}", str(getattr(settings, name))]
    if not detach:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
    say(f"Starting the service on {settings.data_dir} …")
    with open(_output(settings.data_dir), "wb") as output:
        command += ["--log-file", str(logs / "gateway.log")]
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True)


def _until_ready(settings: Settings, gateway: subprocess.Popen[bytes], detach: bool) -> StackState:
    """Raises Ended when it does not come up; then nothing of it is left."""
    from service.embedded import StackState

    deadline, reason = time.monotonic() + READY_SECONDS, "the gateway is starting"
    while time.monotonic() < deadline:
        if gateway.poll() is not None:
            raise _did_not_start(settings, gateway.returncode, detach)
        state = StackState.read(settings.data_dir)
        if state is not None and state.pid == gateway.pid:
            reason = _waiting_for(state)
            if not reason:
                return state
        time.sleep(0.25)
    _wait_gone(gateway)
    raise Ended(ExitCode.FAILED, f"the service was not ready within {READY_SECONDS:.0f} s: {reason}", f"See {settings.data_dir / 'logs'}.")


def _did_not_start(settings: Settings, code: int, detach: bool) -> Exception:
    if not detach:
        return typer.Exit(code if code > 0 else ExitCode.FAILED)  # it has said why itself
    lines = _output(settings.data_dir).read_text(errors="replace").splitlines()
    said = next((line.removeprefix("tunesmith: ") for line in reversed(lines) if line.startswith("tunesmith: ")), None)
    if code == ExitCode.USAGE and said:
        return Ended(ExitCode.USAGE, said)
    return Ended(ExitCode.FAILED, f"the gateway ended with status {code} while it started", f"See {settings.data_dir / 'logs'}.")


def _output(data_dir: Path) -> Path:
    """What the detached gateway writes beside its log: its last words when it can't log them."""
    return data_dir / "logs" / "gateway.out"


def _waiting_for(state: StackState) -> str:
    """What the service still lacks, in words; empty when it is ready."""
    import httpx

    try:
        # Nothing secret goes this way, and a certificate need not be for the address of this machine.
        answer = httpx.get(f"{state.base_url.removesuffix('/v1')}/readyz", timeout=15, trust_env=False, verify=False)
        parts = {str(name): str(said) for name, said in answer.json()["parts"].items()}
    except (httpx.HTTPError, ValueError, KeyError, AttributeError):
        return "the gateway does not answer"
    return "; ".join(f"{name}: {said}" for name, said in parts.items() if said != "ok")


def _welcome(state: StackState, first_start: bool) -> str:
    key = f"  {Path(state.api_key_file).read_text().strip()}  (shown this once)" if first_start else ""
    return "\n".join(
        [
            f"Tunesmith is ready at {state.base_url}",
            f"API key in {state.api_key_file}{key}",
            "",
            "import openai, pathlib",
            f'client = openai.OpenAI(base_url="{state.base_url}", api_key=pathlib.Path("{state.api_key_file}").read_text().strip())',
            "print(client.models.list())",
        ]
    )


# Stopping


def _wait(gateway: subprocess.Popen[bytes]) -> int:
    """Until the gateway ends; a signal to end is passed on to it, so that it stops everything in order."""

    def pass_on(number: int, frame: FrameType | None) -> None:
        gateway.send_signal(signal.SIGTERM)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, pass_on)
    say("Ctrl-C stops it.")
    return max(gateway.wait(), 0)


def _wait_gone(gateway: subprocess.Popen[bytes]) -> None:
    gateway.terminate()
    try:
        gateway.wait(LEAVE_SECONDS)
    except subprocess.TimeoutExpired:
        gateway.kill()
        gateway.wait()


def _ended(data_dir: Path) -> bool:
    """SIGTERM, and after LEAVE_SECONDS SIGKILL, to the gateway; whether it has let go of the directory and is gone."""
    from service.embedded import Lock
    from service.processes import lives

    last = 0
    for number, seconds in ((signal.SIGTERM, LEAVE_SECONDS), (signal.SIGKILL, 10.0)):
        deadline, signalled = time.monotonic() + seconds, False
        while (pid := Lock.holder(data_dir)) is not None or lives(last):
            last = pid or last
            if pid and not signalled:
                with suppress(ProcessLookupError):
                    os.kill(pid, number)
                signalled = True
            if time.monotonic() > deadline:
                break
            time.sleep(0.1)
        else:
            return True
    return False


def _entry(name: str) -> Callable[[Any], object]:
    return lambda row: row[name]
