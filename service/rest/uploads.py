"""Uploads: a multipart body goes straight to a spool file, so that memory stays bounded.

Knows nothing of files as the application has them. Called by `files`; `sweep` once at start.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
import tempfile
import unicodedata
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from fastapi import Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.concurrency import run_in_threadpool

from service.errors import ErrorCode, TunesmithError, invalid

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

FIELDS = frozenset({"file", "purpose", "expires_after[anchor]", "expires_after[seconds]"})
MAX_FIELD_BYTES = 1024
MAX_NAME_LENGTH = 255
FRAMING_BYTES = 64 * 1024
"""What a body may be longer than its file: boundaries, part headers, the other fields."""


@dataclass(frozen=True, slots=True)
class Upload:
    """A received file and the text fields beside it."""

    path: Path
    filename: str
    fields: dict[str, str]


@asynccontextmanager
async def received(request: Request, spool: Path, max_bytes: int) -> AsyncGenerator[Upload]:
    """The upload in `request`, on disk below `spool` until the block ends.

    Raises UNSUPPORTED_MEDIA_TYPE unless it is multipart, INVALID_REQUEST when it is broken or cut,
    TOO_LARGE above `max_bytes`, STORAGE_FULL when the disk is.
    """
    boundary = _boundary(request)
    with _no_space_is_an_answer(), _spool_file(spool) as (path, file):
        _check_room(request, spool)
        form = _Form(max_bytes)
        await _read(request, boundary, form, file)
        yield Upload(path, clean_filename(form.filename), form.fields)


def _boundary(request: Request) -> bytes:
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    if kind != b"multipart/form-data":
        raise TunesmithError(ErrorCode.UNSUPPORTED_MEDIA_TYPE, "An upload must be multipart/form-data with the parts 'file' and 'purpose'.")
    boundary = options.get(b"boundary", b"")
    if not 1 <= len(boundary) <= 70:
        raise invalid("The multipart content-type lacks a boundary of 1 to 70 characters.")
    return boundary


async def _read(request: Request, boundary: bytes, form: _Form, file: BinaryIO) -> None:
    try:
        parser = MultipartParser(boundary, form.callbacks())
        async for chunk in request.stream():
            parser.write(chunk)
            if form.pending:
                await run_in_threadpool(_write, file, form.taken())
        parser.finalize()
    except FormParserError as exc:
        raise invalid(f"The multipart body is broken: {exc}.") from None
    form.check()
    await run_in_threadpool(file.flush)


def _write(file: BinaryIO, pieces: list[bytes]) -> None:
    for piece in pieces:
        file.write(piece)


class _Form:
    """What the parser finds: text fields, and the bytes of the file part, which wait in `pending` to be written."""

    def __init__(self, max_bytes: int) -> None:
        self.fields: dict[str, str] = {}
        self.filename: str | None = None
        self.pending: list[bytes] = []
        self._max_bytes = max_bytes
        self._received = 0
        self._seen: set[str] = set()
        self._headers: dict[str, bytes] = {}
        self._header_name = self._header_value = b""
        self._name = ""
        self._value = bytearray()
        self._ended = False

    def callbacks(self) -> MultipartCallbacks:
        return {
            "on_part_begin": self._headers.clear,
            "on_header_field": self._on_header_field,
            "on_header_value": self._on_header_value,
            "on_header_end": self._on_header_end,
            "on_headers_finished": self._on_part,
            "on_part_data": self._on_data,
            "on_part_end": self._on_part_end,
            "on_end": self._on_end,
        }

    def taken(self) -> list[bytes]:
        """The bytes that wait, which wait no longer."""
        pieces, self.pending = self.pending, []
        return pieces

    def check(self) -> None:
        """Raises INVALID_REQUEST unless the body came to its end and held what an upload needs."""
        if not self._ended:
            raise invalid("The multipart body ends before its closing boundary.")
        if self.filename is None:
            raise invalid("The upload has no part named 'file'.", "file")

    def _on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def _on_header_end(self) -> None:
        self._headers[self._header_name.decode("latin-1").lower()] = self._header_value
        self._header_name = self._header_value = b""

    def _on_part(self) -> None:
        _, options = parse_options_header(self._headers.get("content-disposition"))
        self._name = options.get(b"name", b"").decode("utf-8", "replace")
        self._value.clear()
        if self._name not in FIELDS:
            raise invalid(f"Unknown part '{_printable(self._name)[:64]}' of the upload; known are file and purpose.")
        if self._name in self._seen:
            raise invalid(f"The upload has more than one part named '{self._name}'.", self._name)
        self._seen.add(self._name)
        if self._headers.get("content-transfer-encoding", b"binary").lower() not in (b"7bit", b"8bit", b"binary"):
            raise invalid(f"The part '{self._name}' has a content-transfer-encoding; send its bytes as they are.", self._name)
        if self._name == "file":
            if b"filename" not in options:
                raise invalid("The part 'file' must be a file: give it a filename.", "file")
            self.filename = options[b"filename"].decode("utf-8", "replace")

    def _on_data(self, data: bytes, start: int, end: int) -> None:
        if self._name == "file":
            self._received += end - start
            if self._received > self._max_bytes:
                raise TunesmithError(ErrorCode.TOO_LARGE, f"The file is larger than {self._max_bytes} bytes.", param="file")
            self.pending.append(data[start:end])
            return
        if len(self._value) + end - start > MAX_FIELD_BYTES:
            raise invalid(f"The part '{self._name}' is longer than {MAX_FIELD_BYTES} bytes.", self._name)
        self._value += data[start:end]

    def _on_part_end(self) -> None:
        if self._name != "file":
            try:
                self.fields[self._name] = self._value.decode("utf-8")
            except UnicodeDecodeError:
                raise invalid(f"The part '{self._name}' is not UTF-8.", self._name) from None

    def _on_end(self) -> None:
        self._ended = True


def clean_filename(name: str | None) -> str:
    """The client's name for a file, as data: no directories, no control, format or bidi characters, 255 characters at most."""
    last = re.split(r"[/\\]", name or "")[-1]
    clean = _printable(last).strip()[:MAX_NAME_LENGTH]
    return clean if clean.strip(".") else "file"


def _printable(text: str) -> str:
    """`text` without characters of Unicode's classes C (control, format, surrogate, private) and Zl, Zp."""
    return "".join(char for char in text if unicodedata.category(char)[0] != "C" and unicodedata.category(char) not in ("Zl", "Zp"))


def _check_room(request: Request, spool: Path) -> None:
    """Refuse before the first byte what cannot fit: a disk filled to the brim would stop the database too."""
    length = request.headers.get("content-length", "0")
    if length.isdigit() and int(length) > shutil.disk_usage(spool).free:
        raise TunesmithError(ErrorCode.STORAGE_FULL, "There is not enough disk space for this upload.")


@contextmanager
def _no_space_is_an_answer() -> Generator[None]:
    try:
        yield
    except OSError as exc:
        if exc.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise TunesmithError(ErrorCode.STORAGE_FULL, "There is not enough disk space for this upload.") from exc


@contextmanager
def _spool_file(spool: Path) -> Generator[tuple[Path, BinaryIO]]:
    """A locked file that is gone when the block ends; the lock tells `sweep` that its upload is alive."""
    spool.mkdir(mode=0o700, parents=True, exist_ok=True)
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
