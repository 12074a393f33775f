"""What one data directory says about the stack that runs on it: its lock, its ports, where it answers.

Also the checks that stand before anything is started. Knows no Ray and no HTTP. Used by the gateway, which
writes all of this, and by `tunesmith up`, `down`, `status` and the client commands, which read it.
"""

from __future__ import annotations

import fcntl
import importlib.util
import json
import os
import random
import shutil
import socket
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from service.settings import Settings

EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")
FIRST_PORT = 20000
PORT_TRIES = 200
LOCK_SECONDS = 1.0
"""Looking at the lock takes it for an instant, so one refusal proves nothing."""


class CannotStart(Exception):
    """The stack can't be started, for a reason that a person can do something about; the message is one line."""


def preflight(settings: Settings) -> None:
    """Raises CannotStart for what is known to be missing; leaves nothing behind but the data directory."""
    holder = Lock.holder(settings.data_dir)
    if holder is not None:
        raise CannotStart(already_running(settings.data_dir, holder))
    Ports.open(settings)
    if settings.ray_address is None and importlib.util.find_spec("ray") is None:
        raise CannotStart("Ray is not installed here: pip install 'tunesmith[trainer]', or name a cluster with TUNESMITH_RAY_ADDRESS")
    writable(settings.data_dir)
    free = shutil.disk_usage(settings.data_dir).free
    if free < settings.min_free_bytes:
        raise CannotStart(
            f"{settings.data_dir} has {free / 1e9:.1f} GB of free disk and {settings.min_free_bytes / 1e9:.1f} GB are needed "
            "(TUNESMITH_MIN_FREE_BYTES)"
        )


def writable(data_dir: Path) -> None:
    """Make the directory, for its owner alone, and write into it. Raises CannotStart."""
    probe = data_dir / f".probe-{os.getpid()}"
    try:
        data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        # Asking for permission is not enough: root is told yes about places it can't write to.
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise CannotStart(f"no write permission in the data directory {data_dir}: {error.strerror or error}") from None


class Lock:
    """One gateway for each data directory. The kernel releases it however its holder ends."""

    @staticmethod
    @contextmanager
    def held(data_dir: Path) -> Generator[None]:
        """Hold the lock. Raises CannotStart when another gateway has it."""
        with open(_lock_path(data_dir), "a+") as file:
            deadline = time.monotonic() + LOCK_SECONDS
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        raise CannotStart(already_running(data_dir, Lock.holder(data_dir))) from None
                    time.sleep(0.05)
            file.truncate(0)
            file.write(f"{os.getpid()}\n")
            file.flush()
            yield
            file.truncate(0)

    @staticmethod
    def holder(data_dir: Path) -> int | None:
        """Process id of the gateway that runs on the directory; None when none does, 0 when it has not said yet."""
        try:
            with open(_lock_path(data_dir)) as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except BlockingIOError:
                    text = file.read().strip()
                    return int(text) if text.isdigit() else 0
                return None
        except OSError:
            return None


def already_running(data_dir: Path, pid: int | None) -> str:
    """The line for a second `up` on the same directory."""
    return f"a stack runs on {data_dir} already (process {pid or 'unknown'}); see `tunesmith status`, or stop it with `tunesmith down`"


@dataclass(frozen=True)
class Ports:
    """The ports a gateway takes. Runs report to the gRPC port, so the next gateway on the directory takes the same."""

    rest: int
    grpc: int
    path: Path

    @classmethod
    def open(cls, settings: Settings) -> Ports:
        """The ports that were asked for; else the ones kept from before; else the default, or a free one for 0.

        Raises CannotStart for a taken port.
        """
        path = settings.data_dir / "ports.json"
        kept: dict[str, int] = {}
        with suppress(OSError, ValidationError):
            kept = TypeAdapter(dict[str, int]).validate_json(path.read_bytes())
        rest = _port(settings, "port", kept.get("rest"))
        return cls(rest, _port(settings, "grpc_port", kept.get("grpc"), but=rest), path)

    def keep(self, rest: int, grpc: int) -> None:
        """Remember them for the next gateway."""
        write_whole(self.path, json.dumps({"rest": rest, "grpc": grpc}))


@dataclass(frozen=True)
class StackState:
    """Where a stack answers, or answered last."""

    pid: int
    base_url: str
    grpc_address: str
    api_key_file: str
    ray_address: str | None
    """Dashboard of a Ray cluster that is not ours; None with a local head."""

    @classmethod
    def read(cls, data_dir: Path) -> StackState | None:
        """What the last gateway wrote, None when there was none."""
        try:
            return TypeAdapter(cls).validate_json((data_dir / "stack.json").read_bytes())
        except (OSError, ValidationError):
            return None

    def write(self, data_dir: Path) -> None:
        """Tell everyone."""
        write_whole(data_dir / "stack.json", json.dumps(asdict(self)))


def free_port(host: str = "127.0.0.1", but: frozenset[int] = frozenset()) -> int:
    """A free port below the range from which the kernel serves outgoing connections.

    A worker that keeps trying to reach a gateway that is away could otherwise be given the gateway's port as its own
    end of the connection, and so connect to itself.
    """
    try:
        low = int(EPHEMERAL.read_text().split()[0])
    except (OSError, ValueError):
        low = 32768
    first = FIRST_PORT if low > FIRST_PORT + PORT_TRIES else 1024
    for _ in range(PORT_TRIES):
        port = random.randrange(first, max(low, first + PORT_TRIES))
        if port not in but and bindable(host, port):
            return port
    raise CannotStart(f"no free port was found on {host}")


def bindable(host: str, port: int) -> bool:
    """Whether the port can be listened on now."""
    try:
        listen(host, port).close()
    except OSError:
        return False
    return True


def listen(host: str, port: int) -> socket.socket:
    """A listening socket. Raises OSError."""
    return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=512)


def write_whole(path: Path, text: str) -> None:
    """Replace the file in one step, readable by its owner only."""
    partial = path.with_name(f"{path.name}.{os.getpid()}")
    partial.unlink(missing_ok=True)
    with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    partial.replace(path)


def _port(settings: Settings, name: str, kept: int | None, but: int = 0) -> int:
    host, wanted = settings.host, int(getattr(settings, name))
    asked_for = wanted != 0 and name in settings.model_fields_set
    if kept and not asked_for and kept != but and bindable(host, kept):
        return kept
    if wanted == 0:
        return free_port(host, frozenset({but}))
    option = f"--{name.replace('_', '-')}"
    if wanted == but:
        raise CannotStart(f"REST and gRPC can't both have port {wanted}; choose another with {option}")
    if not bindable(host, wanted):
        raise CannotStart(f"port {wanted} on {host} is taken; choose another with {option} (0 takes a free one)")
    return wanted


def _lock_path(data_dir: Path) -> Path:
    return data_dir / "gateway.lock"
