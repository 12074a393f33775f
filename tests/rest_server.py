"""The REST application behind a real uvicorn on a free port, for tests that speak HTTP to it."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import uvicorn

from service.metrics import Metrics
from service.rest import SERVER_OPTIONS, create_rest
from service.settings import Settings
from tests.fakes import API_KEY, FakeApp


@dataclass(frozen=True)
class Served:
    """A running server and the parts behind it."""

    app: FakeApp
    metrics: Metrics
    settings: Settings
    port: int
    http: httpx.Client

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def raw(self, *pieces: bytes) -> bytes:
        """The start of the answer to these bytes, sent as they are on a connection of their own."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=10) as connection:
            for piece in pieces:
                connection.sendall(piece)
            return connection.recv(65536)


@contextmanager
def served(directory: Path, **settings: object) -> Iterator[Served]:
    """A server over a FakeApp with its data directory at `directory`."""
    app, metrics = FakeApp(), Metrics()
    configured = Settings(data_dir=directory, **settings)  # type: ignore[arg-type]
    config = uvicorn.Config(create_rest(app, metrics, configured), host="127.0.0.1", port=0, log_level="error", **SERVER_OPTIONS)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive(), "the server did not start"
            time.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        headers = {"authorization": f"Bearer {API_KEY}"}
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=20) as http:
            yield Served(app, metrics, configured, port, http)
    finally:
        server.should_exit = True
        thread.join(10)
