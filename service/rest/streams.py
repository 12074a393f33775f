"""/v1/fine_tuning/jobs/{id}: stream, metrics, logs. Ours; OpenAI has no such thing."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import AsyncGenerator, AsyncIterable, Iterator
from contextlib import aclosing
from typing import Annotated, Any, Literal

import numpy as np
import orjson
from fastapi import APIRouter, Depends, Header, Query, Request, Response
from fastapi.responses import StreamingResponse
from fastapi.sse import EventSourceResponse, ServerSentEvent
from starlette.concurrency import run_in_threadpool

from service.app.streams import JobLog
from service.curves import Curves
from service.errors import ErrorCode, TunesmithError
from service.jobs import FINAL, JobUpdate
from service.metrics import STREAM
from service.rest import convert, wire
from service.rest.dependencies import AppDep, CallerDep, JobId
from service.rest.documents import CURVES, LOG, UPDATES
from service.rest.errors import error_response

RETRY_MS = 1000
"""How long a client waits before it connects again."""
CSV_ROWS = 1000
router = APIRouter(prefix="/v1/fine_tuning/jobs/{fine_tuning_job_id}", tags=["Streams"])


async def get_updates(
    request: Request,
    app: AppDep,
    caller: CallerDep,
    job_id: JobId,
    after: Annotated[
        int, Query(ge=-(10**6), le=2**53, description="Number of the last event you have; -20 begins with the last 20 events.")
    ] = 0,
    last_event_id: Annotated[
        str | None, Header(pattern="^[0-9]{1,15}$", description="As a client sends it that connects again; comes before `after`.")
    ] = None,
) -> AsyncGenerator[AsyncIterable[JobUpdate]]:
    """A watch whose first update is there: whatever stands against it is answered before the stream begins."""
    cursor = after if last_event_id is None else int(last_event_id)
    async with aclosing(app.watch_job(caller, job_id, after_seq=cursor)) as updates:
        first = await anext(updates)
        request.scope[STREAM] = True
        yield _with_first(first, updates)


async def _with_first(first: JobUpdate, updates: AsyncIterable[JobUpdate]) -> AsyncGenerator[JobUpdate]:
    yield first
    async for update in updates:
        yield update


@router.get("/stream", response_class=EventSourceResponse, responses=UPDATES)
async def stream_job(updates: Annotated[AsyncIterable[JobUpdate], Depends(get_updates)]) -> AsyncIterable[ServerSentEvent]:
    """Follow a job as Server-Sent Events, from the cursor to its end.

    `event`: an event object as in the job's list of events; its `id:` is what `Last-Event-ID` wants. `progress`: the
    job's `tunesmith` part, whenever it changed. `done`: the whole job in its final state; the stream ends with it. A
    stream that ends without `done` was cut: connect again. `error`: OpenAI's error object; connecting again won't help.
    """
    yield ServerSentEvent(retry=RETRY_MS)
    try:
        async for update in updates:
            yield _message(update)
    except TunesmithError as error:
        if error.code is not ErrorCode.UNAVAILABLE:
            yield ServerSentEvent(event="error", raw_data=bytes(error_response(error).body).decode())


def _message(update: JobUpdate) -> ServerSentEvent:
    if update.event is not None:
        return ServerSentEvent(event="event", id=str(update.event.seq), data=convert.event_object(update.event))
    assert update.job is not None
    if update.job.status in FINAL:
        return ServerSentEvent(event="done", data=convert.job_object(update.job, time.time()))
    return ServerSentEvent(event="progress", data=convert.tunesmith_object(update.job))


@router.get("/metrics", response_model=None, responses=CURVES)
async def get_job_metrics(
    request: Request,
    app: AppDep,
    caller: CallerDep,
    job_id: JobId,
    format: Annotated[Literal["json", "csv"] | None, Query(description="Comes before `Accept`.")] = None,
    after_step: Annotated[int, Query(ge=0, le=2**31 - 1, description="Only steps beyond this one.")] = 0,
    max_points: Annotated[
        int | None,
        Query(
            ge=10,
            le=100_000,
            description=(
                "At most so many rows: the first, the last, and of each of equal stretches those with the least and the greatest "
                "training loss; of steps with a validation score, by that and apart."
            ),
        ),
    ] = None,
) -> Response:
    """Every curve of a job until now, in columns; a row a step as CSV (`format=csv` or `Accept: text/csv`).

    Of a step that a resumed run repeated, the newest run's numbers stand here.
    """
    curves = await app.job_curves(caller, job_id, after_step=after_step)
    if format == "csv" or (format is None and "text/csv" in request.headers.get("accept", "")):
        headers = {"content-disposition": f'attachment; filename="{job_id}-metrics.csv"', "vary": "accept"}
        return StreamingResponse(_csv(curves, max_points), media_type="text/csv", headers=headers)
    body = await run_in_threadpool(_json, job_id, curves, max_points)
    return Response(body, media_type="application/json", headers={"vary": "accept"})


def _json(job_id: str, curves: Curves, most: int | None) -> bytes:
    steps, columns = curves.columns(most)
    empty: dict[str, Any] = wire.JobMetrics(fine_tuning_job_id=job_id, total_rows=len(curves), data={}).model_dump()
    return orjson.dumps(empty | {"data": {"step": steps, **columns}}, option=orjson.OPT_SERIALIZE_NUMPY)


def _csv(curves: Curves, most: int | None) -> Iterator[bytes]:
    steps, columns = curves.columns(most)
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["step", *columns])
    for start in range(0, len(steps), CSV_ROWS):
        cells = [[*map(_cell, column[start : start + CSV_ROWS])] for column in columns.values()]
        rows.writerows(zip(steps[start : start + CSV_ROWS].tolist(), *cells, strict=True))
        yield text.getvalue().encode()
        text.seek(0)
        text.truncate()
    yield text.getvalue().encode()


def _cell(value: np.float64) -> str:
    return "" if np.isnan(value) else repr(float(value))


async def get_log(
    request: Request,
    app: AppDep,
    caller: CallerDep,
    job_id: JobId,
    attempt: Annotated[int | None, Query(ge=1, le=2**31 - 1, description="Number of the run; the latest unless given.")] = None,
    rank: Annotated[
        str | None,
        Query(pattern="^(driver|[0-9]{1,6})$", description="A worker, or `driver`. Unless given 0, or the driver where 0 wrote nothing."),
    ] = None,
    tail: Annotated[int | None, Query(ge=1, le=100_000, description="Begin with so many last lines.")] = None,
    follow: Annotated[bool, Query(description="Go on until the run has ended.")] = False,
) -> AsyncGenerator[tuple[JobLog, bytes]]:
    """A log and its first piece: whatever stands against sending it is answered before the text begins."""
    who = rank if rank is None or rank == "driver" else int(rank)
    log = await app.job_log(caller, job_id, attempt=attempt, rank=who, tail=tail, follow=follow)
    async with aclosing(log.text):
        first = await anext(log.text)
        if follow:
            request.scope[STREAM] = True
        yield log, first


@router.get("/logs", response_model=None, responses=LOG)
async def get_job_logs(opened: Annotated[tuple[JobLog, bytes], Depends(get_log)]) -> Response:
    """What a worker of a run wrote, as text without secrets; it is kept after the run, until the job is deleted.

    Of a log that is too long the middle is left out, and a line says so.
    """
    log, first = opened
    headers = {
        "x-tunesmith-attempt": str(log.attempt),
        "x-tunesmith-log": log.writer,
        "x-tunesmith-logs": ", ".join(log.writers),
        "x-content-type-options": "nosniff",
        "cache-control": "no-store",
        "x-accel-buffering": "no",
    }
    return StreamingResponse(_rest_of(log, first), media_type="text/plain; charset=utf-8", headers=headers)


async def _rest_of(log: JobLog, first: bytes) -> AsyncGenerator[bytes]:
    yield first
    async for data in log.text:
        yield data
