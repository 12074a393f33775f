"""grpc.health.v1: whether the parts behind this gateway answer, as /readyz says it. Needs no key.

Asks when asked, and at most every few seconds however many ask.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Iterable
from datetime import timedelta
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from service.app import App
from service.rpc.call import Call
from service.rpc.status import Refused

FRESH = timedelta(seconds=2)
"""How long an answer is good for, and how often a watched one is looked at."""
Response = health_pb2.HealthCheckResponse


class Health(health_pb2_grpc.HealthServicer):
    """Readiness, the same for the whole server ("") and for each of its services."""

    def __init__(self, app: App, services: Iterable[str]) -> None:
        self._app, self._services = app, {"", *services}
        self._asking = asyncio.Lock()
        self._ready, self._asked = False, float("-inf")
        self._stopping = False

    def stop(self) -> None:
        """From now on NOT_SERVING: the server is about to stop."""
        self._stopping = True

    async def Check(self, request: health_pb2.HealthCheckRequest, context: Call) -> Response:
        """Whether the service named serves; NOT_FOUND for one that is not here."""
        if request.service not in self._services:
            raise Refused(grpc.StatusCode.NOT_FOUND, "There is no such service here.")
        return Response(status=await self._status())

    async def List(self, request: Any, context: Call) -> Any:
        """Every service and whether it serves."""
        response = Response(status=await self._status())
        # Younger than the stubs that the type checker has.
        return vars(health_pb2)["HealthListResponse"](statuses=dict.fromkeys(self._services, response))

    async def Watch(self, request: health_pb2.HealthCheckRequest, context: Call) -> AsyncGenerator[Response]:
        """As Check, now and at every change; a service that is not here is SERVICE_UNKNOWN."""
        told: int | None = None
        while True:
            status = await self._status() if request.service in self._services else Response.SERVICE_UNKNOWN
            if status != told:
                told = status
                yield Response(status=status)
            await asyncio.sleep(FRESH.total_seconds())

    async def _status(self) -> Response.ServingStatus:
        async with self._asking:
            if time.monotonic() - self._asked > FRESH.total_seconds():
                self._ready = all(state == "ok" for state in (await self._app.ready()).values())
                self._asked = time.monotonic()
        return Response.SERVING if self._ready and not self._stopping else Response.NOT_SERVING
