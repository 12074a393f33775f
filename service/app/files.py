"""Files: keep, list, look up, read, delete."""

from __future__ import annotations

import asyncio
import secrets
from pathlib import Path

from service import objects
from service.app.context import Context, available, found, require
from service.errors import TunesmithError
from service.records import Caller, Content, File, Page


class FileUses(Context):
    """What a caller can do with files."""

    async def create_file(self, caller: Caller, *, path: Path, filename: str, purpose: str) -> File:
        """Keep the bytes at `path`, which the caller of this method owns and removes."""
        require(caller, "write")
        async with available():
            file_id = f"file-{secrets.token_hex(12)}"
            key = objects.file_key(caller.project_id, file_id)
            async with self.store.read() as tx:  # before the store is given what would be refused; what counts is said below
                project = found(await tx.project(caller.organization_id, caller.project_id), "project", caller.project_id)
                await self.check_stored_bytes(tx, project, path.stat().st_size)
            stored = await asyncio.to_thread(objects.keep_file, self.storage, key, path)
            file = File(file_id, caller.project_id, filename, purpose, stored.bytes, stored.sha256, key, 0.0)
            try:
                return await self._insert(caller, file)
            except TunesmithError:
                await asyncio.to_thread(self.storage.delete, key)
                raise

    async def _insert(self, caller: Caller, file: File) -> File:
        async with self.store.begin() as tx:
            await self.check_stored_bytes(tx, await self.locked_project(tx, caller), file.bytes)
            await tx.insert_file(file)
            await tx.audit(caller, "file.created", file.id, {"filename": file.filename, "purpose": file.purpose, "bytes": file.bytes})
            return found(await tx.file(caller.project_id, file.id), "file", file.id)

    async def list_files(self, caller: Caller, *, purpose: str | None, after: str | None, limit: int, ascending: bool) -> Page[File]:
        """The project's files by age."""
        require(caller, "read")
        async with self.reading() as tx:
            return await tx.list_files(caller.project_id, purpose=purpose, after=after, limit=limit, ascending=ascending)

    async def get_file(self, caller: Caller, file_id: str) -> File:
        """One file's facts."""
        require(caller, "read")
        async with self.reading() as tx:
            return found(await tx.file(caller.project_id, file_id), "file", file_id)

    async def file_content(self, caller: Caller, file_id: str) -> Content:
        """One file's bytes."""
        file = await self.get_file(caller, file_id)
        return await self.content(file.key, file.filename, file.bytes, file.sha256)

    async def delete_file(self, caller: Caller, file_id: str) -> None:
        """Forget a file; a job that was validated no longer needs it."""
        require(caller, "write")
        async with available():
            async with self.store.begin() as tx:
                key = found(await tx.delete_file(caller.project_id, file_id), "file", file_id)
                await tx.audit(caller, "file.deleted", file_id)
            if key.startswith("files/"):  # a result file's bytes are also an artifact of its job
                await asyncio.to_thread(self.storage.delete, key)
