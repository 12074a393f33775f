"""The service Runs: what workers report. Internal; see runs.proto."""

from __future__ import annotations

from protos.tunesmith.v1 import runs_pb2, runs_pb2_grpc
from service.app import App
from service.rpc.call import Call


class Runs(runs_pb2_grpc.RunsServicer):
    """What runs call."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def Report(self, request: runs_pb2.ReportRequest, context: Call) -> runs_pb2.ReportResponse:
        """See runs.proto."""
        return await self._app.report(context.bearer, request)
