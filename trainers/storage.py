"""Bytes by key: a local directory or an S3-compatible store behind one interface.

Both sides of Tunesmith use it, the service through `service.objects`; it knows nothing of either.
Keys are relative, with `/` between parts. Everything here blocks: call it off the event loop.
The two stores are `local_storage` and `s3_storage`; `open_storage` picks one by its address.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Protocol
from urllib.parse import parse_qsl, unquote, urlsplit

INCOMING = ".incoming"
"""First part of keys that nobody may use: the local store keeps files there that are still being written."""
LONGEST_KEY, LONGEST_PART = 900, 255
"""Bytes in UTF-8. S3 takes 1,024 with the prefix of the address, file systems 255 for one part."""


class StorageError(Exception):
    """What a Storage raises. Holds one text and nothing else, for it is pickled on its way through Ray."""


class NoSuchObject(StorageError):
    """There is no object under this key."""


class ObjectExists(StorageError):
    """Another content is under this key already."""


class StorageDenied(StorageError):
    """The store refuses: credentials, permissions, or a setting it does not take. Asking again is of no use."""


class StorageFull(StorageError):
    """No space or quota is left."""


class StorageUnavailable(StorageError):
    """The store did not answer, or what it answered was cut off or damaged. Asking again may help."""


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


def open_storage(url: str) -> Storage:
    """The store at `file:///absolute/directory` or `s3://bucket/prefix`; open it once a process and share it between threads.

    S3 takes credentials, region and endpoint from the environment as boto3 does, and of the address one option:
    `?checksums=when_required` for stores that refuse the checksums which are sent and verified otherwise.
    ValueError for an address that can't be understood.
    """
    parts = urlsplit(url)
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    path = unquote(parts.path)
    # Each store imports this module, and a local one needs no boto3: hence the imports down here.
    if parts.scheme == "file" and parts.netloc in ("", "localhost") and path.startswith("/") and not options and not parts.fragment:
        from trainers.local_storage import LocalStorage

        return LocalStorage(Path(path))
    if parts.scheme == "s3" and options.keys() <= {"checksums"} and not parts.fragment:
        from trainers.s3_storage import S3Storage

        return S3Storage(parts.netloc, path.strip("/"), checksums=options.get("checksums", "when_supported"))
    # The address is not repeated: what is wrong with it may be a secret in it.
    raise ValueError("a storage address is file:///absolute/directory or s3://bucket/prefix[?checksums=when_required]")


def check_key(key: str) -> str:
    """`key` itself. ValueError when it could lead out of the store, or would not mean the same in both."""
    parts = key.split("/")
    if any(part in ("", ".", "..") or len(part.encode()) > LONGEST_PART for part in parts) or parts[0] == INCOMING:
        raise ValueError(f"not a key: {key!r:.200}")
    return _check_text(key)


def check_prefix(prefix: str) -> str:
    """`prefix` itself, which may end within a part of a key. ValueError as for a key."""
    directory, _, _ = prefix.rpartition("/")
    if directory or prefix.startswith("/"):
        check_key(directory)
    return _check_text(prefix)


def _check_text(key: str) -> str:
    if len(key.encode()) > LONGEST_KEY or any(ord(character) < 32 or ord(character) == 127 for character in key):
        raise ValueError(f"not a key: {key!r:.200}")
    return key
