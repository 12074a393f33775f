"""Files on this machine's disk that wait until the object store has them.

Each is locked by its process for as long as it is needed, which tells `sweep` the living from the dead. Knows neither
requests nor what the bytes are. Called by `rest.multipart` and `app.uploads`; `sweep` once at start.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from service.errors import ErrorCode, TunesmithError


@contextmanager
def spool_file(spool: Path, size: int) -> Generator[tuple[Path, BinaryIO]]:
    """A new file for `size` bytes below `spool`, gone when the block ends. Raises STORAGE_FULL where they don't fit."""
    spool.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _no_space_is_an_answer(), _locked_file(spool) as (path, file):
        if size > shutil.disk_usage(spool).free:
            # Before the first byte: a disk filled to the brim would stop the database too.
            raise _full()
        yield path, file


@contextmanager
def _no_space_is_an_answer() -> Generator[None]:
    try:
        yield
    except OSError as exc:
        if exc.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise _full() from exc


def _full() -> TunesmithError:
    return TunesmithError(ErrorCode.STORAGE_FULL, "There is not enough disk space for this upload.")


@contextmanager
def _locked_file(spool: Path) -> Generator[tuple[Path, BinaryIO]]:
    descriptor, name = tempfile.mkstemp(prefix="upload-", dir=spool)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        with os.fdopen(descriptor, "wb", buffering=1 << 20) as file:
            try:
                yield Path(name), file
            except BaseException:
                _discard_buffer(file)
                raise
    finally:
        Path(name).unlink(missing_ok=True)


def _discard_buffer(file: BinaryIO) -> None:
    """Closing would write what is buffered, which fails again on a full disk and hides the first error."""
    try:
        file.close()
    except OSError:
        # The file is deleted next; the error that matters is the one on its way.
        return


def sweep(spool: Path) -> int:
    """Delete the spool files whose process is gone; the number of them."""
    swept = 0
    for path in spool.glob("upload-*"):
        with path.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            path.unlink(missing_ok=True)
            swept += 1
    return swept
