"""The composition root: settings -> store, objects, runtime -> app, scheduler -> REST and gRPC.

`python -m service.gateway --data-dir DIR` is one gateway process with its scheduler. Without
`ray_address` it also owns a local Ray head. `tunesmith up` starts it; see cli/stack.py.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import socket
import sys
from collections.abc import AsyncGenerator, Coroutine, Generator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import structlog
import uvicorn
from fastapi import FastAPI
from pydantic import ValidationError

from service import objects, tenancy
from service.admission import Admission
from service.app import App
from service.catalogue import Catalogue, CatalogueError
from service.deliveries import Deliveries
from service.driver import Driver
from service.embedded import CannotStart, Lock, Ports, StackState, listen, preflight
from service.grading import Grading
from service.logs import log_to
from service.metrics import MeteredStorage, Metrics
from service.quotas import Quotas
from service.ray_head import EmbeddedRay
from service.ray_runtime import RayAddress, RayRuntime
from service.reports import RunReports
from service.rest import SERVER_OPTIONS, create_rest
from service.rpc import serve_rpc
from service.runtime import Runtime, RuntimeUnavailable
from service.scheduler import Scheduler
from service.settings import Settings
from service.store import Store, StoreDamaged, StoreUnavailable
from service.sweep import Sweep
from service.tls import Certificate
from service.validation import Validation
from service.watches import Watches
from trainers.storage import open_storage

log = structlog.get_logger(__name__)
DRAIN = timedelta(seconds=5)
"""How long requests in flight may take to finish once the gateway is told to stop."""


@dataclass(frozen=True)
class Parts:
    """What use cases and scheduler stand on, opened and checked."""

    settings: Settings
    metrics: Metrics
    store: Store
    storage: MeteredStorage


async def serve(settings: Settings) -> None:
    """Run until SIGTERM or SIGINT. Raises CannotStart, and OSError for a taken port."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with AsyncExitStack() as stack:
        ports = Ports.open(settings)
        rest_socket = stack.enter_context(listen(settings.host, ports.rest))
        parts = await open_parts(settings, stack)
        runtime = await _ray(settings, stack, stop)
        app, rpc_port = await start(parts, runtime, stack, stop, f"{settings.host}:{ports.grpc}")
        ports.keep(ports.rest, rpc_port)
        api = create_rest(app, parts.metrics, settings)
        await stack.enter_async_context(serve_rest(api, rest_socket, stop, Certificate.of(settings)))
        _announce(settings, ports.rest, rpc_port)
        await stop.wait()
        log.info("stopping")


async def open_parts(settings: Settings, stack: AsyncExitStack) -> Parts:
    """Database and object store, ready to be used; `stack` closes them."""
    metrics = Metrics()
    store = Store(settings.database)
    stack.push_async_callback(store.close)
    try:
        await store.migrate()
    except StoreDamaged as error:
        raise CannotStart(f"the database is damaged ({error}): restore it from a backup before the service is started on it") from error
    except StoreUnavailable as error:
        raise CannotStart(f"the database can't be used: {error}") from error
    await tenancy.first_key(store, settings.data_dir / "api-key")
    storage = MeteredStorage(open_storage(settings.storage), metrics)
    await asyncio.to_thread(objects.probe, storage)
    return Parts(settings, metrics, store, storage)


async def start(parts: Parts, runtime: Runtime, stack: AsyncExitStack, stop: asyncio.Event, rpc_address: str) -> tuple[App, int]:
    """The application layer, its gRPC server and the scheduler, which `stack` stops in order; and the gRPC port."""
    settings, store, storage, metrics = parts.settings, parts.store, parts.storage, parts.metrics
    wakes: list[Scheduler | Deliveries] = []

    def wake() -> None:
        for part in wakes:
            part.wake()

    reports = RunReports(store, storage, metrics, wake)
    admission = Admission(store, Quotas.of(settings))
    await stack.enter_async_context(_background(admission.run(), stop))
    grading = Grading.configured(settings)
    stack.push_async_callback(grading.close)
    validation = Validation(store, storage, runtime, settings)
    watches = Watches(store, settings.max_streams, metrics)
    await stack.enter_async_context(_background(watches.run(stop), stop))
    app = App(store, storage, Catalogue.load(settings), runtime, reports, wake, admission, validation.files, grading, watches, settings)
    rpc = await serve_rpc(app, settings, metrics, rpc_address)
    stack.push_async_callback(rpc.stop, DRAIN)
    report_address = settings.report_address or f"{settings.host}:{rpc.runs_port}"

    def new_driver(owner: str) -> Driver:
        return Driver(owner, store, storage, runtime, validation, settings, metrics, report_address)

    scheduler = Scheduler(store, runtime, settings, metrics, new_driver)
    deliveries = Deliveries(store, settings, metrics)
    wakes += [scheduler, deliveries]
    await stack.enter_async_context(_background(deliveries.run(), stop))
    await stack.enter_async_context(_background(scheduler.run(), stop))
    await stack.enter_async_context(_background(Sweep(store, storage, settings, metrics).run(), stop))
    return app, rpc.port


