"""Files and tuned models in SQL. Every read names the project it is for."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import sqlalchemy as sa

from service.records import File, Model, Page
from service.store import tables as t
from service.store.paging import page
from service.store.removals import RemovalStatements


class FileStatements(RemovalStatements):
    """Mixed into `Transaction`."""

    async def insert_file(self, file: File, expires_after: timedelta | None = None) -> None:
        """A new file; its times are the database's."""
        values = {
            column: getattr(file, column) for column in ("id", "project_id", "filename", "purpose", "bytes", "sha256", "key", "status")
        }
        expires_at = None if expires_after is None else self.time + expires_after.total_seconds()
        await self.connection.execute(sa.insert(t.files).values(**values, created_at=self.time, expires_at=expires_at))

    async def file(self, project_id: str, file_id: str, *, lock: bool = False) -> File | None:
        """A file of the project that is still there; with `lock` it stays until the transaction ends."""
        query = sa.select(t.files).where(t.files.c.id == file_id, *self._there(project_id))
        row = (await self.connection.execute(query.with_for_update(read=True) if lock else query)).mappings().first()
        return _file(row) if row else None

    def _there(self, project_id: str) -> list[sa.ColumnElement[bool]]:
        """Neither deleted nor expired: what has expired is gone at once, whenever the sweep comes by."""
        c = t.files.c
        return [c.project_id == project_id, c.deleted_at.is_(None), sa.or_(c.expires_at.is_(None), c.expires_at > self.time)]

    async def list_files(self, project_id: str, *, purpose: str | None, after: str | None, limit: int, ascending: bool) -> Page[File]:
        """Files by age. Raises ValueError when `after` is no file of the project."""
        c = t.files.c
        conditions = self._there(project_id)
        if purpose is not None:
            conditions.append(c.purpose == purpose)
        cursor = sa.select(c.n).where(c.id == after, c.project_id == project_id) if after else None
        return await page(self.connection, sa.select(t.files).where(*conditions), c.n, cursor, limit, _file, ascending=ascending)

    async def delete_file(self, project_id: str, file_id: str) -> str | None:
        """Marks the file deleted and gives its storage key; None when there is none. Bytes that are the file's own go."""
        query = sa.update(t.files).where(t.files.c.id == file_id, *self._there(project_id))
        key = (await self.connection.execute(query.values(deleted_at=self.time).returning(t.files.c.key))).scalar()
        await self.remove(_own([key] if key else []))
        return key

    async def expire_files(self, limit: int) -> int:
        """Mark the files deleted whose time is over; the number of them. Their bytes go."""
        c = t.files.c
        late = sa.select(c.id).where(c.deleted_at.is_(None), c.expires_at <= self.time).limit(limit).with_for_update(skip_locked=True)
        query = sa.update(t.files).where(c.id.in_(late)).values(deleted_at=self.time).returning(c.key)
        keys = list((await self.connection.execute(query)).scalars())
        await self.remove(_own(keys))
        return len(keys)

    async def insert_tuned_model(self, name: str, project_id: str, organization_id: str, job_id: str) -> None:
        """The name under which a finished job is found."""
        values = {"id": name, "project_id": project_id, "organization_id": organization_id, "job_id": job_id, "created_at": self.time}
        await self.connection.execute(sa.insert(t.tuned_models).values(values))

    async def tuned_models(self, project_id: str) -> list[Model]:
        """The project's tuned models, newest first; one by its name is found by `model_named`."""
        c = t.tuned_models.c
        query = sa.select(t.tuned_models).where(c.project_id == project_id, c.deleted_at.is_(None)).order_by(c.n.desc())
        rows = (await self.connection.execute(query)).mappings()
        return [Model(id=r["id"], created_at=r["created_at"], owned_by=r["organization_id"], job_id=r["job_id"]) for r in rows]

    async def model_is_deleted(self, job_id: str) -> bool:
        """Whether the job's model was there and has been deleted."""
        c = t.tuned_models.c
        query = sa.select(c.deleted_at).where(c.job_id == job_id, c.deleted_at.is_not(None))
        return (await self.connection.execute(query)).first() is not None


def _own(keys: list[str]) -> list[str]:
    """Without those of result files, whose bytes are also an artifact of their job."""
    return [key for key in keys if key.startswith("files/")]


def _file(row: sa.RowMapping | dict[str, Any]) -> File:
    names = ("id", "project_id", "filename", "purpose", "bytes", "sha256", "key", "created_at", "status", "expires_at")
    return File(**{name: row[name] for name in names})
