"""The service Jobs; see jobs.proto."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing

from protos.tunesmith.v1 import jobs_pb2 as pb
from protos.tunesmith.v1 import jobs_pb2_grpc, types_pb2
from service import names
from service.app import App
from service.errors import invalid
from service.jobs import Job
from service.rpc import convert
from service.rpc.call import Call
from service.rpc.content import download


class Jobs(jobs_pb2_grpc.JobsServicer):
    """Fine-tuning jobs."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def CreateJob(self, request: pb.CreateJobRequest, context: Call) -> pb.CreateJobResponse:
        """See jobs.proto."""
        key = names.idempotency_key(request.idempotency_key if request.HasField("idempotency_key") else None)
        spec = convert.spec_of(request.spec)
        job = await self._app.create_job(context.caller, spec, idempotency_key=key, retried=context.retried)
        return pb.CreateJobResponse(job=_now(job))

    async def GetJob(self, request: pb.GetJobRequest, context: Call) -> pb.GetJobResponse:
        """See jobs.proto."""
        return pb.GetJobResponse(job=_now(await self._app.get_job(context.caller, _job_id(request.job_id))))

    async def ListJobs(self, request: pb.ListJobsRequest, context: Call) -> pb.ListJobsResponse:
        """See jobs.proto."""
        limit = convert.limit_of(request, default=20, most=1000)
        after = names.cursor(request.after if request.HasField("after") else None)
        metadata = names.metadata_filter(request.metadata.items())
        if request.without_metadata and metadata:
            raise invalid("'without_metadata' asks for jobs without metadata; leave the pairs out.", "without_metadata")
        wanted = None if request.without_metadata else metadata
        jobs, more = convert.page(await self._app.list_jobs(context.caller, after=after, limit=limit, metadata=wanted), _now)
        return pb.ListJobsResponse(jobs=jobs, has_more=more)

    async def CancelJob(self, request: pb.CancelJobRequest, context: Call) -> pb.CancelJobResponse:
        """See jobs.proto."""
        return pb.CancelJobResponse(job=_now(await self._app.cancel_job(context.caller, _job_id(request.job_id))))

    async def PauseJob(self, request: pb.PauseJobRequest, context: Call) -> pb.PauseJobResponse:
        """See jobs.proto."""
        return pb.PauseJobResponse(job=_now(await self._app.pause_job(context.caller, _job_id(request.job_id))))

    async def ResumeJob(self, request: pb.ResumeJobRequest, context: Call) -> pb.ResumeJobResponse:
        """See jobs.proto."""
        return pb.ResumeJobResponse(job=_now(await self._app.resume_job(context.caller, _job_id(request.job_id))))

    async def ListCheckpoints(self, request: pb.ListCheckpointsRequest, context: Call) -> pb.ListCheckpointsResponse:
        """See jobs.proto."""
        limit = convert.limit_of(request, default=10, most=1000)
        after = names.cursor(request.after if request.HasField("after") else None)
        page = await self._app.list_checkpoints(context.caller, _job_id(request.job_id), after=after, limit=limit)
        checkpoints, more = convert.page(page, convert.checkpoint_message)
        return pb.ListCheckpointsResponse(checkpoints=checkpoints, has_more=more)

    async def ListArtifacts(self, request: pb.ListArtifactsRequest, context: Call) -> pb.ListArtifactsResponse:
        """See jobs.proto."""
        artifacts = await self._app.list_artifacts(context.caller, _job_id(request.job_id))
        return pb.ListArtifactsResponse(artifacts=convert.artifact_messages(artifacts))

    async def DownloadArtifact(self, request: pb.DownloadArtifactRequest, context: Call) -> AsyncGenerator[pb.DownloadArtifactResponse]:
        """See jobs.proto."""
        job_id, name = _job_id(request.job_id), names.artifact_name(request.name)
        content = await self._app.artifact_content(context.caller, job_id, name)
        async with aclosing(download(pb.DownloadArtifactResponse, content, request.offset)) as responses:
            async for response in responses:
                yield response

    async def WatchJob(self, request: pb.WatchJobRequest, context: Call) -> AsyncGenerator[pb.WatchJobResponse]:
        """See jobs.proto."""
        watched = self._app.watch_job(context.caller, _job_id(request.job_id), after_seq=request.after_seq)
        async with aclosing(watched) as updates:
            async for update in updates:
                if update.event is not None:
                    yield pb.WatchJobResponse(event=convert.event_message(update.event))
                if update.job is not None:
                    yield pb.WatchJobResponse(job=_now(update.job))

    async def EstimateJob(self, request: pb.EstimateJobRequest, context: Call) -> pb.EstimateJobResponse:
        """See jobs.proto."""
        spec, counted = convert.estimate_of(request)
        estimate = await self._app.estimate_job(context.caller, spec, counted)
        return pb.EstimateJobResponse(estimate=convert.estimate_message(estimate))


def _job_id(text: str) -> str:
    return names.thing_id("fine-tuning job", text, "fine_tuning_job_id")


def _now(job: Job) -> types_pb2.Job:
    return convert.job_message(job, time.time())
