"""Bytes by key, as the service sees them: where they lie, keeping an upload, the start-up probe.

What workers need as well is in `trainers.storage`; here is what they never do. Everything blocks: call it off the
event loop. Called by `app`, `driver`, `validation` and `gateway`.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from trainers import manifest
from trainers.manifest import MANIFEST
from trainers.spec import is_log, published_prefix
from trainers.storage import NoSuchObject, ObjectExists, Storage, StorageDenied, StorageError, StorageFull, StorageUnavailable

PIECE = 2**20


@dataclass(frozen=True, slots=True)
class Kept:
    """What was stored: size in bytes and hash."""

    bytes: int
    sha256: str


def file_key(project_id: str, file_id: str) -> str:
    """Key of an uploaded file's bytes."""
    return f"files/{project_id}/{file_id}"


def part_key(project_id: str, upload_id: str, part_id: str) -> str:
    """Key of the bytes of one part of an upload."""
    return f"uploads/{project_id}/{upload_id}/{part_id}"


def dataset_prefix(key: str) -> str:
    """Prefix of a tokenised dataset; `key` is the hash of all it depends on."""
    return f"datasets/{key}"


def keep_file(storage: Storage, key: str, path: Path) -> Kept:
    """Store the file, read it back, and say what is now there.

    Raises what a Storage raises, StorageUnavailable also when other bytes came back. Nothing stays under `key` then.
    """
    try:
        kept = _measure(_pieces(path))
        storage.put_file(key, path)
        if _stored(storage, key) != kept:
            raise StorageUnavailable(f"{key}: the store does not give back what it was given")
    except StorageError:
        with suppress(StorageError):
            storage.delete(key)
        raise
    return kept


def checkpoint_prefixes(storage: Storage, job_id: str, epoch: int) -> list[str]:
    """Prefixes of the complete checkpoints that runs before `epoch` left: newest step first, of equal steps the latest run's."""
    complete = re.compile(rf"(runs/{re.escape(job_id)}/(\d+)/checkpoints/step-(\d+))/{re.escape(MANIFEST)}", re.ASCII)
    matches = (complete.fullmatch(info.key) for info in storage.list(f"runs/{job_id}/"))
    found = [(int(match[3]), int(match[2]), match[1]) for match in matches if match is not None]
    return [prefix for _, run, prefix in sorted(found, reverse=True) if run < epoch]


def discard_job(storage: Storage, job_id: str) -> None:
    """Delete all that runs of a cancelled job left but their logs: checkpoints, and what may have been published."""
    for prefix in (published_prefix(job_id), f"runs/{job_id}"):
        manifest.remove(storage, prefix, spare=is_log)


def probe(storage: Storage) -> None:
    """Do once what the service relies on. Raises StorageDenied, StorageFull or StorageUnavailable, naming the step that failed."""
    key, ours = f"probe/{secrets.token_hex(8)}", secrets.token_bytes(64)
    step = "a conditional write"
    try:
        storage.put(key, ours, if_absent=True)
        step = "refusing a conditional write to a key that is taken (If-None-Match)"
        _require(_refused(storage, key))
        step = "reading back what was written"
        _require(storage.get(key) == ours and b"".join(storage.read(key, 8, 24)) == ours[8:24])
        step = "listing what was written"
        _require([info.key for info in storage.list(key)] == [key])
        step = "deleting"
        storage.delete(key)
        _require(storage.head(key) is None)
    except StorageError as error:
        kind = type(error) if isinstance(error, StorageDenied | StorageFull) else StorageUnavailable
        raise kind(f"the object store can't be used: {step} does not hold ({error})") from error
    finally:
        with suppress(StorageError):
            storage.delete(key)


def _refused(storage: Storage, key: str) -> bool:
    try:
        storage.put(key, b"another content", if_absent=True)
    except ObjectExists:
        return True
    return False


def _require(holds: bool) -> None:
    if not holds:
        raise StorageUnavailable("the store takes the request and does something else")


def _stored(storage: Storage, key: str) -> Kept | None:
    try:
        return _measure(storage.read(key))
    except NoSuchObject:
        return None


def _measure(pieces: Iterable[bytes]) -> Kept:
    size, digest = 0, hashlib.sha256()
    for piece in pieces:
        size += len(piece)
        digest.update(piece)
    return Kept(size, digest.hexdigest())


def _pieces(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(PIECE):
            yield piece
