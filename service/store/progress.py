"""What is told of a job's progress, in SQL: its attempts, its place in the queue, its news, its curves.

For those who look at jobs, not for those who move them; the caller has checked whose job it is.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from service.jobs import Attempt, Event, Job, JobStatus
from service.store import tables as t
from service.store.jobs import IN_CLAIM_ORDER, event_of, job_of

PARTITION = 1000
"""Rows of a curve that are fetched at a time."""
_OUTCOMES = {"finished": "succeeded", "failed": "failed", "lost": "lost"}


@dataclass(frozen=True, slots=True)
class Mark:
    """How far a job's row is; equal marks mean that nothing new is to be told. `seq` is that of its last event."""

    seq: int
    version: int
    reason: str


class ProgressStatements:
    """Mixed into `Transaction`."""

    connection: AsyncConnection
    time: float

    async def detailed(self, jobs: Sequence[Job], *, log_tails: bool = False) -> list[Job]:
        """The jobs with their attempts and their places in the queue: at most two statements for all of them."""
        ids = [job.id for job in jobs if job.epoch]
        attempts = await self._attempts(ids, log_tails) if ids else {}
        queued = [job.id for job in jobs if job.status is JobStatus.QUEUED]
        places = await self._places(queued) if queued else {}
        return [replace(job, attempts=tuple(attempts.get(job.id, ())), queue_position=places.get(job.id)) for job in jobs]

    async def _attempts(self, job_ids: Collection[str], log_tails: bool) -> dict[str, list[Attempt]]:
        c = t.runs.c
        words = [c.outcome[name].as_string().label(name) for name in ("kind", "code", "message", "cause", "node", "hint")]
        columns = [
            c.job_id,
            c.epoch,
            c.created_at,
            c.ended_at,
            c.resumed_step,
            c.last_step,
            *words,
            *(c.outcome[name].as_integer().label(name) for name in ("rank", "last_good_step")),
        ]
        columns += [c.outcome["log_tail"].label("log_tail")] if log_tails else []
        found: dict[str, list[Attempt]] = {}
        for row in (await self.connection.execute(sa.select(*columns).where(c.job_id.in_(job_ids)).order_by(c.epoch))).mappings():
            found.setdefault(row["job_id"], []).append(_attempt(row))
        return found

    async def _places(self, job_ids: Collection[str]) -> dict[str, int]:
        """Places among all queued jobs, of whichever project: 1 is claimed next."""
        c = t.jobs.c
        queue = sa.select(c.id, sa.func.row_number().over(order_by=IN_CLAIM_ORDER).label("place")).where(c.status == JobStatus.QUEUED.value)
        numbered = queue.subquery()
        rows = await self.connection.execute(sa.select(numbered.c.id, numbered.c.place).where(numbered.c.id.in_(job_ids)))
        return {row.id: row.place for row in rows}

    async def marks(self, job_ids: Collection[str]) -> dict[str, Mark]:
        """How far these jobs are; one that is gone is missing."""
        c = t.jobs.c
        rows = await self.connection.execute(sa.select(c.id, c.event_seq, c.version, c.reason).where(c.id.in_(job_ids)))
        return {row[0]: Mark(row[1], row[2], row[3]) for row in rows}

    async def marked_jobs(self, job_ids: Collection[str]) -> dict[str, tuple[Mark, Job]]:
        """These jobs with all that is told of them, each with its mark."""
        rows = (await self.connection.execute(sa.select(t.jobs).where(t.jobs.c.id.in_(job_ids)))).mappings().all()
        jobs = await self.detailed([job_of(row) for row in rows])
        return {job.id: (Mark(row["event_seq"], row["version"], row["reason"]), job) for row, job in zip(rows, jobs, strict=True)}

    async def events_after(self, cursors: Mapping[str, int], limit: int) -> dict[str, list[Event]]:
        """The events of each job beyond its cursor, in order; at most `limit` of all jobs together."""
        c = t.events.c
        beyond = sa.or_(*(sa.and_(c.job_id == job_id, c.seq > seq) for job_id, seq in cursors.items()))
        rows = (await self.connection.execute(sa.select(t.events).where(beyond).order_by(c.job_id, c.seq).limit(limit))).mappings()
        found: dict[str, list[Event]] = {}
        for row in rows:
            found.setdefault(row["job_id"], []).append(event_of(row))
        return found

    async def metric_rows(self, job_id: str, after_step: int) -> AsyncGenerator[dict[str, Any]]:
        """What the metrics events beyond a step say, in the order of events; fetched piece by piece."""
        c = t.events.c
        conditions = [c.job_id == job_id, c.type == "metrics"]
        if after_step > 0:
            conditions.append(c.data["step"].as_integer() > after_step)
        result = await self.connection.stream(sa.select(c.data).where(*conditions).order_by(c.seq).execution_options(yield_per=PARTITION))
        async for rows in result.scalars().partitions():
            for data in rows:
                yield data


def _attempt(row: sa.RowMapping) -> Attempt:
    ended_without_a_word = "stopped" if row["ended_at"] is not None else None
    outcome: Any = _OUTCOMES.get(row["kind"], ended_without_a_word)
    return Attempt(
        epoch=row["epoch"],
        started_at=row["created_at"],
        ended_at=row["ended_at"],
        resumed_step=row["resumed_step"],
        last_step=row["last_step"],
        outcome=outcome,
        **{name: row[name] for name in ("code", "message", "cause", "rank", "node", "hint", "last_good_step")},
        log_tail=tuple(row.get("log_tail") or ()),
    )
