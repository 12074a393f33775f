"""/v1/fine_tuning/jobs: create, list, look up, cancel, pause, resume, events, checkpoints."""

from __future__ import annotations

import time
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request

from service.rest import convert, wire
from service.rest.bodies import read_json, validated
from service.rest.dependencies import After, AppDep, CallerDep, IdempotencyKey, JobId, MetadataFilter, Retried
from service.rest.documents import CREATE_JOB_BODY, METADATA_PARAMETER

router = APIRouter(prefix="/v1/fine_tuning/jobs", tags=["Fine-tuning jobs"])


@router.post("", response_model=wire.FineTuningJob, openapi_extra=CREATE_JOB_BODY)
async def create_job(request: Request, app: AppDep, caller: CallerDep, key: IdempotencyKey, retried: Retried) -> wire.FineTuningJob:
    """Create a job. It is durable once this is answered.

    Posting again under the same `Idempotency-Key` gives the same job; so do the official client's own
    retries, which carry no key.
    """
    body = validated(wire.CreateFineTuningJobRequest, await read_json(request))
    job = await app.create_job(caller, convert.job_spec(body), idempotency_key=key, retried=retried)
    return convert.job_object(job, time.time())


@router.get("", response_model=wire.JobList, openapi_extra=METADATA_PARAMETER)
async def list_jobs(
    app: AppDep,
    caller: CallerDep,
    metadata: MetadataFilter,
    after: After = None,
    limit: Annotated[int, Query(ge=1, le=1000, description="Jobs of one page.")] = 20,
) -> wire.JobList:
    """The project's jobs, newest first."""
    page = await app.list_jobs(caller, after=after, limit=limit, metadata=metadata)
    now = time.time()
    return wire.JobList(data=[convert.job_object(job, now) for job in page.items], has_more=page.has_more)


@router.get("/{fine_tuning_job_id}", response_model=wire.FineTuningJob)
async def get_job(app: AppDep, caller: CallerDep, job_id: JobId) -> wire.FineTuningJob:
    """One job."""
    return convert.job_object(await app.get_job(caller, job_id), time.time())


@router.post("/{fine_tuning_job_id}/cancel", response_model=wire.FineTuningJob)
async def cancel_job(app: AppDep, caller: CallerDep, job_id: JobId) -> wire.FineTuningJob:
    """Stop a job. Its status becomes cancelled once its processes are gone."""
    return convert.job_object(await app.cancel_job(caller, job_id), time.time())


@router.post("/{fine_tuning_job_id}/pause", response_model=wire.FineTuningJob)
async def pause_job(app: AppDep, caller: CallerDep, job_id: JobId) -> wire.FineTuningJob:
    """Set a job aside; its run writes a checkpoint first. Its status becomes paused once its processes are gone.

    Pausing a paused job changes nothing. A job whose files are still being checked cannot be paused.
    """
    return convert.job_object(await app.pause_job(caller, job_id), time.time())


@router.post("/{fine_tuning_job_id}/resume", response_model=wire.FineTuningJob)
async def resume_job(app: AppDep, caller: CallerDep, job_id: JobId) -> wire.FineTuningJob:
    """Put a paused job back in the queue; it goes on from its last checkpoint to the same result as if never paused."""
    return convert.job_object(await app.resume_job(caller, job_id), time.time())


@router.get("/{fine_tuning_job_id}/events", response_model=wire.EventList)
async def list_events(
    app: AppDep,
    caller: CallerDep,
    job_id: JobId,
    after: After = None,
    limit: Annotated[int, Query(ge=1, le=1000, description="Events of one page.")] = 20,
    order: Annotated[Literal["asc", "desc"], Query(description="By age; desc, as OpenAI has it, begins with the newest.")] = "desc",
) -> wire.EventList:
    """What happened to a job."""
    page = await app.list_events(caller, job_id, after=after, limit=limit, ascending=order == "asc")
    return wire.EventList(data=[convert.event_object(event) for event in page.items], has_more=page.has_more)


@router.get("/{fine_tuning_job_id}/checkpoints", response_model=wire.CheckpointList)
async def list_checkpoints(
    app: AppDep,
    caller: CallerDep,
    job_id: JobId,
    after: After = None,
    limit: Annotated[int, Query(ge=1, le=1000, description="Checkpoints of one page.")] = 10,
) -> wire.CheckpointList:
    """A job's complete checkpoints, newest first."""
    return convert.checkpoint_list(await app.list_checkpoints(caller, job_id, after=after, limit=limit))
