"""Jobs, their events and leases in SQL. `apply` is the only statement that changes a job's state."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from service.jobs import Event, Job, JobError, JobSpec, JobStatus, Notice, Progress
from service.records import Page
from service.store import tables as t
from service.store.paging import page
from service.store.webhooks import enqueue
from service.webhooks import EVENT_OF
from trainers.spec import BaseModelRef, DatasetRef, Resolved


class Stale(Exception):
    """The job has changed since it was read, or the lease or epoch is no longer held: drop the result."""


IN_CLAIM_ORDER = (t.jobs.c.priority.desc(), t.jobs.c.queued_at, t.jobs.c.n)
"""The order in which queued jobs are looked at."""


class JobStatements:
    """Mixed into `Transaction`."""

    connection: AsyncConnection
    time: float
    touched: set[str]
    """Jobs that this transaction has changed, or written events of."""

    async def insert_job(self, job: Job, fingerprint: str, notices: Sequence[Notice]) -> Job:
        """A new job and its first events."""
        values = _values(job) | {
            "created_at": self.time,
            "priority": job.spec.tunesmith.priority,
            "deadline_at": None if (limit := job.spec.tunesmith.limits.deadline) is None else self.time + limit,
            "fingerprint": fingerprint,
            "lease_expires_at": 0.0,
            "event_seq": len(notices),
        }
        await self.connection.execute(sa.insert(t.jobs).values(id=job.id, **values))
        await self._insert_events(job.id, 0, notices)
        return await self.any_job(job.id)

    async def apply(self, old: Job, new: Job, notices: Iterable[Notice] = ()) -> Job:
        """Write the next state of a job with the events that tell of it; a job's end goes into the outbox of webhooks too.

        Raises Stale when the job is no longer as `old` was read.
        """
        notices = list(notices)
        c = t.jobs.c
        query = (
            sa.update(t.jobs)
            .where(c.id == old.id, c.version == old.version)
            .values(**_values(new), event_seq=c.event_seq + len(notices))
            .values(version=old.version + 1)
            .returning(c.event_seq)
        )
        seq = (await self.connection.execute(query)).scalar()
        if seq is None:
            raise Stale(old.id)
        self.touched.add(old.id)
        await self._insert_events(old.id, seq - len(notices), notices)
        if new.status is not old.status and new.status in EVENT_OF:
            await enqueue(self.connection, self.time, new.project_id, EVENT_OF[new.status], new.id)
        return await self.any_job(old.id)

    async def job(self, project_id: str, job_id: str, *, lock: bool = False) -> Job | None:
        """A job of the project; `lock` holds the row until the transaction ends."""
        query = sa.select(t.jobs).where(t.jobs.c.id == job_id, t.jobs.c.project_id == project_id)
        row = (await self.connection.execute(query.with_for_update() if lock else query)).mappings().first()
        return _job(row) if row else None

    async def any_job(self, job_id: str, *, lock: bool = False) -> Job:
        """A job of whichever project: for the scheduler and for runs, never for a caller."""
        query = sa.select(t.jobs).where(t.jobs.c.id == job_id)
        return _job((await self.connection.execute(query.with_for_update() if lock else query)).mappings().one())

    async def list_jobs(self, project_id: str, *, after: str | None, limit: int, metadata: dict[str, str] | None) -> Page[Job]:
        """Newest first; those without metadata when it is None. Raises ValueError when `after` is no job of the project."""
        c = t.jobs.c
        conditions = [c.project_id == project_id]
        if metadata is None:
            conditions.append(c.spec["metadata"].as_string() == "{}")
        else:
            conditions += [self._has_pair(key, value) for key, value in metadata.items()]
        cursor = sa.select(c.n).where(c.id == after, c.project_id == project_id) if after else None
        return await page(self.connection, sa.select(t.jobs).where(*conditions), c.n, cursor, limit, _job)

    def _has_pair(self, key: str, value: str) -> sa.ColumnElement[bool]:
        """That the metadata holds this pair. A JSON path would do, were there one that can name every key on SQLite."""
        spec = t.jobs.c.spec
        on_sqlite = self.connection.dialect.name == "sqlite"
        entries = sa.func.json_each(spec, "$.metadata") if on_sqlite else sa.func.jsonb_each_text(spec["metadata"])
        pairs = entries.table_valued("key", "value")
        return sa.exists(sa.select(pairs.c.key).where(pairs.c.key == key, pairs.c.value == value).correlate(t.jobs))

    async def list_events(self, job_id: str, *, after: str | None, limit: int, ascending: bool = False) -> Page[Event]:
        """By age, newest first unless `ascending`; the caller has checked whose job it is. Raises ValueError for an unknown `after`."""
        c = t.events.c
        cursor = sa.select(c.seq).where(c.id == after, c.job_id == job_id) if after else None
        query = sa.select(t.events).where(c.job_id == job_id)
        return await page(self.connection, query, c.seq, cursor, limit, _event, ascending=ascending)

    async def metrics_at(self, job_id: str, step: int) -> dict[str, Any]:
        """What the metrics events of that step said, newest run last."""
        c = t.events.c
        query = sa.select(c.data).where(c.job_id == job_id, c.type == "metrics", c.data["step"].as_integer() == step).order_by(c.seq)
        merged: dict[str, Any] = {}
        for data in (await self.connection.execute(query)).scalars():
            merged |= data
        return merged

    async def jobs_in(self, statuses: Iterable[JobStatus]) -> list[Job]:
        """Every job in one of these states, in the order in which a scheduler should look at them."""
        c = t.jobs.c
        query = sa.select(t.jobs).where(c.status.in_([s.value for s in statuses])).order_by(*IN_CLAIM_ORDER)
        return [_job(row) for row in (await self.connection.execute(query)).mappings()]

    async def known_jobs(self, job_ids: Iterable[str]) -> set[str]:
        """Those of the ids that are jobs, of whichever project."""
        query = sa.select(t.jobs.c.id).where(t.jobs.c.id.in_(list(job_ids)))
        return set((await self.connection.execute(query)).scalars())

    async def count_by_status(self) -> dict[JobStatus, int]:
        """Jobs of each state."""
        query = sa.select(t.jobs.c.status, sa.func.count()).group_by(t.jobs.c.status)
        return {JobStatus(status): count for status, count in (await self.connection.execute(query))}

    async def take_leases(self, owner: str, statuses: Iterable[JobStatus], ttl: timedelta) -> list[Job]:
        """Take over every job in these states that nobody holds a valid lease of."""
        c = t.jobs.c
        query = (
            sa.update(t.jobs)
            .where(c.status.in_([s.value for s in statuses]), sa.or_(c.lease_owner.is_(None), c.lease_expires_at < self.time))
            .values(lease_owner=owner, lease_expires_at=self.time + ttl.total_seconds(), version=c.version + 1)
            .returning(*c)
        )
        return [_job(row) for row in (await self.connection.execute(query)).mappings()]

    async def lease(self, job: Job, owner: str, ttl: timedelta) -> None:
        """Give the job, as it was just applied, to `owner`."""
        c = t.jobs.c
        query = sa.update(t.jobs).where(c.id == job.id).values(lease_owner=owner, lease_expires_at=self.time + ttl.total_seconds())
        await self.connection.execute(query)

    async def renew_leases(self, owner: str, ttl: timedelta) -> set[str]:
        """Prolong every lease of `owner`; gives the jobs it still holds."""
        c = t.jobs.c
        query = (
            sa.update(t.jobs)
            .where(c.lease_owner == owner, c.lease_expires_at >= self.time)
            .values(lease_expires_at=self.time + ttl.total_seconds())
            .returning(c.id)
        )
        return set((await self.connection.execute(query)).scalars())

    async def drop_lease(self, job_id: str, owner: str) -> None:
        """Give up one lease."""
        c = t.jobs.c
        await self.connection.execute(
            sa.update(t.jobs).where(c.id == job_id, c.lease_owner == owner).values(lease_owner=None, lease_expires_at=0.0)
        )

    async def drop_leases(self, owner: str) -> None:
        """Give up every lease of `owner`, so that another scheduler need not wait."""
        await self.connection.execute(sa.update(t.jobs).where(t.jobs.c.lease_owner == owner).values(lease_owner=None, lease_expires_at=0.0))

    async def set_reasons(self, reasons: dict[str, str]) -> None:
        """Say why queued jobs wait; not a change of state, so no event and no new version."""
        c = t.jobs.c
        for job_id, reason in reasons.items():
            await self.connection.execute(sa.update(t.jobs).where(c.id == job_id, c.status == JobStatus.QUEUED.value).values(reason=reason))
        self.touched |= reasons.keys()

    async def submission(self, project_id: str, key: str) -> tuple[str, str]:
        """(fingerprint, job id) of what was posted under this key, which is bound."""
        c = t.submissions.c
        query = sa.select(c.fingerprint, c.job_id).where(c.project_id == project_id, c.key == key)
        row = (await self.connection.execute(query)).one()
        return row[0], row[1]

    async def insert_submission(self, project_id: str, key: str, fingerprint: str, job_id: str) -> bool:
        """Bind the key to the job; False when the key is bound already. Waits for a transaction that is about to bind it."""
        values = {"project_id": project_id, "key": key, "fingerprint": fingerprint, "job_id": job_id, "created_at": self.time}
        insert = sqlite.insert if self.connection.dialect.name == "sqlite" else postgresql.insert
        query = insert(t.submissions).values(values).on_conflict_do_nothing().returning(t.submissions.c.key)
        return (await self.connection.execute(query)).scalar() is not None

    async def lock_content(self, project_id: str, fingerprint: str) -> None:
        """Let no other transaction post the same content until this one ends; on SQLite none writes beside this one anyway."""
        if self.connection.dialect.name == "postgresql":
            number = int.from_bytes(hashlib.sha256(f"{project_id}/{fingerprint}".encode()).digest()[:8], "big", signed=True)
            await self.connection.execute(sa.select(sa.func.pg_advisory_xact_lock(number)))

    async def recent_twin(self, project_id: str, fingerprint: str, within: timedelta) -> str | None:
        """The newest job of the same content posted within that time."""
        c = t.jobs.c
        query = (
            sa.select(c.id)
            .where(c.project_id == project_id, c.fingerprint == fingerprint, c.created_at > self.time - within.total_seconds())
            .order_by(c.n.desc())
            .limit(1)
        )
        return (await self.connection.execute(query)).scalar()

    async def _insert_events(self, job_id: str, last_seq: int, notices: Sequence[Notice]) -> None:
        rows = [
            {"id": f"ftevent-{secrets.token_hex(12)}", "job_id": job_id, "seq": seq, "created_at": self.time}
            | {"level": n.level, "type": n.type, "message": n.message, "data": n.data}
            for seq, n in enumerate(notices, last_seq + 1)
        ]
        if rows:
            await self.connection.execute(sa.insert(t.events), rows)


_PLAIN = (
    *("project_id", "organization_id", "version", "epoch", "infra_failures", "not_before", "reason", "queued_at", "started_at"),
    *("finished_at", "trained_tokens", "tuned_model", "lease_owner"),
)
_MODELS = {"dataset": DatasetRef, "validation": DatasetRef, "resolved": Resolved, "error": JobError}


def _values(job: Job) -> dict[str, Any]:
    values: dict[str, Any] = {name: getattr(job, name) for name in _PLAIN}
    for name in ("spec", "base_model", "progress", *_MODELS):
        model = getattr(job, name)
        values[name] = model.model_dump(mode="json") if model is not None else sa.null()
    return values | {"status": job.status.value, "result_files": list(job.result_files)}


def _job(row: sa.RowMapping) -> Job:
    values: dict[str, Any] = {name: row[name] for name in _PLAIN}
    for name, model in _MODELS.items():
        values[name] = model.model_validate(row[name]) if row[name] is not None else None
    return Job(
        id=row["id"],
        created_at=row["created_at"],
        status=JobStatus(row["status"]),
        spec=JobSpec.model_validate(row["spec"]),
        base_model=BaseModelRef.model_validate(row["base_model"]),
        progress=Progress.model_validate(row["progress"]),
        result_files=tuple(row["result_files"]),
        **values,
    )


def _event(row: sa.RowMapping) -> Event:
    return Event(**{name: row[name] for name in ("id", "job_id", "seq", "created_at", "level", "message", "type", "data")})


job_of, event_of = _job, _event
"""Rows of `jobs` and `events` as values, for the statements of other modules."""
