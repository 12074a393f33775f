"""Makes one object of the parts of an upload. Everything blocks: call it off the event loop.

Memory stays bounded by one piece of storage; each part is checked against the hash that it was stored with. Called by `app.uploads`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from service.errors import invalid
from service.objects import Kept, keep_file
from service.records import UploadPart
from service.spool import spool_file
from trainers.storage import NoSuchObject, Storage

TRIES = 2
"""A part that comes damaged may have been spoiled on its way: once more."""


class PartDamaged(Exception):
    """The stored bytes of a part are gone, or no longer those that were sent."""

    def __init__(self, part: UploadPart) -> None:
        super().__init__(part)
        self.part = part


def keep_parts(storage: Storage, key: str, parts: Sequence[UploadPart], *, md5: str | None, spool: Path) -> Kept:
    """Store the parts, one behind the other, under `key`.

    Raises PartDamaged, INVALID_REQUEST when the whole does not have the MD5 that was given, STORAGE_FULL when the disk of
    `spool` is, and what a Storage raises. Nothing is stored then.
    """
    with spool_file(spool, sum(part.bytes for part in parts)) as (path, file):
        for part in parts:
            _append(storage, part, file)
        file.flush()
        if md5 is not None and (found := _md5(path)) != md5.lower():
            raise invalid(f"The parts have the MD5 {found} and not {md5.lower()}.", "md5", "checksum_mismatch")
        return keep_file(storage, key, path)


def _append(storage: Storage, part: UploadPart, file: BinaryIO) -> None:
    begin = file.tell()
    for _ in range(TRIES):
        digest = hashlib.sha256()
        with suppress(NoSuchObject):
            for piece in storage.read(part.key):
                file.write(piece)
                digest.update(piece)
        if digest.hexdigest() == part.sha256:
            return
        file.seek(begin)
        file.truncate()
    raise PartDamaged(part)


def _md5(path: Path) -> str:
    """The wire's checksum; what is trusted is the sha256 of each part."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
