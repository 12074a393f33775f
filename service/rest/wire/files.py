"""Shapes of files."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from service.rest.wire.shared import Answer, CursorList
from trainers.spec import Frozen

Purpose = Literal["fine-tune"]
KnownPurpose = Literal[
    "assistants", "assistants_output", "batch", "batch_output", "evals", "fine-tune", "fine-tune-results", "user_data", "vision"
]
"""Those that OpenAI knows: a list may ask for any of them."""


class FileObject(Answer):
    """A file that was uploaded, or a job's result file."""

    id: str
    object: Literal["file"] = "file"
    bytes: int = Field(description="Size.")
    created_at: int = Field(description="Seconds since 1970.")
    filename: str = Field(description="The name it was sent under, without directories; it names nothing here.")
    purpose: str = Field(description="fine-tune, or fine-tune-results for a job's result file.")
    status: Literal["uploaded", "processed", "error"]
    expires_at: int | None = Field(default=None, description="From then on it is as if it had been deleted; null for never.")
    status_details: str | None = None


class FileDeleted(Answer):
    """A file is gone."""

    id: str
    object: Literal["file"] = "file"
    deleted: Literal[True] = True


class FileList(CursorList):
    """Files, newest first unless asked otherwise."""

    data: list[FileObject]


class ImportFileRequest(Frozen):
    """Where a file lies that the service shall fetch."""

    source: str = Field(
        min_length=1,
        max_length=2048,
        description="https://host/path or s3://bucket/key, of the hosts and buckets that the service's operator has allowed.",
        examples=["https://datasets.example.com/train.jsonl.gz"],
    )
    purpose: Purpose = Field(description="As for an upload.")
    filename: Annotated[str, Field(min_length=1, max_length=255)] | None = Field(
        default=None, description="Name of the file; the last part of the source unless given."
    )
    sha256: Annotated[str, Field(pattern="^[0-9a-fA-F]{64}$")] | None = Field(
        default=None, description="What the bytes must hash to; others are refused."
    )
