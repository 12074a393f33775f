"""How a local Ray head is started: its command, its environment, its directory. Starts nothing itself.

Everything here was seen to be needed with Ray 2.60; the integration tests of the head tell when it no longer is.
"""

from __future__ import annotations

import hashlib
import os
import stat
import sys
from dataclasses import dataclass
from pathlib import Path

from service.embedded import free_port
from service.processes import MARKER

LOOPBACK = "127.0.0.1"
OBJECT_STORE_BYTES = 128 * 2**20
"""Nothing of ours goes through Ray's object store."""
PORTS = (
    "port",
    "dashboard-port",
    "ray-client-server-port",
    "object-manager-port",
    "node-manager-port",
    "dashboard-agent-listen-port",
    "dashboard-agent-grpc-port",
    "runtime-env-agent-port",
    "metrics-export-port",
)
ENVIRONMENT = {
    "RAY_AUTH_MODE": "token",
    # With this off Ray takes the machine for one that never joins a cluster, and so keeps 127.0.0.1 as the node's
    # address. Otherwise it replaces it by an outside one and listens on every interface.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    # Ray's workers rename themselves, and would write their name over the environment by which we find them.
    "SPT_NOENV": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_JOB_STOP_WAIT_TIME_S": "3",
    "RAY_ROTATION_MAX_BYTES": str(8 * 2**20),
    "RAY_ROTATION_BACKUP_COUNT": "2",
    "RAY_DEDUP_LOGS": "0",
    "RAY_COLOR_PREFIX": "0",
}


FOR_WORKERS = ("TUNESMITH_TLS_CA", "TUNESMITH_TLS_CERT", "TUNESMITH_TLS_KEY", "TUNESMITH_NVME_DIR")
"""Of our own variables those that are a node's, not the gateway's: with what workers reach a gateway that speaks TLS, and their disk."""


class NotOurs(Exception):
    """A directory that others can write to stands where ours should be."""


@dataclass(frozen=True)
class HeadCommand:
    """What to execute, with which environment, in which directory; and where the head will answer."""

    arguments: list[str]
    environment: dict[str, str]
    directory: Path
    url: str


def head_command(data_dir: Path, token_path: Path) -> HeadCommand:
    """A head on free ports of loopback. Makes its directory; raises NotOurs, and CannotStart when ports are short."""
    directory, taken = private_directory(ray_dir(data_dir)), list[int]()
    for _ in range(len(PORTS) + 1):
        taken.append(free_port(LOOPBACK, frozenset(taken)))
    ports = dict(zip(PORTS, taken, strict=False))
    fixed = {
        "node-ip-address": LOOPBACK,
        "dashboard-host": LOOPBACK,
        "temp-dir": str(directory / "ray"),
        "object-store-memory": str(OBJECT_STORE_BYTES),
        "log-style": "record",
    }
    start = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--no-monitor", "--disable-usage-stats"]
    return HeadCommand(
        arguments=[*start, *(f"--{name}={value}" for name, value in (fixed | ports).items())],
        environment=_environment(data_dir, token_path, directory, metric_port=taken[-1]),
        directory=directory,
        url=f"http://{LOOPBACK}:{ports['dashboard-port']}",
    )


def _environment(data_dir: Path, token_path: Path, directory: Path, metric_port: int) -> dict[str, str]:
    """The gateway's own, storage credentials included, without its settings, which may hold a password."""
    ours = {
        MARKER: str(data_dir.resolve()),
        "RAY_AUTH_TOKEN_PATH": str(token_path),
        "DASHBOARD_METRIC_PORT": str(metric_port),
        # What a killed run leaves in temporary files goes with the head's directory.
        "TMPDIR": str(private_directory(directory / "tmp")),
        "TUNESMITH_CACHE_DIR": str(data_dir.resolve() / "cache"),
    }
    inherited = {name: value for name, value in os.environ.items() if name in FOR_WORKERS or not name.startswith(("TUNESMITH_", "RAY_"))}
    return inherited | ENVIRONMENT | ours


def ray_dir(data_dir: Path) -> Path:
    """Where Ray keeps its sockets and logs: a short path, since that of a socket ends at 107 characters.

    Ray opens its own directory to everyone, so it gets one inside this, which is its owner's alone.
    """
    return Path("/tmp") / ("ts-" + hashlib.sha256(f"{os.getuid()} {data_dir.resolve()}".encode()).hexdigest()[:12])


def private_directory(path: Path) -> Path:
    """Make the directory. Raises NotOurs when somebody else was there first."""
    path.mkdir(parents=True, exist_ok=True, mode=0o700)
    facts = path.lstat()
    if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != os.getuid() or facts.st_mode & 0o077:
        raise NotOurs(f"{path} is not a directory of ours alone; remove it")
    return path