async def _ray(settings: Settings, stack: AsyncExitStack, stop: asyncio.Event) -> RayRuntime:
    """The cluster that is set, or a local head; the latter comes up while the gateway answers already."""
    if settings.ray_address is None:
        head = EmbeddedRay(settings.data_dir)
        stack.push_async_callback(head.stop)
        await stack.enter_async_context(_background(head.run(), stop))
        return head.runtime
    if settings.report_address is None and settings.host in ("127.0.0.1", "::1", "localhost"):
        log.warning(
            "runs_report_to_loopback", next_step="set TUNESMITH_HOST and TUNESMITH_REPORT_ADDRESS unless the cluster is this machine"
        )
    token = settings.ray_token.get_secret_value() if settings.ray_token else None
    address = RayAddress(settings.ray_address.rstrip("/"), token)
    runtime = RayRuntime(lambda: address, require_token=not settings.allow_open_ray)
    stack.push_async_callback(runtime.close)
    try:
        if not settings.allow_open_ray and not await runtime.guarded():
            raise CannotStart(
                f"the Ray cluster at {address.url} answers without a token; turn token mode on, or set TUNESMITH_ALLOW_OPEN_RAY"
            )
    except RuntimeUnavailable as error:
        log.warning("ray_away", cause=str(error))
    return runtime


@asynccontextmanager
async def _background(work: Coroutine[Any, Any, None], stop: asyncio.Event) -> AsyncGenerator[None]:
    """Run `work` beside the rest, which is told to stop if it ends by itself; cancelled at the end."""
    task = asyncio.create_task(work)
    task.add_done_callback(lambda _: stop.set())
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Generator[None]:
        """Leave signals to `serve`, which stops everything in order."""
        yield


@asynccontextmanager
async def serve_rest(
    api: FastAPI, listening: socket.socket, stop: asyncio.Event, certificate: Certificate | None = None
) -> AsyncGenerator[None]:
    """Serve REST, with TLS when a certificate is given; at the end no new connections are taken and requests in flight are finished."""
    grace = int(DRAIN.total_seconds())
    files = {"ssl_certfile": certificate.cert_file, "ssl_keyfile": certificate.key_file} if certificate else {}
    server = _Server(uvicorn.Config(api, log_config=None, lifespan="off", timeout_graceful_shutdown=grace, **files, **SERVER_OPTIONS))
    task = asyncio.create_task(server.serve(sockets=[listening]))
    task.add_done_callback(lambda _: stop.set())
    try:
        yield
    finally:
        server.should_exit = True
        await task


def _announce(settings: Settings, port: int, rpc_port: int) -> None:
    """Tell `tunesmith status` and the client commands where the stack is."""
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(settings.host, f"[{settings.host}]" if ":" in settings.host else settings.host)
    state = StackState(
        pid=os.getpid(),
        base_url=f"{'https' if settings.tls_cert_file else 'http'}://{host}:{port}/v1",
        grpc_address=f"{host}:{rpc_port}",
        api_key_file=str((settings.data_dir / "api-key").absolute()),
        ray_address=settings.ray_address,
    )
    state.write(settings.data_dir)
    log.info("listening", rest=state.base_url, grpc=state.grpc_address)


def main(arguments: list[str] | None = None) -> int:
    """Entry point. Exit code 2 and one line on stderr when it can't start, 1 when it failed later."""
    parser = argparse.ArgumentParser(prog="python -m service.gateway", description="One Tunesmith gateway with its scheduler.")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--host")
    parser.add_argument("--port", type=int)
    parser.add_argument("--grpc-port", type=int)
    parser.add_argument("--log-file", type=Path, help="write log lines there, not to standard error")
    given = {name: value for name, value in vars(parser.parse_args(arguments)).items() if value is not None}
    log_file = given.pop("log_file", None)
    try:
        settings = Settings(**given)
        preflight(settings)
        log_to(log_file, settings.log_level)
        with Lock.held(settings.data_dir):
            asyncio.run(serve(settings))
    except (CannotStart, CatalogueError, ValidationError, OSError) as error:
        return _refuse(error, log_file)
    except Exception:
        log.exception("gateway_failed")
        return 1
    return 0


def _refuse(error: Exception, log_file: Path | None) -> int:
    message = str(error)
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        message = f"TUNESMITH_{'_'.join(str(part) for part in first['loc']).upper()}: {first['msg']}"
    if log_file is not None:
        log_to(log_file, "error")
        log.error("cannot_start", cause=message)
    sys.stderr.write(f"tunesmith: {message}\n")
    return 2


if __name__ == "__main__":
    sys.exit(main())
