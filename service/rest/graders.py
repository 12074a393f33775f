"""/v1/fine_tuning/alpha/graders: validate a grader, run one on a sample."""

from __future__ import annotations

from fastapi import APIRouter, Request

from service.rest import convert, wire
from service.rest.bodies import read_json, validated
from service.rest.dependencies import AppDep, CallerDep
from service.rest.documents import json_body
from trainers.graders.template import Sample

router = APIRouter(prefix="/v1/fine_tuning/alpha/graders", tags=["Graders"])


@router.post(
    "/validate",
    response_model=wire.ValidatedGrader,
    response_model_exclude_unset=True,
    openapi_extra=json_body(wire.ValidateGraderRequest),
)
async def validate_grader(request: Request, app: AppDep, caller: CallerDep) -> wire.ValidatedGrader:
    """Check that a grader can grade here: its references, formula and source can be read, and what it needs is there.

    Answers with the grader as it was given, or with an error that names the faulty field. Nothing of it is run.
    """
    body = validated(wire.ValidateGraderRequest, await read_json(request, multiline=True))
    await app.validate_grader(caller, body.grader)
    return wire.ValidatedGrader(grader=body.grader)


@router.post("/run", response_model=wire.GraderRun, openapi_extra=json_body(wire.RunGraderRequest))
async def run_grader(request: Request, app: AppDep, caller: CallerDep) -> wire.GraderRun:
    """Grade one sample. What keeps it from having a reward is told in `metadata.errors`, and the reward is 0 then."""
    body = validated(wire.RunGraderRequest, await read_json(request, multiline=True))
    outcome = await app.run_grader(caller, body.grader, Sample(body.model_sample, body.item or {}))
    return convert.grader_run(body.grader, outcome)
