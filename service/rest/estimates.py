"""Estimates of jobs and checks of files: what can be known before anything is created.

Both may read a file for a while; a client that leaves ends that.
"""

from __future__ import annotations

from fastapi import APIRouter, Request

from service.errors import TunesmithError
from service.job_request import CHECK_FIELDS
from service.rest import convert, wire
from service.rest.bodies import read_json, validated
from service.rest.connected import while_connected
from service.rest.dependencies import AppDep, CallerDep, FileId
from service.rest.documents import json_body

router = APIRouter()


@router.post(
    "/v1/fine_tuning/jobs/estimate",
    tags=["Fine-tuning jobs"],
    response_model=wire.JobEstimate,
    openapi_extra=json_body(wire.EstimateJobRequest),
)
async def estimate_job(request: Request, app: AppDep, caller: CallerDep) -> wire.JobEstimate:
    """What a job would take: data, memory, time, cost. The body is that of a job; nothing is created.

    Files that were not checked before are checked now, which may take a while; the job that follows finds that done.
    Faulty files are told in the answer, which is a success then too. Too many checks at one time are answered with 429.
    """
    body = validated(wire.EstimateJobRequest, await read_json(request))
    spec = convert.job_spec(body)
    estimate = await while_connected(request, app.estimate_job(caller, spec, body.data))
    return convert.estimate_object(spec, estimate)


@router.post("/v1/files/{file_id}/check", tags=["Files"], response_model=wire.FileCheck, openapi_extra=json_body(wire.CheckFileRequest))
async def check_file(request: Request, app: AppDep, caller: CallerDep, file_id: FileId) -> wire.FileCheck:
    """Check a file for a base model and a method: every fault by its line, token counts, and the first rows as the model sees them."""
    asked = validated(wire.CheckFileRequest, await read_json(request))
    work = app.check_file(
        caller,
        file_id,
        model=asked.model,
        method=asked.method,
        training=asked.training,
        data=asked.data,
        param=asked.purpose,
        preview=asked.preview,
    )
    try:
        report = await while_connected(request, work)
    except TunesmithError as error:
        error.param = CHECK_FIELDS.get(error.param or "", error.param)
        raise
    return wire.FileCheck(file_id=file_id, model=asked.model, method=asked.method, ok=report.ok, summary=report.summary, report=report)
