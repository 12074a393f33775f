"""A large file goes to the service in parts; interrupted, the same command goes on with it.

A note in the data directory says which upload a file is on its way in. What has come the service knows: a part is known again by
its hash, so it does not matter in which order parts came, or how often. Called by files.py.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from service.cli.connection import Service
from service.cli.output import Row, plain, say, size
from service.cli.screen import bar

LARGE = 64 << 20
"""Above this many bytes a file goes in parts."""
PART = 16 << 20
"""Bytes of a part: what an interruption loses at most."""


@dataclass(frozen=True)
class Piece:
    """A part of the file: where it begins, and what a part that has come must be like to be it."""

    start: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Content:
    """A file that was read through."""

    pieces: tuple[Piece, ...]
    sha256: str
    md5: str


def upload(service: Service, path: Path, count: int, expires_after: timedelta | None) -> Row:
    """Bring the file to the service, or what is missing of it."""
    content = _read_through(path, count)
    note = _Note.of(service, path, content, expires_after)
    found = _begun(service, note)
    if found is None:
        asked: dict[str, Any] = {"bytes": count, "filename": path.name, "purpose": "fine-tune", "mime_type": "text/jsonl"}
        found = service.client.uploads.create(**asked, **expiry(expires_after)).to_dict()
        note.write(str(found["id"]))
    with _can_be_gone_on_with():
        if found["status"] != "completed":
            part_ids = _send(service, str(found["id"]), path, count, content)
            found = service.client.uploads.complete(str(found["id"]), part_ids=part_ids, md5=content.md5).to_dict()
    note.remove()
    file: Any = found["file"]
    return file


def expiry(after: timedelta | None) -> dict[str, Any]:
    """The argument of the official client."""
    return {"expires_after": {"anchor": "created_at", "seconds": int(after.total_seconds())}} if after else {}


def _read_through(path: Path, count: int) -> Content:
    sha256, md5, pieces = hashlib.sha256(), hashlib.md5(usedforsecurity=False), list[Piece]()
    with bar(f"reading {plain(path.name)}", count) as shown, path.open("rb") as file:
        while data := file.read(PART):
            pieces.append(Piece(file.tell() - len(data), len(data), hashlib.sha256(data).hexdigest()))
            sha256.update(data)
            md5.update(data)
            shown.advance(len(data))
    return Content(tuple(pieces), sha256.hexdigest(), md5.hexdigest())


def _begun(service: Service, note: _Note) -> Row | None:
    """The upload that the note tells of, if there is anything to be gained from it."""
    import openai

    upload_id = note.read()
    if upload_id is None:
        return None
    with suppress(openai.NotFoundError):
        found = service.get(f"/uploads/{upload_id}")
        if found["status"] == "pending" or (found["status"] == "completed" and found["file"]):
            return found
    return None


def _send(service: Service, upload_id: str, path: Path, count: int, content: Content) -> list[str]:
    """Send what has not come yet; the ids of the parts in the order of the file."""
    come: dict[tuple[int, str], list[str]] = {}
    for part in service.get(f"/uploads/{upload_id}/parts")["data"]:
        come.setdefault((part["tunesmith"]["bytes"], part["tunesmith"]["sha256"]), []).append(part["id"])
    known = [come.get((piece.bytes, piece.sha256), []) for piece in content.pieces]
    # Equal pieces share a list, from which each takes a part of its own.
    part_ids = [ids.pop() if ids else None for ids in known]
    done = sum(piece.bytes for piece, part_id in zip(content.pieces, part_ids, strict=True) if part_id)
    if done:
        say(f"going on with {upload_id}: {size(done)} of {size(count)} are there")
    with bar(f"uploading {plain(path.name)}", count) as shown, path.open("rb") as file:
        shown.advance(done)
        for number, piece in enumerate(content.pieces):
            if part_ids[number] is None:
                file.seek(piece.start)
                part_ids[number] = service.client.uploads.parts.create(upload_id, data=file.read(piece.bytes)).id
                shown.advance(piece.bytes)
    return [part_id for part_id in part_ids if part_id is not None]


@contextmanager
def _can_be_gone_on_with() -> Generator[None]:
    try:
        yield
    except BaseException:
        say("The same command goes on where it stopped.")
        raise


class _Note:
    """Which upload a file is on its way in; of another content, or to another service, it is another note."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @classmethod
    def of(cls, service: Service, path: Path, content: Content, expires_after: timedelta | None) -> _Note:
        """The note of this file as it is now."""
        facts = path.stat()
        named = [service.target.base_url, str(path.absolute()), facts.st_size, facts.st_mtime_ns, content.sha256, str(expires_after)]
        return cls(service.target.data_dir / "uploads" / hashlib.sha256(json.dumps(named).encode()).hexdigest()[:32])

    def read(self) -> str | None:
        """The upload's id."""
        try:
            return self._path.read_text(encoding="ascii").strip() or None
        except (OSError, UnicodeDecodeError):
            return None

    def write(self, upload_id: str) -> None:
        """Note the upload's id; without a note it has only to begin anew."""
        try:
            for directory in (self._path.parent.parent, self._path.parent):
                directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._path.write_text(f"{upload_id}\n", encoding="ascii")
        except OSError as error:
            say(f"An interruption will mean to begin anew: no note can be left in {plain(self._path.parent)} ({error.strerror})")

    def remove(self) -> None:
        """Leave no trace."""
        with suppress(OSError):
            self._path.unlink()
            self._path.parent.rmdir()
            self._path.parent.parent.rmdir()
