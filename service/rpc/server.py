"""The gRPC servers of a gateway: what they serve, where, with which limits.

One server for everything, unless workers must show certificates: then Runs has a server and a port of its own. Called by
the gateway.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from protos.tunesmith.v1 import files_pb2, files_pb2_grpc, jobs_pb2, jobs_pb2_grpc, models_pb2, models_pb2_grpc, runs_pb2, runs_pb2_grpc
from service.app import App
from service.metrics import Metrics
from service.rpc.files import Files
from service.rpc.health import Health
from service.rpc.interceptor import Interceptor
from service.rpc.jobs import Jobs
from service.rpc.models import Models
from service.rpc.runs import Runs
from service.settings import Settings
from service.tls import Certificate

MAX_MESSAGE_BYTES = 4 * 2**20
"""Four of the largest chunks; anything larger is refused before it is parsed."""
MAX_CALLS = 2048
"""Calls in flight on one server; one more is answered RESOURCE_EXHAUSTED."""
OPTIONS: list[tuple[str, Any]] = [
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.so_reuseport", 0),
    ("grpc.max_concurrent_streams", 128),  # of one connection
    # A client that is gone without a word is noticed within 80 seconds, one that pings more often than every 10 is cut off.
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.http2.max_ping_strikes", 2),
    ("grpc.max_connection_idle_ms", 15 * 60_000),
]
PUBLIC = [pb.DESCRIPTOR.services_by_name[name].full_name for pb, name in ((jobs_pb2, "Jobs"), (files_pb2, "Files"), (models_pb2, "Models"))]
RUNS = runs_pb2.DESCRIPTOR.services_by_name["Runs"].full_name


@dataclass(frozen=True)
class Serving:
    """Servers that answer. `runs_port` is that of Runs, the same as `port` unless workers must show certificates."""

    port: int
    runs_port: int
    _servers: Sequence[grpc.aio.Server]
    _health: Health

    async def stop(self, grace: timedelta) -> None:
        """No new calls; those in flight get `grace` to end."""
        self._health.stop()
        for server in self._servers:
            await server.stop(grace.total_seconds())


async def serve_rpc(app: App, settings: Settings, metrics: Metrics, address: str) -> Serving:
    """Start on `host:port`. Raises OSError for a taken port and CannotStart for certificates that can't be used."""
    certificate = Certificate.of(settings)
    interceptor = Interceptor(app, metrics)
    server = _server(interceptor)
    runs_apart = certificate is not None and certificate.client_ca_file is not None
    services = [*PUBLIC] if runs_apart else [*PUBLIC, RUNS]
    health = _add_public(server, app, settings, services)
    port = _bind(server, address, certificate.credentials() if certificate else None)
    servers, runs_port = [server], port
    if runs_apart:
        assert certificate is not None
        servers.append(_server(interceptor))
        host = address.rpartition(":")[0]
        runs_port = _bind(servers[-1], f"{host}:{settings.runs_port}", certificate.credentials(ask_clients=True))
    runs_pb2_grpc.add_RunsServicer_to_server(Runs(app), servers[-1])  # pyright: ignore[reportUnknownMemberType]
    for one in servers:
        await one.start()
    return Serving(port, runs_port, servers, health)


def _server(interceptor: Interceptor) -> grpc.aio.Server:
    return grpc.aio.server(interceptors=[interceptor], options=OPTIONS, maximum_concurrent_rpcs=MAX_CALLS)


def _add_public(server: grpc.aio.Server, app: App, settings: Settings, services: list[str]) -> Health:
    health = Health(app, services)
    jobs_pb2_grpc.add_JobsServicer_to_server(Jobs(app), server)  # pyright: ignore[reportUnknownMemberType]
    files_pb2_grpc.add_FilesServicer_to_server(Files(app, settings), server)  # pyright: ignore[reportUnknownMemberType]
    models_pb2_grpc.add_ModelsServicer_to_server(Models(app), server)  # pyright: ignore[reportUnknownMemberType]
    health_pb2_grpc.add_HealthServicer_to_server(health, server)  # pyright: ignore[reportUnknownMemberType]
    reflection.enable_server_reflection([*services, "grpc.health.v1.Health", reflection.SERVICE_NAME], server)  # pyright: ignore[reportUnknownMemberType]
    return health


def _bind(server: grpc.aio.Server, address: str, credentials: grpc.ServerCredentials | None) -> int:
    try:
        return server.add_secure_port(address, credentials) if credentials else server.add_insecure_port(address)
    except RuntimeError as error:
        raise OSError(f"the gRPC address {address} can't be bound; is the port taken?") from error
