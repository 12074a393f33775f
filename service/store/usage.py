"""What a project uses, in SQL: the sums that quotas are compared with."""

from __future__ import annotations

from collections.abc import Iterable

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from service.jobs import ON_RAY, JobStatus
from service.quotas import WAITING, Usage, month
from service.store import tables as t


class UsageStatements:
    """Mixed into `Transaction`."""

    connection: AsyncConnection
    time: float

    async def usage(self, project_id: str) -> Usage:
        """All of it."""
        return Usage(
            running_jobs=await self.count_jobs(project_id, ON_RAY),
            queued_jobs=await self.count_jobs(project_id, WAITING),
            gpu_hours=await self.gpu_hours(project_id),
            stored_bytes=await self.stored_bytes(project_id),
        )

    async def count_jobs(self, project_id: str, statuses: Iterable[JobStatus]) -> int:
        """The project's jobs in these states."""
        c = t.jobs.c
        query = sa.select(sa.func.count()).where(c.project_id == project_id, c.status.in_([status.value for status in statuses]))
        return (await self.connection.execute(query)).scalar_one()

    async def gpu_hours(self, project_id: str) -> float:
        """GPU-hours of the project's runs in this calendar month, those that go on until now."""
        run, job, (begin, _) = t.runs.c, t.jobs.c, month(self.time)
        goes_on = sa.and_(job.epoch == run.epoch, job.status.in_([status.value for status in ON_RAY]))
        end = sa.func.coalesce(run.ended_at, sa.case((goes_on, self.time), else_=sa.func.coalesce(run.reported_at, run.created_at)))
        start = sa.case((run.created_at < begin, begin), else_=run.created_at)
        gpus = [job.spec[("tunesmith", "resources", name)].as_integer() for name in ("workers", "gpus_per_worker")]
        query = (
            sa.select(sa.func.sum((end - start) * gpus[0] * gpus[1]))
            .select_from(t.runs.join(t.jobs, job.id == run.job_id))
            .where(job.project_id == project_id, end > begin)
        )
        return float((await self.connection.execute(query)).scalar_one() or 0.0) / 3600

    async def stored_bytes(self, project_id: str) -> int:
        """Bytes of the project's files, and of the parts of uploads that are under way."""
        file, upload, part = t.files.c, t.uploads.c, t.upload_parts.c
        expired = sa.and_(file.expires_at.is_not(None), file.expires_at <= self.time)
        files = sa.select(sa.func.sum(file.bytes)).where(file.project_id == project_id, file.deleted_at.is_(None), sa.not_(expired))
        parts = (
            sa.select(sa.func.sum(part.bytes))
            .select_from(t.upload_parts.join(t.uploads, upload.id == part.upload_id))
            .where(upload.project_id == project_id, upload.status == "pending")
        )
        return sum([int((await self.connection.execute(query)).scalar_one() or 0) for query in (files, parts)])
