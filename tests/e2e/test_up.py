"""`tunesmith up`, `down`, `status` and `doctor` as a user meets them."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import httpx
import psutil
import pytest

from service.processes import StackProcesses
from service.ray_command import ray_dir
from service.ray_head import known_head
from tests.e2e.stack import TUNESMITH, Stack, kill, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
ENV = {"TUNESMITH_MIN_FREE_BYTES": "0"}


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    stack = Stack(tmp_path_factory.mktemp("up") / "data", ENV)
    yield stack
    stack.down()


@pytest.fixture(scope="module")
def first_words(stack: Stack) -> str:
    """What the first `up` of the directory printed; the stack runs from here on."""
    return stack.command("up", "--detach", "--port", "0", "--grpc-port", "0", timeout=300).stdout


def gateways(data_dir: Path) -> list[int]:
    """Processes of a gateway on this directory."""
    found: list[int] = []
    for process in psutil.process_iter():
        try:
            if "service.gateway" in process.cmdline() and str(data_dir) in process.cmdline():
                found.append(process.pid)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def refused(stack: Stack, *options: str) -> str:
    """The one line with which `up` refuses; nothing of it is left running."""
    done = stack.command("up", "--detach", *options, check=False)
    assert done.returncode == 2, (done.stdout, done.stderr)
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    return line


def nothing_runs(data_dir: Path) -> bool:
    return gateways(data_dir) == [] and StackProcesses.of(data_dir).all() == []


def test_the_first_start_tells_all_that_a_client_needs(stack: Stack, first_words: str) -> None:
    status = stack.status()
    assert (status["running"], status["ready"], status["waiting_for"]) == (True, True, None)
    key_file = Path(status["api_key_file"])
    assert key_file.stat().st_mode & 0o777 == 0o600
    for needed in (status["base_url"], str(key_file), key_file.read_text().strip()):
        assert needed in first_words
    assert gateways(stack.data_dir) == [status["pids"]["gateway"]]
    assert sorted(status["pids"]["ray"]) == sorted(p.pid for p in StackProcesses.of(stack.data_dir).head())
    program = first_words.partition("\n\n")[2]
    assert len(program.splitlines()) == 3
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "SyncPage" in done.stdout


def test_rest_and_grpc_listen_on_loopback_where_status_says(stack: Stack, first_words: str) -> None:
    status = stack.status()
    connections = psutil.Process(status["pids"]["gateway"]).net_connections(kind="inet")
    listening = {f"{c.laddr.ip.removeprefix('::ffff:')}:{c.laddr.port}" for c in connections if c.status == psutil.CONN_LISTEN}
    assert listening == {status["base_url"].removeprefix("http://").removesuffix("/v1"), status["grpc_address"]}


def test_no_secret_in_any_argument_or_log(stack: Stack, first_words: str) -> None:
    head = known_head(stack.data_dir)
    assert head is not None
    assert head.token is not None
    secrets = [Path(stack.status()["api_key_file"]).read_text().strip(), head.token]
    pids = [stack.status()["pids"]["gateway"], *stack.status()["pids"]["ray"]]
    texts = [" ".join(psutil.Process(pid).cmdline()) for pid in pids if psutil.pid_exists(pid)]
    logs = [p for root in (stack.data_dir / "logs", ray_dir(stack.data_dir)) for p in root.rglob("*") if p.is_file() and not p.is_symlink()]
    assert logs
    texts += [path.read_text(errors="replace") for path in logs]
    assert [secret for secret in secrets if any(secret in text for text in texts)] == []


def test_a_second_up_on_the_directory_is_refused(stack: Stack, first_words: str) -> None:
    before = stack.status()["pids"]
    assert f"a stack runs on {stack.data_dir} already (process {before['gateway']})" in refused(stack, "--port", "0", "--grpc-port", "0")
    assert stack.status()["pids"]["gateway"] == before["gateway"]


def test_doctor_finds_a_running_stack_well(stack: Stack, first_words: str) -> None:
    findings = {finding["check"]: finding for finding in json.loads(stack.command("doctor", "-o", "json").stdout)}
    states = {name: findings[name]["state"] for name in ("python", "disk", "ports", "ray", "ray token", "service", "api key")}
    assert set(states.values()) == {"ok"}, findings
    assert findings["base models"]["state"] == "warn"
    assert "tunesmith models pull" in findings["base models"]["next_step"]
    key_file = Path(stack.status()["api_key_file"])
    key_file.chmod(0o644)
    done = stack.command("doctor", check=False)
    key_file.chmod(0o600)
    assert done.returncode == 1
    assert f"chmod 600 {key_file}" in done.stdout


def test_a_second_stack_can_use_the_cluster_of_the_first(stack: Stack, first_words: str, tmp_path: Path) -> None:
    head = known_head(stack.data_dir)
    assert head is not None
    assert head.token is not None
    other = Stack(tmp_path / "data", {**ENV, "TUNESMITH_RAY_ADDRESS": head.url, "TUNESMITH_RAY_TOKEN": head.token})
    other.up()
    try:
        status = other.status()
        assert (status["ready"], status["ray_address"], status["pids"]["ray"]) == (True, head.url, [])
        assert other.command("doctor", check=False).returncode == 0
    finally:
        other.down()
    assert nothing_runs(other.data_dir)
    assert stack.status()["ready"]
    other.env["TUNESMITH_RAY_TOKEN"] = "wrong"
    assert "TUNESMITH_RAY_TOKEN" in other.command("doctor", check=False).stdout


def test_a_dead_gateway_is_followed_by_one_on_the_same_ports_that_adopts_ray(stack: Stack, first_words: str) -> None:
    before = stack.status()
    kill([before["pids"]["gateway"]])
    until("a gateway that is gone", lambda: not stack.status()["running"], 10)
    assert stack.command("status", check=False).returncode == 5
    again = stack.command("up", "--detach").stdout
    after = stack.status()
    assert (after["base_url"], after["grpc_address"]) == (before["base_url"], before["grpc_address"])
    assert known_head(stack.data_dir) is not None
    assert set(before["pids"]["ray"]) & set(after["pids"]["ray"])
    assert Path(after["api_key_file"]).read_text().strip() not in again


def test_up_after_everything_was_killed(stack: Stack, first_words: str) -> None:
    before = stack.status()
    kill([before["pids"]["gateway"], *before["pids"]["ray"]])
    stack.up()
    after = stack.status()
    assert (after["base_url"], after["grpc_address"], after["ready"]) == (before["base_url"], before["grpc_address"], True)
    assert not set(before["pids"]["ray"]) & set(after["pids"]["ray"])
    assert stack.client().models.list().data is not None


def test_down_ends_all_and_may_be_said_twice(stack: Stack, first_words: str) -> None:
    stack.up() if not stack.status()["running"] else None
    done = stack.command("down")
    assert "Stopped" in done.stderr
    assert nothing_runs(stack.data_dir)
    assert not ray_dir(stack.data_dir).exists()
    again = stack.command("down")
    assert "Nothing runs" in again.stderr
    assert stack.command("status", check=False).returncode == 5
    assert (stack.status()["running"], stack.status()["pids"]) == (False, {"gateway": None, "ray": []})


def test_down_ends_a_head_whose_gateway_is_dead(stack: Stack, first_words: str) -> None:
    stack.up()
    kill([stack.status()["pids"]["gateway"]])
    assert stack.status()["pids"]["ray"]
    stack.command("down")
    assert nothing_runs(stack.data_dir)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_in_the_foreground_a_signal_stops_everything(tmp_path: Path, number: signal.Signals) -> None:
    stack = Stack(tmp_path / "data", ENV)
    command = [str(TUNESMITH), "up", "--port", "0", "--grpc-port", "0", "--data-dir", str(stack.data_dir)]
    with open(tmp_path / "log", "w") as log, subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | ENV) as up:
        # Not the service's own readiness, of which `up` hears a little later: until then a signal interrupts its start.
        until("word of it", lambda: "Ctrl-C stops it." in (tmp_path / "log").read_text() or up.poll() is not None, 240)
        assert up.poll() is None, (tmp_path / "log").read_text()
        assert stack.status()["ready"]
        up.send_signal(number)
        assert up.wait(90) == 0, (tmp_path / "log").read_text()
    assert nothing_runs(stack.data_dir)
    assert "Tunesmith is ready" in (tmp_path / "log").read_text()


def test_an_interrupted_start_leaves_nothing(tmp_path: Path) -> None:
    stack = Stack(tmp_path / "data", ENV)
    command = [str(TUNESMITH), "up", "--detach", "--port", "0", "--grpc-port", "0", "--data-dir", str(stack.data_dir)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ | ENV) as up:
        until("the head's first process", lambda: StackProcesses.of(stack.data_dir).all(), 60)
        up.send_signal(signal.SIGINT)
        assert up.wait(90) == 130
    assert nothing_runs(stack.data_dir)


# What can't start


@pytest.mark.parametrize("option", ["--port", "--grpc-port"])
def test_a_taken_port(tmp_path: Path, option: str) -> None:
    stack = Stack(tmp_path / "data", ENV)
    other = {"--port": "--grpc-port", "--grpc-port": "--port"}[option]
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"port {port} on 127.0.0.1 is taken" in refused(stack, option, str(port), other, "0")
    assert not stack.data_dir.exists()
    assert nothing_runs(stack.data_dir)


def test_a_directory_that_can_not_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file" / "data", Path("/proc/tunesmith")):
        assert f"no write permission in the data directory {place}" in refused(Stack(place, ENV), "--port", "0", "--grpc-port", "0")


def test_too_little_disk(tmp_path: Path) -> None:
    stack = Stack(tmp_path / "data", {"TUNESMITH_MIN_FREE_BYTES": str(10**18)})
    assert "TUNESMITH_MIN_FREE_BYTES" in refused(stack, "--port", "0", "--grpc-port", "0")
    assert nothing_runs(stack.data_dir)


def test_a_setting_that_can_not_be_read(tmp_path: Path) -> None:
    assert "TUNESMITH_LEASE_TTL" in refused(Stack(tmp_path / "data", {"TUNESMITH_LEASE_TTL": "soon"}), "--port", "0", "--grpc-port", "0")


class OpenCluster(BaseHTTPRequestHandler):
    """Answers everybody."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, format: str, *args: object) -> None:
        pass


