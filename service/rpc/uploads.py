"""A file on its way in: the stream of one call becomes parts of an upload, so that another call can go on after a broken one.

Called by `files`. Memory holds one chunk at a time; a part waits on disk until the object store has it.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from datetime import timedelta
from pathlib import Path

from protos.tunesmith.v1 import files_pb2 as pb
from protos.tunesmith.v1 import types_pb2
from service import names
from service.app import App
from service.errors import ErrorCode, TunesmithError, invalid
from service.filenames import clean_filename
from service.records import File, Upload, UploadPart
from service.rpc.call import Call, whole
from service.rpc.content import CHUNK
from service.rpc.convert import file_message
from service.rpc.values import number, timestamp
from service.settings import Settings
from service.spool import spool_file

PART_BYTES = 8 * 2**20
"""What a broken stream loses at most; less where the setting max_part_bytes is less."""
_SHA256 = re.compile("[0-9a-f]{64}")


async def received(app: App, settings: Settings, requests: AsyncIterator[pb.UploadFileRequest], call: Call) -> pb.UploadFileResponse:
    """Take what comes; the file once all of it is there and its hash is right."""
    start = await _start(requests)
    upload = await _opened(app, start, call)
    await call.context.send_initial_metadata((("x-upload-id", upload.id),))
    if upload.status == "completed":
        return pb.UploadFileResponse(upload_id=upload.id, received_bytes=upload.bytes, file=await _proven(app, upload.file, start, call))
    safe = sum(part.bytes for part in await app.list_upload_parts(call.caller, upload.id))
    longest = min(PART_BYTES, settings.max_part_bytes)
    pieces = _pieces(_chunks(requests, safe, upload.bytes), longest)
    while size := await _part(app, settings.spool_dir, upload.id, pieces, longest, call):
        safe += size
    if safe < upload.bytes:
        return pb.UploadFileResponse(upload_id=upload.id, received_bytes=safe)
    parts = [part.id for part in await app.list_upload_parts(call.caller, upload.id)]
    completed = await whole(app.complete_upload(call.caller, upload.id, part_ids=parts, md5=None))
    return pb.UploadFileResponse(upload_id=upload.id, received_bytes=safe, file=await _proven(app, completed.file, start, call))


async def _start(requests: AsyncIterator[pb.UploadFileRequest]) -> pb.UploadStart:
    first = await anext(requests, None)
    if first is None or first.WhichOneof("body") != "start":
        raise invalid("The first message of an upload is its start.", "start")
    if not _SHA256.fullmatch(first.start.sha256):
        raise invalid("'sha256' must be the file's SHA-256 as 64 digits of lower-case hexadecimal.", "sha256")
    return first.start


async def _opened(app: App, start: pb.UploadStart, call: Call) -> Upload:
    """A new upload, or the one that the client goes on with."""
    if not start.HasField("upload_id"):
        return await whole(
            app.create_upload(
                call.caller,
                filename=start.filename,
                purpose=start.purpose,
                bytes=start.bytes,
                mime_type="application/octet-stream",
                file_expires_after=_expiry(start),
            )
        )
    upload = await app.get_upload(call.caller, names.thing_id("upload", start.upload_id, "upload_id"))
    if upload.status not in ("pending", "completed"):
        raise invalid(f"The upload is {upload.status} and can no longer take bytes.", "upload_id")
    if (upload.filename, upload.purpose, upload.bytes) != (clean_filename(start.filename), start.purpose, start.bytes):
        raise invalid("The upload was begun with another filename, purpose or size.", "upload_id")
    return upload


def _expiry(start: pb.UploadStart) -> timedelta | None:
    return start.expires_after.ToTimedelta() if start.HasField("expires_after") else None


async def _chunks(requests: AsyncIterator[pb.UploadFileRequest], offset: int, size: int) -> AsyncGenerator[bytes]:
    """The bytes that come, which must follow on one another from `offset` on and end within `size`."""
    async for request in requests:
        if request.WhichOneof("body") != "chunk":
            raise invalid("Every message of an upload but the first is a chunk.", "chunk")
        chunk = request.chunk
        if chunk.offset != offset:
            raise invalid(f"The next chunk begins at byte {offset}, not {chunk.offset}.", "chunk.offset")
        if len(chunk.data) > CHUNK:
            raise TunesmithError(ErrorCode.TOO_LARGE, f"A chunk has at most {CHUNK} bytes.", param="chunk.data")
        offset += len(chunk.data)
        if offset > size:
            raise invalid(f"The upload was declared as {size} bytes; more have come.", "bytes")
        yield chunk.data


async def _pieces(chunks: AsyncIterator[bytes], longest: int) -> AsyncGenerator[bytes]:
    """The same bytes, cut where a part of `longest` bytes is full."""
    room = longest
    async for data in chunks:
        while data:
            piece, data = data[:room], data[room:]
            yield piece
            room = room - len(piece) or longest


async def _part(app: App, spool: Path, upload_id: str, pieces: AsyncIterator[bytes], longest: int, call: Call) -> int:
    """Keep the next bytes, at most `longest`, as one part; how many they are, 0 at the end of the stream."""
    with spool_file(spool, longest) as (path, file):
        size = 0
        async for data in pieces:
            await asyncio.to_thread(file.write, data)
            size += len(data)
            if size == longest:
                break
        await asyncio.to_thread(file.flush)
        if size:
            await whole(app.add_upload_part(call.caller, upload_id, path=path))
        return size


async def _proven(app: App, file: File | None, start: pb.UploadStart, call: Call) -> types_pb2.File:
    """The file that the upload has become. INVALID_REQUEST, and no file, where its bytes are not those that were declared."""
    if file is None:
        raise invalid("The upload became a file that has been deleted since.", "upload_id")
    if file.sha256 != start.sha256:
        await whole(app.delete_file(call.caller, file.id))
        raise invalid(f"The bytes received have the SHA-256 {file.sha256}; nothing was kept, send the file again.", "sha256")
    return file_message(file)


def upload_message(upload: Upload, parts: Sequence[UploadPart]) -> pb.GetUploadResponse:
    """How far an upload has come."""
    done = upload.status == "completed"
    return pb.GetUploadResponse(
        upload_id=upload.id,
        received_bytes=upload.bytes if done else sum(part.bytes for part in parts),
        bytes=upload.bytes,
        expire_time=timestamp(upload.expires_at),
        status=number(pb.UploadStatus.DESCRIPTOR, upload.status),
        file=file_message(upload.file) if upload.file else None,
    )
