"""The composition root: settings -> store, objects, runtime -> app, scheduler -> REST and gRPC.

`python -m service.gateway --data-dir DIR` is one gateway process with its scheduler. Without
`ray_address` it also owns a local Ray head. `tunesmith up` starts it; see cli/stack.py.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import signal
import socket
import sys
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import structlog
import uvicorn

from service import objects, tenancy
from service.app import App
from service.catalogue import Catalogue
from service.driver import Driver
from service.embedded import EmbeddedRay, Lock, Ports, StackState, live_processes
from service.metrics import MeteredStorage, Metrics
from service.reports import RunReports
from service.rest import SERVER_OPTIONS, create_rest
from service.rpc import serve_rpc
from service.runtime import RayRuntime
from service.scheduler import Scheduler
from service.settings import Settings
from service.store import Store
from service.validation import Validation
from trainers.storage import open_storage

log = structlog.get_logger(__name__)
DRAIN = timedelta(seconds=5)
"""How long requests in flight may take to finish once the gateway is told to stop."""


async def serve(settings: Settings) -> None:
    """Run until SIGTERM or SIGINT. Raises OSError for a taken port."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with AsyncExitStack() as stack:
        ports = Ports.open(settings)
        rest_socket = _listen(settings.host, ports.rest)
        metrics = Metrics()
        store = Store(settings.database)
        stack.push_async_callback(store.close)
        await store.migrate()
        await tenancy.first_key(store, settings.data_dir / "api-key")
        storage = MeteredStorage(open_storage(settings.storage), metrics)
        await asyncio.to_thread(objects.probe, storage)
        ray = await _ray(settings, stack)
        scheduler_wakes: list[Any] = []

        def wake() -> None:
            for scheduler in scheduler_wakes:
                scheduler.wake()

        reports = RunReports(store, storage, metrics, wake)
        app = App(store, storage, Catalogue.load(settings), ray.runtime, reports, wake)
        rpc, rpc_port = await serve_rpc(app, f"{settings.host}:{ports.grpc}")
        stack.push_async_callback(rpc.stop, DRAIN.total_seconds())
        report_address = settings.report_address or f"{settings.host}:{rpc_port}"
        validation = Validation(store, storage, settings)

        def new_driver(owner: str) -> Driver:
            return Driver(owner, store, storage, ray.runtime, validation, settings, metrics, report_address)

        scheduler = Scheduler(store, ray.runtime, settings, metrics, new_driver)
        scheduler_wakes.append(scheduler)
        await stack.enter_async_context(_background(scheduler.run()))
        port = rest_socket.getsockname()[1]
        ports.keep(port, rpc_port)
        await stack.enter_async_context(_rest(create_rest(app, metrics, settings), rest_socket))
        _announce(settings, port, rpc_port, ray)
        await stop.wait()
        log.info("stopping")


def main(arguments: list[str] | None = None) -> int:
    """Entry point. Exit code 2 and one line on stderr when it can't start."""
    parser = argparse.ArgumentParser(prog="python -m service.gateway", description="One Tunesmith gateway with its scheduler.")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--host")
    parser.add_argument("--port", type=int)
    parser.add_argument("--grpc-port", type=int)
    given = {name: value for name, value in vars(parser.parse_args(arguments)).items() if value is not None}
    settings = Settings(**given)
    _log_to_stderr(settings.log_level)
    settings.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    with Lock.held(settings.data_dir):
        asyncio.run(serve(settings))
    return 0


if __name__ == "__main__":
    sys.exit(main())
