"""Bytes by key: a local directory or an S3-compatible store behind one interface.

Both sides of Tunesmith use it, the service through `service.objects`; it knows nothing of either.
Keys are relative, with `/` between parts. Everything here blocks: call it off the event loop.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """A stored object: key, size in bytes, time of its last change in seconds since 1970."""

    key: str
    bytes: int
    modified: float


class Storage(Protocol):
    """Where bytes lie. Raises NoSuchObject, ObjectExists, StorageDenied, StorageFull, StorageUnavailable."""

    def put(self, key: str, data: bytes, *, if_absent: bool = False) -> None:
        """Store `data` whole or not at all. With `if_absent`, ObjectExists when another content is there."""
        ...

    def put_file(self, key: str, path: Path) -> None:
        """Store a file of any size, whole or not at all."""
        ...

    def get(self, key: str) -> bytes:
        """The whole object; NoSuchObject when there is none."""
        ...

    def read(self, key: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """The bytes [start, end) in pieces of at most 1 MiB."""
        ...

    def get_file(self, key: str, path: Path) -> None:
        """Copy the object to `path`, whole or not at all."""
        ...

    def head(self, key: str) -> ObjectInfo | None:
        """Facts of the object, None when there is none."""
        ...

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Objects whose key starts with `prefix`, in the order of their keys."""
        ...

    def delete(self, key: str) -> None:
        """Remove the object; without effect when there is none."""
        ...

    def local_path(self, key: str) -> Path | None:
        """The path of the object or prefix where it can be read in place, None on a remote store."""
        ...

    def presigned_url(self, key: str, *, expires: timedelta, filename: str) -> str | None:
        """An address that serves the object without a key for a while, None where the store has none."""
        ...
