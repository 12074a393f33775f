"""What serves no resource: who is calling, whether all is well, and the reports of runs."""

from __future__ import annotations

import asyncio
from datetime import timedelta

from protos.tunesmith.v1 import runs_pb2
from service.app.context import MAX_TRIES, Context, available, settled
from service.errors import ErrorCode, TunesmithError
from service.records import Caller
from service.store import Stale


class OperationUses(Context):
    """Authentication, readiness and reports."""

    async def authenticate(self, bearer: str, request_id: str = "") -> Caller:
        """Who holds this key. Raises RateExceeded when their project asks too often."""
        async with available():
            return await self.admission.admit(bearer, request_id)

    async def ready(self) -> dict[str, str]:
        """Each part ("store", "objects", "runtime") and "ok", or what is wrong with it."""

        async def objects_answer() -> None:
            await asyncio.to_thread(self.storage.head, "base/probe")

        async def runtime_answers() -> None:
            await self.runtime.capacity()

        checks = {"store": self.store.ping, "objects": objects_answer, "runtime": runtime_answers}
        answers = await asyncio.gather(*(asyncio.wait_for(check(), 10) for check in checks.values()), return_exceptions=True)
        return {
            name: "ok" if not isinstance(a, BaseException) else f"{type(a).__name__}: {a}" for name, a in zip(checks, answers, strict=True)
        }

    async def report(self, bearer: str, request: runs_pb2.ReportRequest) -> runs_pb2.ReportResponse:
        """A run tells what happened and asks what to do; see reports.py."""
        async with available():
            for _ in range(MAX_TRIES):
                try:
                    return await settled(lambda: self.reports.take(bearer, request))
                except Stale:
                    continue
        raise TunesmithError(ErrorCode.UNAVAILABLE, "The job is changing just now.", retry_after=timedelta(seconds=1))
