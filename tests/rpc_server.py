"""The gRPC services over a FakeApp on a free port, for tests of what stands before every method."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from service.metrics import Metrics
from service.rpc import Serving, serve_rpc
from service.settings import Settings
from tests.fakes import API_KEY, FakeApp
from tests.rpc_client import Client, connected


@dataclass(frozen=True)
class Served:
    """A running server and the parts behind it."""

    app: FakeApp
    metrics: Metrics
    loop: asyncio.AbstractEventLoop
    serving: Serving
    client: Client

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.serving.port}"


@contextmanager
def served(directory: Path, **settings: object) -> Iterator[Served]:
    """A server over a FakeApp with its data directory at `directory`."""
    app, metrics, loop = FakeApp(), Metrics(), asyncio.new_event_loop()
    configured = Settings(data_dir=directory, **settings)  # type: ignore[arg-type]
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    serving = asyncio.run_coroutine_threadsafe(serve_rpc(app, configured, metrics, "127.0.0.1:0"), loop).result(20)
    try:
        with connected(f"127.0.0.1:{serving.port}", API_KEY) as client:
            yield Served(app, metrics, loop, serving, client)
    finally:
        asyncio.run_coroutine_threadsafe(serving.stop(timedelta(seconds=1)), loop).result(20)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()
