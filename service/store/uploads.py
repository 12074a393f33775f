"""Uploads in parts, and what expires, in SQL. Every read names the project it is for."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import sqlalchemy as sa

from service.records import Upload, UploadPart, UploadStatus
from service.store import tables as t
from service.store.files import FileStatements

_UPLOAD = ("id", "project_id", "filename", "purpose", "mime_type", "bytes", "part_count", "received_bytes", "parts_sha256")
_PART = ("id", "upload_id", "bytes", "sha256", "key", "created_at")


class UploadStatements(FileStatements):
    """Mixed into `Transaction`."""

    async def insert_upload(self, upload: Upload, life: timedelta) -> Upload:
        """A new upload, which expires after `life`; the times are the database's."""
        after = upload.file_expires_after
        values = {name: getattr(upload, name) for name in (*_UPLOAD, "status")} | {
            "file_expires_after": after.total_seconds() if after else None,
            "created_at": self.time,
            "expires_at": self.time + life.total_seconds(),
        }
        await self.connection.execute(sa.insert(t.uploads).values(values))
        row = (await self.connection.execute(sa.select(t.uploads).where(t.uploads.c.id == upload.id))).mappings().one()
        return await self._upload(row)

    async def upload(self, project_id: str, upload_id: str, *, lock: bool = False) -> Upload | None:
        """An upload of the project, `expired` as soon as its time is over; `lock` holds the row until the transaction ends."""
        query = sa.select(t.uploads).where(t.uploads.c.id == upload_id, t.uploads.c.project_id == project_id)
        row = (await self.connection.execute(query.with_for_update() if lock else query)).mappings().first()
        return await self._upload(row) if row else None

    async def upload_parts(self, project_id: str, upload_id: str) -> list[UploadPart]:
        """Its parts in the order of their creation; none once it has ended."""
        mine = sa.exists().where(t.uploads.c.id == upload_id, t.uploads.c.project_id == project_id)
        query = sa.select(t.upload_parts).where(t.upload_parts.c.upload_id == upload_id, mine).order_by(t.upload_parts.c.n)
        return [_part(row) for row in (await self.connection.execute(query)).mappings()]

    async def insert_upload_part(self, part: UploadPart) -> UploadPart:
        """A new part of an upload that this transaction has locked."""
        c = t.uploads.c
        values = {name: getattr(part, name) for name in _PART} | {"created_at": self.time}
        await self.connection.execute(sa.insert(t.upload_parts).values(values))
        counted = {"part_count": c.part_count + 1, "received_bytes": c.received_bytes + part.bytes}
        await self.connection.execute(sa.update(t.uploads).where(c.id == part.upload_id).values(counted))
        return _part(values)

    async def delete_upload_part(self, part: UploadPart) -> None:
        """Its bytes are of no use and go; without effect when it is gone already."""
        c, parts = t.uploads.c, t.upload_parts
        gone = (await self.connection.execute(sa.delete(parts).where(parts.c.id == part.id).returning(parts.c.key))).scalar()
        if gone is not None:
            await self.remove([gone])
            counted = {"part_count": c.part_count - 1, "received_bytes": c.received_bytes - part.bytes}
            await self.connection.execute(sa.update(t.uploads).where(c.id == part.upload_id).values(counted))

    async def end_upload(
        self, upload: Upload, status: UploadStatus, *, file_id: str | None = None, parts_sha256: str | None = None
    ) -> Upload:
        """Give an upload that this transaction has locked its last status; the bytes of its parts go."""
        query = (
            sa.update(t.uploads)
            .where(t.uploads.c.id == upload.id)
            .values(status=status, file_id=file_id, parts_sha256=parts_sha256)
            .returning(t.uploads)
        )
        row = (await self.connection.execute(query)).mappings().one()
        await self._drop_parts([upload.id])
        return await self._upload(row)

    async def expire_uploads(self, limit: int) -> int:
        """End the pending uploads whose time is over; the number of them."""
        c = t.uploads.c
        late = sa.select(c.id).where(c.status == "pending", c.expires_at <= self.time).limit(limit).with_for_update(skip_locked=True)
        query = sa.update(t.uploads).where(c.id.in_(late)).values(status="expired").returning(c.id)
        ended = list((await self.connection.execute(query)).scalars())
        await self._drop_parts(ended)
        return len(ended)

    async def _drop_parts(self, upload_ids: list[str]) -> None:
        c = t.upload_parts.c
        query = sa.delete(t.upload_parts).where(c.upload_id.in_(upload_ids)).returning(c.key)
        await self.remove(list((await self.connection.execute(query)).scalars()))

    async def _upload(self, row: sa.RowMapping) -> Upload:
        over = row["status"] == "pending" and row["expires_at"] <= self.time
        after = row["file_expires_after"]
        return Upload(
            **{name: row[name] for name in _UPLOAD},
            status="expired" if over else row["status"],
            created_at=row["created_at"],
            expires_at=row["expires_at"],
            file_expires_after=None if after is None else timedelta(seconds=after),
            file=await self.file(row["project_id"], row["file_id"]) if row["file_id"] else None,
        )


def _part(row: sa.RowMapping | dict[str, Any]) -> UploadPart:
    return UploadPart(**{name: row[name] for name in _PART})
