"""A Ray cluster of several nodes on this machine: a head that holds no worker, and nodes that come and go.

Each node is a raylet of its own with its own address (127.0.0.2, 127.0.0.3, …) and directory, and all want the token. Ray binds
the ports of such a cluster to every interface, so the token is what guards it. Nothing is ended that was not started here:
a node's processes bear its mark in their environment.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil

from service.embedded import free_port
from service.processes import RUN_MARKER, end
from service.ray_command import ENVIRONMENT, OBJECT_STORE_BYTES, PORTS
from service.ray_runtime import RayAddress

MARK = "TUNESMITH_TEST_NODE"
HEAD_ONLY = ("port", "dashboard-port", "ray-client-server-port")
START_SECONDS = 120


@dataclass
class RayCluster:
    """The head and its nodes, each known by its number; the head is 0."""

    directory: Path
    taken: set[int] = field(default_factory=set)
    placement_seconds: int = 8
    """How long a gang may wait for its places."""
    nodes: int = 0
    started: dict[int, subprocess.Popen[bytes]] = field(default_factory=dict)
    head_ports: dict[str, int] = field(default_factory=dict)

    @property
    def url(self) -> str:
        """The dashboard."""
        return f"http://{_ip(0)}:{self.head_ports['dashboard-port']}"

    @property
    def address(self) -> RayAddress:
        """Where the dashboard answers, and the token."""
        return RayAddress(self.url, (self.directory / "token").read_text())

    def start_head(self) -> None:
        """A head without cores, so that no worker is placed on it."""
        (self.directory / "token").write_text(secrets.token_hex(32))
        (self.directory / "token").chmod(0o600)
        self.head_ports = self._ports(PORTS)
        self._head()

    def restart_head(self) -> None:
        """A head that knows nothing, where the killed one was. Ends once the nodes of that one have left, which they do by themselves."""
        shutil.rmtree(self.directory / "0")
        self._head()
        for number in [number for number in self.started if number]:
            self.started.pop(number).wait(START_SECONDS)

    def _head(self) -> None:
        self._start(0, ["--head", "--no-monitor", f"--dashboard-host={_ip(0)}", "--num-cpus=0"], self.head_ports)
        self._until(1, 0)

    def add_node(self, num_cpus: int = 2, resources: dict[str, float] | None = None, labels: dict[str, str] | None = None) -> int:
        """One more node, once Ray knows it; its number."""
        self.nodes += 1
        told = [f"--address={_ip(0)}:{self.head_ports['port']}", f"--num-cpus={num_cpus}", f"--resources={json.dumps(resources or {})}"]
        told += [f"--labels={','.join(f'{name}={value}' for name, value in labels.items())}"] if labels else []
        alive = len(self.alive())
        self._start(self.nodes, told, self._ports(tuple(name for name in PORTS if name not in HEAD_ONLY)))
        self._until(alive + 1, self.nodes)
        return self.nodes

    def kill_node(self, number: int) -> None:
        """kill -9 everything on the node at once, as if its power went."""
        end(lambda: _marked(f"{self.directory} {number}"))
        self.started.pop(number).wait(30)

    def processes(self, run_id: str) -> list[psutil.Process]:
        """What lives of a run, on whatever node."""
        return [p for p in _marked(str(self.directory)) if _environment(p).get(RUN_MARKER) == run_id]

    def alive(self) -> list[dict[str, Any]]:
        """The nodes that Ray takes for alive."""
        try:
            answer = httpx.get(f"{self.url}/api/v0/nodes", headers=self._headers, timeout=10, trust_env=False)
            return [node for node in answer.json()["data"]["result"]["result"] if node["state"] == "ALIVE"]
        except (httpx.HTTPError, ValueError, KeyError, TypeError):
            return []

    def nodes_of(self, run_id: str) -> set[str]:
        """The addresses of the nodes on which the workers of a run live, by Ray's word."""
        with httpx.Client(base_url=self.url, headers=self._headers, timeout=10, trust_env=False) as http:
            answer = http.get(f"/api/jobs/{run_id}")
            if not answer.is_success:
                return set()  # not yet launched
            ray_job = answer.json().get("job_id")
            actors = http.get("/api/v0/actors", params={"detail": "true"}).json()["data"]["result"]["result"]
        ids = {node["node_id"]: node["node_ip"] for node in self.alive()}
        workers = [a for a in actors if ray_job and (a["job_id"], a["state"]) == (ray_job, "ALIVE") and "RayTrainWorker" in a["class_name"]]
        return {ids[worker["node_id"]] for worker in workers if worker["node_id"] in ids}

    @contextmanager
    def stranger(self, cpus: int, resources: dict[str, float]) -> Iterator[None]:
        """A job of somebody else, of which the gateway knows nothing, holds these."""
        body = {"entrypoint": "sleep 600", "submission_id": "stranger", "entrypoint_num_cpus": cpus, "entrypoint_resources": resources}
        with httpx.Client(base_url=self.url, headers=self._headers, timeout=60, trust_env=False) as http:
            http.post("/api/jobs/", json=body).raise_for_status()
            deadline = time.monotonic() + START_SECONDS
            while http.get("/api/jobs/stranger").json()["status"] != "RUNNING":
                assert time.monotonic() < deadline, "the stranger's job did not start"
                time.sleep(0.3)
            yield
            http.post("/api/jobs/stranger/stop").raise_for_status()

    def stop(self) -> None:
        """Nothing is left."""
        end(lambda: _marked(str(self.directory)))
        for child in self.started.values():
            child.wait(30)
        shutil.rmtree(self.directory, ignore_errors=True)

    @property
    def _headers(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.address.token}"}

    def _ports(self, names: tuple[str, ...]) -> dict[str, int]:
        found = {}
        for name in names:
            found[name] = free_port("0.0.0.0", frozenset(self.taken))
            self.taken.add(found[name])
        return found

    def _start(self, number: int, options: list[str], ports: dict[str, int]) -> None:
        place = self.directory / str(number)
        (place / "tmp").mkdir(parents=True)
        (metric_port,) = self._ports(("metrics",)).values()
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("TUNESMITH_", "RAY_"))}
        own = {
            # Off, Ray takes the machine for one that never joins a cluster; with addresses other than 127.0.0.1 it need not be.
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "1",
            # A run's entry point is `python`, as in a node's image.
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "RAY_AUTH_TOKEN_PATH": str(self.directory / "token"),
            "DASHBOARD_METRIC_PORT": str(metric_port),
            "TMPDIR": str(place / "tmp"),
            "TUNESMITH_CACHE_DIR": str(place / "cache"),
            "GLOO_SOCKET_IFNAME": "lo",
            "PYTHONPATH": str(Path(__file__).parents[1]),
            # A killed raylet is missed after seconds rather than after half a minute.
            "RAY_health_check_initial_delay_ms": "0",
            "RAY_health_check_period_ms": "1000",
            "RAY_health_check_timeout_ms": "5000",
            "RAY_health_check_failure_threshold": "3",
            # A node asks as seldom as once a minute whether its head still knows it, and leaves when another has taken that one's place.
            "RAY_raylet_liveness_self_check_interval_ms": "5000",
            # The machine's memory is not the node's: what others take of it must not cost a worker.
            "RAY_memory_monitor_refresh_ms": "0",
            "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": str(self.placement_seconds),
            MARK: f"{self.directory} {number}",
        }
        fixed = [f"--node-ip-address={_ip(number)}", f"--temp-dir={place}", f"--object-store-memory={OBJECT_STORE_BYTES}"]
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats", "--log-style=record"]
        with open(place / "log", "wb") as output:
            self.started[number] = subprocess.Popen(
                [*command, *fixed, *options, *(f"--{name}={port}" for name, port in ports.items())],
                env=kept | ENVIRONMENT | own,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _until(self, alive: int, number: int) -> None:
        deadline = time.monotonic() + START_SECONDS
        while len(self.alive()) < alive:
            log = (self.directory / str(number) / "log").read_text(errors="replace")[-2000:]
            assert time.monotonic() < deadline, f"the node did not start:\n{log}"
            time.sleep(0.3)


@contextmanager
def ray_cluster(placement_seconds: int = 8) -> Iterator[RayCluster]:
    """A cluster with a head alone."""
    # The path of a Unix socket ends at 107 characters, so this lies in /tmp and not below the test's own directory.
    cluster = RayCluster(Path(tempfile.mkdtemp(prefix="tsc-", dir="/tmp")), placement_seconds=placement_seconds)
    try:
        cluster.start_head()
        yield cluster
    finally:
        cluster.stop()


def _ip(number: int) -> str:
    return f"127.0.0.{2 + number}"


def _marked(mark: str) -> list[psutil.Process]:
    found = [p for p in psutil.process_iter() if (value := _environment(p).get(MARK, "")) == mark or value.startswith(f"{mark} ")]
    return [p for p in found if p.is_running()]


def _environment(process: psutil.Process) -> dict[str, str]:
    try:
        return process.environ() if process.status() != psutil.STATUS_ZOMBIE else {}
    except (psutil.NoSuchProcess, psutil.AccessDenied, OSError):
        return {}
