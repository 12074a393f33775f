"""Shapes of uploads in parts."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from service.records import MAX_PARTS
from service.rest.wire.files import FileObject, Purpose
from service.rest.wire.shared import Answer, CursorList
from trainers.spec import Frozen


class ExpiresAfter(Frozen):
    """When a file goes by itself."""

    anchor: Literal["created_at"] = Field(description="What the time is counted from: the file's creation.")
    seconds: int = Field(ge=3600, le=2_592_000, description="One hour to 30 days.")


class CreateUploadRequest(Frozen):
    """A file that will come in parts."""

    filename: str = Field(min_length=1, max_length=1024, description="Name of the file; directories in it are dropped.")
    purpose: Purpose = Field(description="What the file is for.")
    bytes: int = Field(ge=0, description="Its size; the parts must add up to it.")
    mime_type: str = Field(
        min_length=1, max_length=255, description="What the client takes it for, e.g. text/jsonl; kept, and not looked at."
    )
    expires_after: ExpiresAfter | None = Field(default=None, description="When the file goes by itself; never unless given.")


class CompleteUploadRequest(Frozen):
    """The parts of which the file is made."""

    part_ids: list[Annotated[str, Field(min_length=1, max_length=128)]] = Field(
        max_length=MAX_PARTS, description="Ids of parts, in the order of their bytes in the file."
    )
    md5: Annotated[str, Field(pattern=r"^[0-9A-Fa-f]{32}$")] | None = Field(
        default=None, description="MD5 of the whole file in hexadecimal; the upload stays pending when it is another."
    )


class TunesmithUpload(Answer):
    """How far an upload has come."""

    mime_type: str
    part_count: int
    received_bytes: int = Field(description="Of all parts together, those that came twice included.")


class UploadObject(Answer):
    """A file on its way here in parts."""

    id: str
    object: Literal["upload"] = "upload"
    bytes: int = Field(description="Size of the whole, as declared.")
    created_at: int = Field(description="Seconds since 1970.")
    expires_at: int = Field(description="It must be complete by then.")
    filename: str
    purpose: str
    status: Literal["pending", "completed", "cancelled", "expired"]
    file: FileObject | None = Field(default=None, description="What the completed upload has become; null once that is deleted.")
    tunesmith: TunesmithUpload


class TunesmithPart(Answer):
    """By which a client that goes on with an upload knows a part again."""

    bytes: int
    sha256: str


class UploadPartObject(Answer):
    """A part whose bytes are safe."""

    id: str
    object: Literal["upload.part"] = "upload.part"
    created_at: int
    upload_id: str
    tunesmith: TunesmithPart


class UploadPartList(CursorList):
    """Every part of a pending upload, the oldest first."""

    data: list[UploadPartObject]
