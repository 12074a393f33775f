"""Multipart bodies: their file goes straight to a spool file, so that memory stays bounded.

Knows which parts a form has, and nothing of files and uploads as the application has them. Called by `files` and `uploads`.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from fastapi import Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.concurrency import run_in_threadpool

from service.errors import ErrorCode, TunesmithError, invalid
from service.filenames import clean_filename, printable
from service.spool import spool_file

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

MAX_FIELD_BYTES = 1024
FRAMING_BYTES = 64 * 1024
"""What a body may be longer than its file: boundaries, part headers, the other fields."""


@dataclass(frozen=True, slots=True)
class Form:
    """The parts that a body may have: one file, and text fields. `named` when the file must bring a name."""

    file: str
    fields: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    named: bool = False

    @property
    def needs(self) -> str:
        """The parts that it must have, in words."""
        return " and ".join(f"'{name}'" for name in (self.file, *self.fields))


FILE = Form("file", ("purpose",), ("expires_after[anchor]", "expires_after[seconds]"), named=True)
PART = Form("data")


@dataclass(frozen=True, slots=True)
class Received:
    """A received file and the text fields beside it."""

    path: Path
    filename: str
    fields: dict[str, str]


@asynccontextmanager
async def received(request: Request, form: Form, spool: Path, max_bytes: int) -> AsyncGenerator[Received]:
    """The file in `request`, on disk below `spool` until the block ends.

    Raises UNSUPPORTED_MEDIA_TYPE unless it is multipart, INVALID_REQUEST when it is broken or cut,
    TOO_LARGE above `max_bytes`, STORAGE_FULL when the disk is.
    """
    boundary = _boundary(request, form)
    length = request.headers.get("content-length", "0")
    with spool_file(spool, int(length) if length.isdigit() else 0) as (path, file):
        body = _Body(form, max_bytes)
        await _read(request, boundary, body, file)
        yield Received(path, clean_filename(body.filename), body.fields)


def _boundary(request: Request, form: Form) -> bytes:
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    if kind != b"multipart/form-data":
        raise TunesmithError(ErrorCode.UNSUPPORTED_MEDIA_TYPE, f"The request body must be multipart/form-data with {form.needs}.")
    boundary = options.get(b"boundary", b"")
    if not 1 <= len(boundary) <= 70:
        raise invalid("The multipart content-type lacks a boundary of 1 to 70 characters.")
    return boundary


async def _read(request: Request, boundary: bytes, body: _Body, file: BinaryIO) -> None:
    try:
        parser = MultipartParser(boundary, body.callbacks())
        async for chunk in request.stream():
            parser.write(chunk)
            if body.pending:
                await run_in_threadpool(_write, file, body.taken())
        parser.finalize()
    except FormParserError as exc:
        raise invalid(f"The multipart body is broken: {exc}.") from None
    body.check()
    await run_in_threadpool(file.flush)


def _write(file: BinaryIO, pieces: list[bytes]) -> None:
    for piece in pieces:
        file.write(piece)


class _Body:
    """What the parser finds: text fields, and the bytes of the file part, which wait in `pending` to be written."""

    def __init__(self, form: Form, max_bytes: int) -> None:
        self._form = form
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
        """Raises INVALID_REQUEST unless the body came to its end and held what the form must have."""
        if not self._ended:
            raise invalid("The multipart body ends before its closing boundary.")
        for name in (self._form.file, *self._form.fields):
            if name not in self._seen:
                raise invalid(f"The upload has no part named '{name}'.", name)

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
        if self._name not in (self._form.file, *self._form.fields, *self._form.optional):
            raise invalid(f"Unknown part '{printable(self._name)[:64]}' of the upload; it needs {self._form.needs}.")
        if self._name in self._seen:
            raise invalid(f"The upload has more than one part named '{self._name}'.", self._name)
        self._seen.add(self._name)
        if self._headers.get("content-transfer-encoding", b"binary").lower() not in (b"7bit", b"8bit", b"binary"):
            raise invalid(f"The part '{self._name}' has a content-transfer-encoding; send its bytes as they are.", self._name)
        if self._name == self._form.file:
            if self._form.named and b"filename" not in options:
                raise invalid(f"The part '{self._name}' must be a file: give it a filename.", self._name)
            self.filename = options.get(b"filename", b"").decode("utf-8", "replace")

    def _on_data(self, data: bytes, start: int, end: int) -> None:
        if self._name == self._form.file:
            self._received += end - start
            if self._received > self._max_bytes:
                raise TunesmithError(ErrorCode.TOO_LARGE, f"'{self._name}' is larger than {self._max_bytes} bytes.", param=self._name)
            self.pending.append(data[start:end])
            return
        if len(self._value) + end - start > MAX_FIELD_BYTES:
            raise invalid(f"The part '{self._name}' is longer than {MAX_FIELD_BYTES} bytes.", self._name)
        self._value += data[start:end]

    def _on_part_end(self) -> None:
        if self._name != self._form.file:
            try:
                self.fields[self._name] = self._value.decode("utf-8")
            except UnicodeDecodeError:
                raise invalid(f"The part '{self._name}' is not UTF-8.", self._name) from None

    def _on_end(self) -> None:
        self._ended = True
