"""The queue in SQL: what a look at it must know, in a few statements whose cost does not grow with the number of jobs that wait.

`turns.Turns` alone calls these. Whoever decides holds the one row of `queue` until its transaction ends, so that two schedulers
never give the same room away; on SQLite one transaction writes at a time anyway.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from service.jobs import ON_RAY, Departure, JobStatus
from service.store import tables as t
from trainers.spec import ResourceSpec

HEADS = 25
"""Jobs of each project and priority that are looked at, the oldest ones: who is behind them could not start before them."""
OLDEST = 100
"""Jobs that are looked at because they have been in the queue longest."""
TOLD = 200
"""Jobs at most whose time has come, or has not yet, in one look."""
TOGETHER = 50
"""Heads of so many projects and priorities in one statement."""


@dataclass(frozen=True, slots=True)
class Queued:
    """A job that waits, as far as the queue's rules go."""

    id: str
    project_id: str
    priority: int
    queued_at: float
    n: int
    waiting_since: float
    """When it last came into the queue."""
    resources: ResourceSpec
    batch_size: int | None
    max_duration: float | None
    reason: str


@dataclass(frozen=True, slots=True)
class Holding:
    """A run that holds devices. `ended_at` is None while it does; `preemptions` counts its job's runs that made room before."""

    job_id: str
    project_id: str
    resources: ResourceSpec
    created_at: float
    ended_at: float | None
    leaving: str | None
    out_of_turn: bool
    preemptions: int = 0


class QueueStatements:
    """Mixed into `Transaction`."""

    connection: AsyncConnection
    time: float

    async def reserved(self, *, lock: bool = False) -> str | None:
        """The job that holds the queue's reservation; `lock` keeps every other scheduler from deciding until the transaction ends."""
        query = sa.select(t.queue.c.reserved)
        return (await self.connection.execute(query.with_for_update() if lock else query)).scalar_one()

    async def reserve(self, job_id: str | None) -> None:
        """Give the reservation to this job."""
        await self.connection.execute(sa.update(t.queue).values(reserved=job_id))

    async def anything_to_decide(self) -> bool:
        """Whether any job waits, or runs with fewer workers than it asked for."""
        c, on_ray = t.jobs.c, [status.value for status in ON_RAY]
        shrunken = sa.and_(c.status.in_(on_ray), c.progress["workers"].as_integer().is_not(None))
        for some in (c.status == JobStatus.QUEUED.value, shrunken):
            if (await self.connection.execute(sa.select(c.id).where(some).limit(1))).first() is not None:
                return True
        return False

    async def candidates(self) -> list[Queued]:
        """The jobs whose turn it could be: the heads of every project's line in each priority, and the oldest of all."""
        c, ready = t.jobs.c, self._ready()
        lines = sa.select(c.project_id, c.priority).where(*ready).group_by(c.project_id, c.priority)
        found: dict[str, Queued] = {}
        heads = [
            sa.select(*_QUEUED).where(*ready, c.project_id == project, c.priority == priority).order_by(c.queued_at, c.n).limit(HEADS)
            for project, priority in (await self.connection.execute(lines)).all()
        ]
        oldest = sa.select(*_QUEUED).where(*ready).order_by(c.queued_at, c.n).limit(OLDEST)
        for first in range(0, len(heads), TOGETHER):
            some = [oldest, *heads[first : first + TOGETHER]]
            query = sa.union_all(*(sa.select(one.subquery()) for one in some))
            for row in (await self.connection.execute(query)).mappings():
                found[row["id"]] = Queued(**_parsed(row))
        return list(found.values())

    async def postponed(self) -> dict[str, tuple[float, str]]:
        """Jobs that wait before they are tried again: until when, and why."""
        c = t.jobs.c
        query = sa.select(c.id, c.not_before, c.reason).where(c.status == JobStatus.QUEUED.value, c.not_before > self.time).limit(TOLD)
        return {row.id: (row.not_before, row.reason) for row in await self.connection.execute(query)}

    async def past_deadline(self) -> list[str]:
        """Jobs in the queue whose deadline is over."""
        c = t.jobs.c
        query = sa.select(c.id).where(c.status == JobStatus.QUEUED.value, c.deadline_at <= self.time).limit(TOLD)
        return list((await self.connection.execute(query)).scalars())

    async def holdings(self) -> dict[str, Holding]:
        """The runs that hold devices now, by their jobs."""
        c, r = t.jobs.c, t.runs.c
        earlier = t.runs.alias().c
        made_room = sa.select(sa.func.count()).where(
            earlier.job_id == c.id, earlier.leaving == Departure.OUTRANKED.value, earlier.epoch < c.epoch
        )
        query = (
            sa.select(*_HOLDING, made_room.scalar_subquery().label("preemptions"))
            .select_from(t.jobs.join(t.runs, sa.and_(r.job_id == c.id, r.epoch == c.epoch)))
            .where(c.status.in_([status.value for status in ON_RAY]))
        )
        return {row["job_id"]: Holding(**_parsed(row)) for row in (await self.connection.execute(query)).mappings()}

    async def held_since(self, time: float, limit: int = 10_000) -> list[Holding]:
        """Runs that ended after that time, the latest ones."""
        c, r = t.jobs.c, t.runs.c
        query = sa.select(*_HOLDING).select_from(t.runs.join(t.jobs, c.id == r.job_id)).where(r.ended_at > time)
        rows = await self.connection.execute(query.order_by(r.ended_at.desc()).limit(limit))
        return [Holding(**_parsed(row)) for row in rows.mappings()]

    def _ready(self) -> Sequence[sa.ColumnElement[bool]]:
        # A bare column would have SQLite find the jobs by it, nearly all of them, and sort these, instead of by the order asked for.
        return t.jobs.c.status == JobStatus.QUEUED.value, t.jobs.c.not_before + 0.0 <= self.time


def _parsed(row: sa.RowMapping) -> dict[str, Any]:
    return dict(row) | {"resources": _resources(row["resources"])}


@lru_cache(maxsize=1024)
def _resources(text: str | None) -> ResourceSpec:
    """Jobs have few kinds of them, and are read at each look."""
    return ResourceSpec.model_validate_json(text) if text else ResourceSpec()


_LAST_END = sa.select(sa.func.max(t.runs.c.ended_at)).where(t.runs.c.job_id == t.jobs.c.id).scalar_subquery()
_QUEUED = (
    *(t.jobs.c[name] for name in ("id", "project_id", "priority", "n", "reason")),
    sa.func.coalesce(t.jobs.c.queued_at, t.jobs.c.created_at).label("queued_at"),
    sa.case((t.jobs.c.queued_at < _LAST_END, _LAST_END), else_=sa.func.coalesce(t.jobs.c.queued_at, t.jobs.c.created_at)).label(
        "waiting_since"
    ),
    t.jobs.c.spec[("tunesmith", "resources")].as_string().label("resources"),
    t.jobs.c.resolved["batch_size"].as_integer().label("batch_size"),
    t.jobs.c.spec[("tunesmith", "limits", "max_duration")].as_float().label("max_duration"),
)
_HOLDING = (
    t.jobs.c.id.label("job_id"),
    t.jobs.c.project_id,
    t.jobs.c.spec[("tunesmith", "resources")].as_string().label("resources"),
    *(t.runs.c[name] for name in ("created_at", "ended_at", "leaving", "out_of_turn")),
)
