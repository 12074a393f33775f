"""The data directory's lock, ports and published state, and the processes that bear its mark."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from service.embedded import EPHEMERAL, CannotStart, Lock, Ports, StackState, bindable, free_port, listen, preflight
from service.processes import MARKER, RUN_MARKER, StackProcesses, end
from service.ray_command import NotOurs, head_command, private_directory, ray_dir
from service.ray_head import known_head, stop_head
from service.settings import Settings

SLEEP = [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(300)"]
HOLD = """import sys, time
from pathlib import Path
from service.embedded import Lock

with Lock.held(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(300)
"""


def settings(data_dir: Path, **changes: object) -> Settings:
    return Settings(data_dir=data_dir, **{"port": 0, "grpc_port": 0, "min_free_bytes": 0, **changes})  # type: ignore[arg-type]


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []

    def run(command: list[str], **environment: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(command, env=os.environ | environment, stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout is not None
        process.stdout.readline()
        return process

    yield run
    for process in started:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


# Before anything is started


def test_preflight_passes_and_leaves_only_the_directory(tmp_path: Path) -> None:
    preflight(settings(tmp_path / "new" / "data"))
    assert list((tmp_path / "new" / "data").iterdir()) == []
    assert (tmp_path / "new" / "data").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("name", ["port", "grpc_port"])
def test_a_taken_port_is_named(tmp_path: Path, name: str) -> None:
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(CannotStart, match=f"port {port} on 127.0.0.1 is taken"):
            preflight(settings(tmp_path / "data", **{name: port}))
    assert not (tmp_path / "data").exists()


def test_one_port_can_not_serve_both(tmp_path: Path) -> None:
    port = free_port()
    with pytest.raises(CannotStart, match="can't both"):
        preflight(settings(tmp_path, port=port, grpc_port=port))


def test_too_little_disk(tmp_path: Path) -> None:
    with pytest.raises(CannotStart, match="GB of free disk"):
        preflight(settings(tmp_path, min_free_bytes=10**18))


def test_a_directory_without_write_permission(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    # /proc refuses root as well.
    for place in (tmp_path / "file" / "data", Path("/proc/tunesmith")):
        with pytest.raises(CannotStart, match="no write permission in the data directory"):
            preflight(settings(place))


# Lock


def test_the_lock_names_its_holder_and_is_gone_with_it(tmp_path: Path, start: Callable[..., subprocess.Popen[str]]) -> None:
    assert Lock.holder(tmp_path) is None
    holder = start([sys.executable, "-c", HOLD, str(tmp_path)])
    assert Lock.holder(tmp_path) == holder.pid
    with pytest.raises(CannotStart, match=f"runs on .* already .process {holder.pid}"), Lock.held(tmp_path):
        pass
    with pytest.raises(CannotStart, match="already"):
        preflight(settings(tmp_path))
    holder.kill()
    holder.wait()
    assert Lock.holder(tmp_path) is None
    with Lock.held(tmp_path):
        assert Lock.holder(tmp_path) == os.getpid()
    assert Lock.holder(tmp_path) is None


# The head's environment


def test_the_local_head_knows_where_optimizer_state_may_lie_and_none_of_our_secrets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUNESMITH_NVME_DIR", "/mnt/nvme")
    monkeypatch.setenv("TUNESMITH_DATABASE_URL", "postgresql://name:secret@db/t")
    environment = head_command(tmp_path, tmp_path / "token").environment
    shutil.rmtree(ray_dir(tmp_path))
    assert environment["TUNESMITH_NVME_DIR"] == "/mnt/nvme"
    assert "TUNESMITH_DATABASE_URL" not in environment


# Ports and state


def test_ports_that_were_taken_once_are_taken_again(tmp_path: Path) -> None:
    ports = Ports.open(settings(tmp_path))
    assert ports.rest != ports.grpc
    ports.keep(ports.rest, ports.grpc)
    assert Ports.open(settings(tmp_path)) == ports
    assert Ports.open(Settings(data_dir=tmp_path)) == ports
    asked_for = free_port("127.0.0.1", frozenset({ports.rest, ports.grpc}))
    assert Ports.open(settings(tmp_path, port=asked_for)).rest == asked_for
    with listen("127.0.0.1", ports.grpc):
        other = Ports.open(settings(tmp_path))
    assert other.rest == ports.rest
    assert other.grpc not in (ports.rest, ports.grpc)


def test_a_spoilt_ports_file_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / "ports.json").write_text('{"rest": ')
    assert bindable("127.0.0.1", Ports.open(settings(tmp_path)).rest)


def test_free_ports_lie_outside_those_of_outgoing_connections() -> None:
    low = int(EPHEMERAL.read_text().split()[0])
    assert all(free_port() < low for _ in range(20))
    assert free_port("127.0.0.1", frozenset({1})) != 1


def test_the_state_is_read_as_it_was_written_and_only_its_owner_may(tmp_path: Path) -> None:
    assert StackState.read(tmp_path) is None
    state = StackState(7, "http://127.0.0.1:1/v1", "127.0.0.1:2", "/k", None)
    state.write(tmp_path)
    assert StackState.read(tmp_path) == state
    assert (tmp_path / "stack.json").stat().st_mode & 0o777 == 0o600
    (tmp_path / "stack.json").write_text("{}")
    assert StackState.read(tmp_path) is None


# Processes


def test_processes_are_found_by_their_mark_alone(tmp_path: Path, start: Callable[..., subprocess.Popen[str]]) -> None:
    ours = StackProcesses.of(tmp_path)
    head = start(SLEEP, **{MARKER: ours.marker})
    run = start(SLEEP, **{MARKER: ours.marker, RUN_MARKER: "ftjob-1-1"})
    shared = start(SLEEP, **{MARKER: ours.marker, RUN_MARKER: ""})
    other = start(SLEEP, **{MARKER: str(tmp_path / "other"), RUN_MARKER: "ftjob-1-1"})
    by_hand = start(SLEEP, TUNESMITH_DATA_DIR=str(tmp_path))
    assert {p.pid for p in ours.all()} == {head.pid, run.pid, shared.pid}
    assert {p.pid for p in ours.head()} == {head.pid, shared.pid}
    assert [p.pid for p in ours.of_run("ftjob-1-1")] == [run.pid]
    assert ours.of_run("ftjob-1-10") == []
    assert ours.run_ids() == {"ftjob-1-1"}
    assert (ours.has(head.pid), ours.has(other.pid)) == (True, False)
    assert ours.end_all()
    assert [p.poll() for p in (other, by_hand)] == [None, None]
    assert head.wait(5) == -signal.SIGKILL


def test_a_process_that_nobody_has_waited_for_counts_as_gone(tmp_path: Path, start: Callable[..., subprocess.Popen[str]]) -> None:
    ours = StackProcesses.of(tmp_path)
    process = start(SLEEP, **{MARKER: ours.marker})
    os.kill(process.pid, signal.SIGKILL)
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert ours.all() == []
    assert not ours.has(process.pid)


def test_a_stopped_process_that_ignores_sigterm_is_ended_too(tmp_path: Path, start: Callable[..., subprocess.Popen[str]]) -> None:
    deaf = "import signal, time; signal.signal(15, signal.SIG_IGN); print('up', flush=True); time.sleep(300)"
    ours = StackProcesses.of(tmp_path)
    process = start([sys.executable, "-c", deaf], **{MARKER: ours.marker})
    process.send_signal(signal.SIGSTOP)
    assert end(ours.all)
    assert process.wait(5) == -signal.SIGKILL


def test_a_process_that_listens_beyond_loopback_is_told(tmp_path: Path, start: Callable[..., subprocess.Popen[str]]) -> None:
    code = "import socket, time; s = socket.create_server(('{}', 0)); print('up', flush=True); time.sleep(300)"
    ours = StackProcesses.of(tmp_path)
    start([sys.executable, "-c", code.format("127.0.0.1")], **{MARKER: ours.marker})
    assert ours.beyond_loopback() == []
    start([sys.executable, "-c", code.format("0.0.0.0")], **{MARKER: ours.marker})
    (address,) = ours.beyond_loopback()
    assert address.startswith("0.0.0.0:")


# The head's directory


def test_ray_gets_a_short_directory_that_is_ours_alone(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    directory = ray_dir(deep)
    assert len(str(directory)) < 40
    assert ray_dir(deep / ".." / deep.name) == directory
    assert ray_dir(tmp_path) != directory


def test_a_directory_of_somebody_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir(mode=0o777)
    (tmp_path / "open").chmod(0o777)
    (tmp_path / "link").symlink_to(tmp_path)
    for place in ("open", "link"):
        with pytest.raises(NotOurs, match="not a directory of ours alone"):
            private_directory(tmp_path / place)
    assert private_directory(tmp_path / "fresh").stat().st_mode & 0o777 == 0o700


def test_stopping_a_head_that_was_never_started(tmp_path: Path) -> None:
    assert known_head(tmp_path) is None
    assert stop_head(tmp_path)


def test_stopping_a_head_takes_its_runs_and_its_directory_along(tmp_path: Path, start: Callable[..., subprocess.Popen[str]]) -> None:
    ours = StackProcesses.of(tmp_path)
    head, run = start(SLEEP, **{MARKER: ours.marker}), start(SLEEP, **{MARKER: ours.marker, RUN_MARKER: "ftjob-1-1"})
    (private_directory(ray_dir(tmp_path)) / "left").write_text("")
    began = time.monotonic()
    assert stop_head(tmp_path)
    assert head.wait(5) == run.wait(5) == -signal.SIGTERM
    assert time.monotonic() - began < 60
    assert not ray_dir(tmp_path).exists()


def test_a_listening_socket_can_follow_another_at_once() -> None:
    """After kill -9 connections linger in TIME_WAIT; the port must not be refused for that."""
    with listen("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        client = socket.create_connection(("127.0.0.1", port))
        accepted, _ = first.accept()
        accepted.close()
        client.close()
    listen("127.0.0.1", port).close()
