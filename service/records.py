"""The other things the database holds beside jobs, as frozen values. See jobs.py for Job and Event."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Generic, Literal, TypeVar

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
    """A base model of the catalogue that is in storage (`job_id` None), or a tuned model."""

    id: str
    created_at: float
    owned_by: str
    job_id: str | None = None
    base: BaseModelRef | None = None


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
