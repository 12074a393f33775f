"""Files that are whole or not there, also after a power cut, and the meaning of a disk's errors.

Knows no keys. Called by both stores: the local one for its objects, S3 for the files it fetches.
"""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Generator
from contextlib import contextmanager, suppress
from io import BufferedRandom
from pathlib import Path

from trainers.storage import StorageDenied, StorageError, StorageFull, StorageUnavailable

_FULL = {errno.ENOSPC, errno.EDQUOT}
_DENIED = {errno.EACCES, errno.EPERM, errno.EROFS}


@contextmanager
def disk_errors(subject: str) -> Generator[None]:
    """Errors of the operating system as those of a Storage; `subject` is what they befell."""
    try:
        yield
    except OSError as error:
        raise _meaning(error, subject) from error


def _meaning(error: OSError, subject: str) -> StorageError:
    told = f"{subject}: {os.strerror(error.errno) if error.errno else type(error).__name__}"
    if error.errno in _FULL:
        return StorageFull(told)
    if error.errno in _DENIED:
        return StorageDenied(told)
    return StorageUnavailable(told)


def create(path: Path) -> BufferedRandom:
    """A new file that its owner alone can read."""
    return open(path, "x+b", opener=_private)


def _private(name: str, flags: int) -> int:
    return os.open(name, flags, 0o600)


@contextmanager
def replacing(path: Path) -> Generator[BufferedRandom]:
    """A file to write to. It takes the place of `path` when the block ends well, and leaves nothing behind otherwise."""
    temporary = path.with_name(f".{secrets.token_hex(8)}.part")
    try:
        with create(temporary) as file:
            yield file
            sync(file)
        os.replace(temporary, path)
        sync_directory(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def sync(file: BufferedRandom) -> None:
    """Wait until the disk has the file's bytes."""
    file.flush()
    os.fsync(file.fileno())


def sync_directory(directory: Path) -> None:
    """Wait until the disk has the names in the directory; without effect when it is gone."""
    with suppress(FileNotFoundError):
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
