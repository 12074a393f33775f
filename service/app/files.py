"""Files: keep, list, look up, read, delete."""

from __future__ import annotations

import asyncio
import secrets
from pathlib import Path

from service import objects
from service.app.context import Context, available, found, require
from service.records import Caller, Content, File, Page


class FileUses(Context):
    """What a caller can do with files."""

    async def create_file(self, caller: Caller, *, path: Path, filename: str, purpose: str) -> File:
        """Keep the bytes at `path`, which the caller of this method owns and removes."""
        require(caller, "write")
        async with available():
            file_id = f"file-{secrets.token_hex(12)}"
            key = objects.file_key(caller.project_id, file_id)
            stored = await asyncio.to_thread(objects.keep_file, self.storage, key, path)
            file = File(file_id, caller.project_id, filename, purpose, stored.bytes, stored.sha256, key, 0.0)
            async with self.store.begin() as tx:
                await tx.insert_file(file)
                return found(await tx.file(caller.project_id, file_id), "file", file_id)

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
            if key.startswith("files/"):  # a result file's bytes are also an artifact of its job
                await asyncio.to_thread(self.storage.delete, key)
