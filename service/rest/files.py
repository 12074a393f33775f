"""/v1/files: upload, import, list, look up, download, delete."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import StreamingResponse

from service.errors import invalid
from service.filenames import clean_filename
from service.rest import convert, wire
from service.rest.bodies import read_json, validated
from service.rest.content import content_response
from service.rest.dependencies import After, AppDep, CallerDep, FileId, SettingsDep
from service.rest.documents import BYTES, UPLOAD_BODY, json_body
from service.rest.multipart import FILE, received

ANCHOR, SECONDS = "expires_after[anchor]", "expires_after[seconds]"
router = APIRouter(prefix="/v1/files", tags=["Files"])


@router.post("", response_model=wire.FileObject, openapi_extra=UPLOAD_BODY)
async def create_file(request: Request, app: AppDep, caller: CallerDep, settings: SettingsDep) -> wire.FileObject:
    """Upload a file: JSON lines, a JSON array, CSV or Parquet, also packed by gzip or zstd."""
    async with received(request, FILE, settings.spool_dir, settings.max_upload_bytes) as upload:
        after, purpose = _expires_after(upload.fields), upload.fields["purpose"]
        file = await app.create_file(caller, path=upload.path, filename=upload.filename, purpose=purpose, expires_after=after)
    return convert.file_object(file)


def _expires_after(fields: dict[str, str]) -> timedelta | None:
    """What the two fields say, of which neither stands alone."""
    anchor, seconds = fields.get(ANCHOR), fields.get(SECONDS)
    if anchor is None and seconds is None:
        return None
    if anchor != "created_at":
        raise invalid(f"'{ANCHOR}' must be created_at.", ANCHOR)
    if seconds is None or not re.fullmatch("[0-9]{1,9}", seconds):
        raise invalid(f"'{SECONDS}' must be a whole number of seconds.", SECONDS)
    return timedelta(seconds=int(seconds))


@router.post("/import", response_model=wire.FileObject, openapi_extra=json_body(wire.ImportFileRequest))
async def import_file(request: Request, app: AppDep, caller: CallerDep) -> wire.FileObject:
    """Fetch a file from an https URL or an S3 object. Answered once its bytes are here, or why they are not.

    Ours, not OpenAI's. Off unless the service's operator has allowed hosts or buckets.
    """
    body = validated(wire.ImportFileRequest, await read_json(request))
    filename = clean_filename(body.filename) if body.filename is not None else None
    file = await app.import_file(caller, source=body.source, purpose=body.purpose, filename=filename, sha256=body.sha256)
    return convert.file_object(file)


@router.get("", response_model=wire.FileList)
async def list_files(
    app: AppDep,
    caller: CallerDep,
    after: After = None,
    purpose: Annotated[wire.KnownPurpose | None, Query(description="Only files of this purpose.")] = None,
    limit: Annotated[int, Query(ge=1, le=10_000, description="Files of one page.")] = 10_000,
    order: Annotated[Literal["asc", "desc"], Query(description="By age; desc has the newest first.")] = "desc",
) -> wire.FileList:
    """The project's files."""
    page = await app.list_files(caller, purpose=purpose, after=after, limit=limit, ascending=order == "asc")
    return convert.file_list(page)


@router.get("/{file_id}", response_model=wire.FileObject)
async def get_file(app: AppDep, caller: CallerDep, file_id: FileId) -> wire.FileObject:
    """One file's facts."""
    return convert.file_object(await app.get_file(caller, file_id))


@router.head("/{file_id}/content", include_in_schema=False)
@router.get("/{file_id}/content", response_class=StreamingResponse, responses=BYTES)
async def get_file_content(request: Request, app: AppDep, caller: CallerDep, file_id: FileId) -> Response:
    """One file's bytes, whole or the range asked for."""
    return await content_response(request, await app.file_content(caller, file_id))


@router.delete("/{file_id}", response_model=wire.FileDeleted)
async def delete_file(app: AppDep, caller: CallerDep, file_id: FileId) -> wire.FileDeleted:
    """Delete a file. Jobs that were made from it stay."""
    await app.delete_file(caller, file_id)
    return wire.FileDeleted(id=file_id)
