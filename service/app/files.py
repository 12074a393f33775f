"""Files: keep, list, look up, read, delete."""

from __future__ import annotations

import asyncio
import secrets
from contextlib import suppress
from datetime import timedelta
from functools import partial
from pathlib import Path

from service import objects
from service.app.context import Context, available, found, require
from service.errors import invalid
from service.records import Caller, Content, File, Page
from service.store import Transaction
from trainers.storage import StorageError

PURPOSES = ("fine-tune",)
SHORTEST_LIFE, LONGEST_LIFE = timedelta(hours=1), timedelta(days=30)
"""Of a file that expires."""


class FileUses(Context):
    """What a caller can do with files."""

    async def create_file(self, caller: Caller, *, path: Path, filename: str, purpose: str, expires_after: timedelta | None = None) -> File:
        """Keep the bytes at `path`, which the caller of this method owns and removes."""
        require(caller, "write")
        check_file(purpose, expires_after)
        file_id = f"file-{secrets.token_hex(12)}"
        key = objects.file_key(caller.project_id, file_id)
        put = partial(objects.keep_file, self.storage, key, path)
        async with available():
            await self.room_for(caller, path.stat().st_size)
            async with self.keeping(key, put) as stored, self.store.begin() as tx:
                await self.check_stored_bytes(tx, await self.locked_project(tx, caller), stored.bytes)
                await self.kept(tx, key)
                file = File(file_id, caller.project_id, filename, purpose, stored.bytes, stored.sha256, key, 0.0)
                return await insert_file(tx, caller, file, expires_after)

    async def list_files(self, caller: Caller, *, purpose: str | None, after: str | None, limit: int, ascending: bool) -> Page[File]:
        """The project's files by age."""
        require(caller, "read")
        async with self.reading() as tx:
            return await tx.list_files(caller.project_id, purpose=purpose, after=after, limit=limit, ascending=ascending)

    async def get_file(self, caller: Caller, file_id: str) -> File:
        """One file's facts."""
        require(caller, "read")
        async with self.reading() as tx:
            return found(await tx.file(caller.project_id, file_id), "file", file_id, param="file_id")

    async def file_content(self, caller: Caller, file_id: str) -> Content:
        """One file's bytes."""
        file = await self.get_file(caller, file_id)
        return await self.content(file.key, file.filename, file.bytes, file.sha256)

    async def delete_file(self, caller: Caller, file_id: str) -> None:
        """Forget a file; a job that was validated no longer needs it."""
        require(caller, "write")
        async with available():
            async with self.store.begin() as tx:
                key = found(await tx.delete_file(caller.project_id, file_id), "file", file_id, param="file_id")
                await tx.audit(caller, "file.deleted", file_id)
            if key.startswith("files/"):  # a result file's bytes are also an artifact of its job
                with suppress(StorageError):  # the sweep comes back to it
                    await asyncio.to_thread(self.storage.delete, key)


async def insert_file(tx: Transaction, caller: Caller, file: File, expires_after: timedelta | None) -> File:
    """The row that makes stored bytes a file, and its line in the audit log."""
    await tx.insert_file(file, expires_after)
    await tx.audit(caller, "file.created", file.id, {"filename": file.filename, "purpose": file.purpose, "bytes": file.bytes})
    return found(await tx.file(caller.project_id, file.id), "file", file.id)


def check_file(purpose: str, expires_after: timedelta | None) -> None:
    """Raises INVALID_REQUEST for a file that would be of no use here, or that expires too soon or too late."""
    if purpose not in PURPOSES:
        raise invalid(f"Files of this purpose are of no use here; 'purpose' must be {' or '.join(PURPOSES)}.", "purpose")
    if expires_after is not None and not SHORTEST_LIFE <= expires_after <= LONGEST_LIFE:
        low, high = int(SHORTEST_LIFE.total_seconds()), int(LONGEST_LIFE.total_seconds())
        raise invalid(f"A file expires {low} to {high} seconds after its creation.", "expires_after.seconds")
