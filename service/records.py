"""The other things the database holds beside jobs, as frozen values. See jobs.py for Job and Event."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Generic, Literal, TypeVar

from service.quotas import Quotas
from trainers.spec import BaseModelRef

T = TypeVar("T")
Scope = Literal["read", "write", "admin"]


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks: everything they may see belongs to this project."""

    key_id: str
    project_id: str
    organization_id: str
    scopes: frozenset[Scope]
    request_id: str = ""
    """Of the request that is being served; the audit log names it."""
    quotas: Quotas = field(default_factory=Quotas)
    """The project's own."""
    rate: Rate | None = None
    """Where the project stands within its request rate."""


@dataclass(frozen=True, slots=True)
class Rate:
    """Requests that a project may still send: `remaining` of `limit`; in `reset` seconds the oldest no longer counts."""

    limit: int
    remaining: int
    reset: float


@dataclass(frozen=True, slots=True)
class Organization:
    """Whose projects these are. It sees no other organization."""

    id: str
    name: str
    created_at: float


@dataclass(frozen=True, slots=True)
class Project:
    """What files, jobs and keys belong to. An archived one can no longer be used. `quotas` are its own."""

    id: str
    organization_id: str
    name: str
    created_at: float
    archived_at: float | None
    quotas: Quotas


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key of a project, without its secret. After a rotation the one before is good until `previous_expires_at`."""

    id: str
    project_id: str
    name: str
    scopes: frozenset[Scope]
    created_at: float
    expires_at: float | None
    last_used_at: float | None
    previous_expires_at: float | None


@dataclass(frozen=True, slots=True)
class AuditLog:
    """One change: who made it (`key_id`, None for the operator's command line), what, on which object, in which request."""

    id: str
    type: str
    object_id: str
    organization_id: str
    project_id: str | None
    project_name: str | None
    key_id: str | None
    request_id: str
    effective_at: float
    details: dict[str, Any]


@dataclass(frozen=True, slots=True)
class AuditFilter:
    """Which audit logs are wanted; empty takes all. Times are seconds since 1970."""

    types: tuple[str, ...] = ()
    project_ids: tuple[str, ...] = ()
    key_ids: tuple[str, ...] = ()
    object_ids: tuple[str, ...] = ()
    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None


@dataclass(frozen=True, slots=True)
class File:
    """Bytes a client uploaded, or a job's result file. They lie at `key` in storage."""

    id: str
    project_id: str
    filename: str
    purpose: str
    bytes: int
    sha256: str
    key: str
    created_at: float
    status: Literal["uploaded", "processed", "error"] = "processed"
    expires_at: float | None = None
    """From then on it is as if it had been deleted; None for never."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A complete checkpoint of a job; the newest run that wrote a step owns it."""

    id: str
    job_id: str
    epoch: int
    step: int
    created_at: float
    prefix: str
    model_name: str
    metrics: dict[str, float] = field(default_factory=dict[str, float])


@dataclass(frozen=True, slots=True)
class Model:
    """A base model of the catalogue that is in storage (`job_id` None), or a tuned model or checkpoint.

    `prefix` is where its files lie and `project_id` whose it is, where the model was looked up by its name.
    """

    id: str
    created_at: float
    owned_by: str
    job_id: str | None = None
    base: BaseModelRef | None = None
    project_id: str | None = None
    prefix: str | None = None


@dataclass(frozen=True, slots=True)
class Permission:
    """Another project may use a tuned model or a checkpoint."""

    id: str
    project_id: str
    created_at: float


@dataclass(frozen=True, slots=True)
class Artifact:
    """A published file of a finished job. `name` is its path below the job's model prefix."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Content:
    """Bytes about to be sent: size and hash are known before the first byte is read.

    `read(start, end)` yields the bytes [start, end) and blocks; call it off the event loop.
    `url` is a presigned address where the store can give one.
    """

    filename: str
    bytes: int
    sha256: str
    read: Callable[[int, int], Iterator[bytes]]
    url: str | None = None


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """One page of a list, newest first."""

    items: list[T]
    has_more: bool


MAX_PARTS = 10_000
"""Of one upload."""
UploadStatus = Literal["pending", "completed", "cancelled", "expired"]


@dataclass(frozen=True, slots=True)
class Upload:
    """A file on its way here in parts. It takes parts while it is pending; then it has become `file`, or nothing."""

    id: str
    project_id: str
    filename: str
    purpose: str
    mime_type: str
    bytes: int
    """Size that the client has declared; the parts that it is completed with must add up to it."""
    status: UploadStatus
    created_at: float
    expires_at: float
    file_expires_after: timedelta | None = None
    part_count: int = 0
    received_bytes: int = 0
    """Of all its parts together, those included that were sent twice."""
    parts_sha256: str | None = None
    """Hash of the ids that it was completed with, in their order."""
    file: File | None = None
    """What it has become; None also when that has been deleted since."""


@dataclass(frozen=True, slots=True)
class UploadPart:
    """Bytes of an upload that are safe: they lie at `key` in storage."""

    id: str
    upload_id: str
    bytes: int
    sha256: str
    key: str
    created_at: float
