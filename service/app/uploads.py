"""Uploads in parts: begin, add parts, look up, complete, cancel.

A part is listed once its bytes are durable, so a client whose connection, or whose gateway, died goes on with what
is missing. The parts become a file in one transaction; until then the upload can be completed again.
"""

from __future__ import annotations

import hashlib
import secrets
from collections import Counter
from collections.abc import Sequence
from datetime import timedelta
from functools import partial
from pathlib import Path

from service import objects
from service.app.context import Context, available, found, require
from service.app.files import check_file, insert_file
from service.assembly import PartDamaged, keep_parts
from service.errors import ErrorCode, TunesmithError, invalid
from service.filenames import clean_filename
from service.records import MAX_PARTS, Caller, File, Upload, UploadPart
from service.store import Transaction

SENDINGS = 3
"""How often the bytes of an upload may come in: the official client sends a part again, up to twice, when no answer reaches it."""


class UploadUses(Context):
    """What a caller can do with uploads."""

    async def create_upload(
        self, caller: Caller, *, filename: str, purpose: str, bytes: int, mime_type: str, file_expires_after: timedelta | None
    ) -> Upload:
        """Begin an upload of `bytes` bytes, to be sent in parts."""
        require(caller, "write")
        check_file(purpose, file_expires_after)
        largest = self.settings.max_chunked_bytes
        if not 0 <= bytes <= largest:
            raise invalid(f"'bytes' is {bytes}; it must be from 0 to {largest}.", "bytes")
        if not (1 <= len(mime_type) <= 255 and mime_type.isprintable()):
            raise invalid("'mime_type' must be 1 to 255 printable characters.", "mime_type")
        upload = Upload(
            id=f"upload_{secrets.token_hex(12)}",
            project_id=caller.project_id,
            filename=clean_filename(filename),
            purpose=purpose,
            mime_type=mime_type,
            bytes=bytes,
            status="pending",
            created_at=0.0,
            expires_at=0.0,
            file_expires_after=file_expires_after,
        )
        async with available(), self.store.begin() as tx:
            await self.check_stored_bytes(tx, await self.locked_project(tx, caller), bytes)
            await tx.audit(caller, "upload.created", upload.id, {"filename": upload.filename, "bytes": bytes})
            return await tx.insert_upload(upload, self.settings.upload_life)

    async def get_upload(self, caller: Caller, upload_id: str) -> Upload:
        """One upload's facts."""
        require(caller, "read")
        async with self.reading() as tx:
            return await _the_upload(tx, caller, upload_id)

    async def open_upload(self, caller: Caller, upload_id: str) -> Upload:
        """As `get_upload`, for one that a part is about to be sent to. INVALID_REQUEST unless it takes parts."""
        require(caller, "write")
        async with self.reading() as tx:
            return _pending(await _the_upload(tx, caller, upload_id), "take parts")

    async def list_upload_parts(self, caller: Caller, upload_id: str) -> list[UploadPart]:
        """The parts of a pending upload in the order of their creation; those of one that has ended are gone."""
        require(caller, "read")
        async with self.reading() as tx:
            await _the_upload(tx, caller, upload_id)
            return await tx.upload_parts(caller.project_id, upload_id)

    async def add_upload_part(self, caller: Caller, upload_id: str, *, path: Path) -> UploadPart:
        """Keep the bytes at `path`, which the caller of this method owns and removes, as a part. Parts may come in any order."""
        size = path.stat().st_size
        self._check_part(await self.open_upload(caller, upload_id), size)
        part_id = f"part_{secrets.token_hex(12)}"
        key = objects.part_key(caller.project_id, upload_id, part_id)
        put = partial(objects.keep_file, self.storage, key, path)
        async with available():
            await self.room_for(caller, size)
            async with self.keeping(key, put) as stored, self.store.begin() as tx:
                await self.check_stored_bytes(tx, await self.locked_project(tx, caller), size)
                self._check_part(_pending(await _the_upload(tx, caller, upload_id, lock=True), "take parts"), size)
                await self.kept(tx, key)
                return await tx.insert_upload_part(UploadPart(part_id, upload_id, stored.bytes, stored.sha256, key, 0.0))

    def _check_part(self, upload: Upload, size: int) -> None:
        largest = self.settings.max_part_bytes
        if size > largest:
            raise TunesmithError(ErrorCode.TOO_LARGE, f"A part has at most {largest} bytes.", param="data")
        if size == 0:
            raise invalid("The part is empty.", "data")
        if upload.part_count >= MAX_PARTS:
            raise invalid(f"An upload has at most {MAX_PARTS} parts.", "data")
        if upload.received_bytes + size > SENDINGS * upload.bytes:
            raise invalid(f"With this part more than {SENDINGS} times the {upload.bytes} bytes of the upload would have come.", "data")

    async def complete_upload(self, caller: Caller, upload_id: str, *, part_ids: Sequence[str], md5: str | None) -> Upload:
        """Make the parts, in this order, a file. It can be asked for again with the same parts, whatever interrupted it.

        A refusal leaves the upload pending, so that the client can go on with it.
        """
        require(caller, "write")
        order = hashlib.sha256("\n".join(part_ids).encode()).hexdigest()
        # In turns: a client that lost patience asks again while the file is still being made.
        async with self.assemblies.turn(upload_id):
            async with self.reading() as tx:
                upload = await _the_upload(tx, caller, upload_id)
                parts = await tx.upload_parts(caller.project_id, upload_id)
            if _is_completed(upload, order):
                return upload
            chosen = _chosen(_pending(upload, "be completed"), parts, part_ids)
            try:
                return await self._complete(caller, upload, chosen, md5, order)
            except PartDamaged as damaged:
                async with available(), self.store.begin() as tx:
                    await tx.delete_upload_part(damaged.part)
                message = f"The stored bytes of the part '{damaged.part.id}' were damaged; send them again as a new part."
                raise invalid(message, "part_ids", "part_damaged") from damaged

    async def _complete(self, caller: Caller, upload: Upload, parts: Sequence[UploadPart], md5: str | None, order: str) -> Upload:
        file_id = f"file-{secrets.token_hex(12)}"
        key = objects.file_key(caller.project_id, file_id)
        put = partial(keep_parts, self.storage, key, parts, md5=md5, spool=self.settings.spool_dir)
        async with available(), self.keeping(key, put) as stored, self.store.begin() as tx:
            locked = await _the_upload(tx, caller, upload.id, lock=True)
            if _is_completed(locked, order):  # by another gateway: its file stays, ours goes
                return locked
            _pending(locked, "be completed")
            await self.kept(tx, key)
            file = File(file_id, caller.project_id, upload.filename, upload.purpose, stored.bytes, stored.sha256, key, 0.0)
            await insert_file(tx, caller, file, upload.file_expires_after)
            return await tx.end_upload(locked, "completed", file_id=file_id, parts_sha256=order)

    async def cancel_upload(self, caller: Caller, upload_id: str) -> Upload:
        """Give a pending upload up; its parts go."""
        require(caller, "write")
        async with available(), self.store.begin() as tx:
            upload = await _the_upload(tx, caller, upload_id, lock=True)
            await tx.audit(caller, "upload.cancelled", upload_id)
            return await tx.end_upload(_pending(upload, "be cancelled"), "cancelled")