def test_a_cluster_that_wants_no_token_is_refused_by_the_gateway_itself(tmp_path: Path) -> None:
    with HTTPServer(("127.0.0.1", 0), OpenCluster) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        address = f"http://127.0.0.1:{server.server_port}"
        assert httpx.get(address).status_code == 200
        stack = Stack(tmp_path / "data", {**ENV, "TUNESMITH_RAY_ADDRESS": address})
        done = stack.command("up", "--detach", "--port", "0", "--grpc-port", "0", check=False)
        server.shutdown()
        thread.join()
    assert done.returncode == 2
    assert f"the Ray cluster at {address} answers without a token" in done.stderr.splitlines()[-1]
    assert nothing_runs(stack.data_dir)


def test_doctor_says_what_is_missing(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        env = {"TUNESMITH_PORT": str(taken.getsockname()[1]), "TUNESMITH_GRPC_PORT": "0", "TUNESMITH_MIN_FREE_BYTES": str(10**18)}
        done = Stack(tmp_path / "data", env).command("doctor", "-o", "json", check=False)
    findings = {finding["check"]: finding for finding in json.loads(done.stdout)}
    assert done.returncode == 1
    assert {name for name, finding in findings.items() if finding["state"] == "fail"} == {"disk", "ports"}
    assert findings["service"]["next_step"] == "`tunesmith up --detach`"
    assert all(finding["next_step"] for finding in findings.values() if finding["state"] != "ok")
    assert not (tmp_path / "data").exists()
