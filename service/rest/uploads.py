"""/v1/uploads: a file in parts. Looking an upload and its parts up, to go on with them, is ours; the rest is OpenAI's."""

from __future__ import annotations

from datetime import timedelta

from fastapi import APIRouter, Request

from service.rest import convert, wire
from service.rest.bodies import read_json, validated
from service.rest.dependencies import AppDep, CallerDep, SettingsDep, UploadId
from service.rest.documents import PART_BODY, json_body
from service.rest.multipart import PART, received

router = APIRouter(prefix="/v1/uploads", tags=["Uploads"])


@router.post("", response_model=wire.UploadObject, openapi_extra=json_body(wire.CreateUploadRequest))
async def create_upload(request: Request, app: AppDep, caller: CallerDep) -> wire.UploadObject:
    """Begin an upload. It takes parts until it is completed, cancelled or expired."""
    body = validated(wire.CreateUploadRequest, await read_json(request))
    after = timedelta(seconds=body.expires_after.seconds) if body.expires_after else None
    upload = await app.create_upload(
        caller,
        filename=body.filename,
        purpose=body.purpose,
        bytes=body.bytes,
        mime_type=body.mime_type,
        file_expires_after=after,
    )
    return convert.upload_object(upload)


@router.get("/{upload_id}", response_model=wire.UploadObject)
async def get_upload(app: AppDep, caller: CallerDep, upload_id: UploadId) -> wire.UploadObject:
    """One upload's facts."""
    return convert.upload_object(await app.get_upload(caller, upload_id))


@router.get("/{upload_id}/parts", response_model=wire.UploadPartList)
async def list_upload_parts(app: AppDep, caller: CallerDep, upload_id: UploadId) -> wire.UploadPartList:
    """The parts that are safe, with size and SHA-256 by which a client knows what it need not send again."""
    return convert.upload_part_list(await app.list_upload_parts(caller, upload_id))


@router.post("/{upload_id}/parts", response_model=wire.UploadPartObject, openapi_extra=PART_BODY)
async def add_upload_part(
    request: Request, app: AppDep, caller: CallerDep, settings: SettingsDep, upload_id: UploadId
) -> wire.UploadPartObject:
    """Add a part; several may come at once and in any order. Its bytes are safe once this is answered."""
    await app.open_upload(caller, upload_id)  # before the body is read
    async with received(request, PART, settings.spool_dir, settings.max_part_bytes) as part:
        return convert.upload_part_object(await app.add_upload_part(caller, upload_id, path=part.path))


@router.post("/{upload_id}/complete", response_model=wire.UploadObject, openapi_extra=json_body(wire.CompleteUploadRequest))
async def complete_upload(request: Request, app: AppDep, caller: CallerDep, upload_id: UploadId) -> wire.UploadObject:
    """Make the parts a file. Asking again with the same parts gives the same file."""
    body = validated(wire.CompleteUploadRequest, await read_json(request))
    return convert.upload_object(await app.complete_upload(caller, upload_id, part_ids=body.part_ids, md5=body.md5))


@router.post("/{upload_id}/cancel", response_model=wire.UploadObject)
async def cancel_upload(app: AppDep, caller: CallerDep, upload_id: UploadId) -> wire.UploadObject:
    """Give an upload up. Its parts are deleted."""
    return convert.upload_object(await app.cancel_upload(caller, upload_id))