async def _the_upload(tx: Transaction, caller: Caller, upload_id: str, *, lock: bool = False) -> Upload:
    return found(await tx.upload(caller.project_id, upload_id, lock=lock), "upload", upload_id, param="upload_id")


def _pending(upload: Upload, to: str) -> Upload:
    if upload.status != "pending":
        raise invalid(f"The upload is {upload.status} and can no longer {to}.", "upload_id")
    return upload


def _is_completed(upload: Upload, order: str) -> bool:
    return upload.status == "completed" and upload.parts_sha256 == order


def _chosen(upload: Upload, parts: Sequence[UploadPart], part_ids: Sequence[str]) -> list[UploadPart]:
    """The parts of these ids, in their order. INVALID_REQUEST unless they are parts of the upload and add up to it."""
    known = {part.id: part for part in parts}
    for part_id, count in Counter(part_ids).items():
        if part_id not in known:
            raise invalid(f"No such part of this upload: '{part_id}'", "part_ids")
        if count > 1:
            raise invalid(f"The part '{part_id}' is named {count} times.", "part_ids")
    chosen = [known[part_id] for part_id in part_ids]
    total = sum(part.bytes for part in chosen)
    if total != upload.bytes:
        raise invalid(f"The parts have {total} bytes together, but the upload was created for {upload.bytes}.", "part_ids")
    return chosen
