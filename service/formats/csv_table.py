"""The rows of a CSV file (RFC 4180), as objects of its header's columns and text. Called by `formats.source`.

Strict: a header with names, one delimiter of three, every row as many fields as the header. Row numbers count what follows
the header, from 1.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from io import BufferedReader

from service.formats.rows import MAX_ROW_BYTES, Numbered, Unreadable, numbered
from service.jsonl import bad_text
from trainers.registry import Fault, Row

DELIMITERS = {",": "comma", ";": "semicolon", "\t": "tab"}
MAX_COLUMNS = 1000
LONGEST_NAME = 100
"""Characters of a name that a header is told by, when nobody says that the file is CSV."""
BOM = b"\xef\xbb\xbf"
_QUOTED = re.compile('"[^"]*"?')
_NO_NAME = re.compile(r"[{}\[\]:]")


def has_header(line: bytes) -> bool:
    """Whether a file's first line reads like a CSV header: short names without JSON's brackets, one delimiter between them."""
    text = line.removeprefix(BOM).decode("utf-8", "replace")
    found = _delimiters(text)
    if len(found) != 1:
        return False
    names = [name.strip().strip('"') for name in text.split(found[0])]
    return len(names) == len(set(names)) and all(0 < len(name) <= LONGEST_NAME and not _NO_NAME.search(name) for name in names)


def _delimiters(line: str) -> list[str]:
    """The delimiters that stand outside of quotes."""
    bare = _QUOTED.sub("", line)
    return [delimiter for delimiter in DELIMITERS if delimiter in bare]


class CsvTable:
    """One row a record. Raises Unreadable at once for a header that can't be."""

    share = None

    def __init__(self, stream: BufferedReader) -> None:
        self._lines, self._number = _Lines(stream), -1
        first = stream.peek(1).partition(b"\n")[0].removeprefix(BOM).decode("utf-8", "replace")
        found = _delimiters(first)
        if len(found) > 1:
            names = " and ".join(DELIMITERS[delimiter] for delimiter in found)
            raise _bad_header(f"stands between names with {names} alike", "Put names that hold a delimiter into quotes.")
        csv.field_size_limit(MAX_ROW_BYTES)  # _Lines bounds whole records; the module's own limit on a field is far lower
        self._reader = csv.reader(self._lines, delimiter=found[0] if found else ",", strict=True)
        self.columns = self._header()

    def _header(self) -> tuple[str, ...]:
        record = self._next()
        if isinstance(record, Fault):
            raise Unreadable(record)
        names = tuple(name.strip() for name in record or ())
        if len(names) > MAX_COLUMNS:
            raise _bad_header(f"has {len(names):,} columns; at most {MAX_COLUMNS:,} are allowed", "")
        for number, name in enumerate(names, 1):
            if not name or bad_text(name, ""):
                raise _bad_header(f"has no name for column {number}", "The first line of a CSV file names its columns.")
            if name in names[: number - 1]:
                raise _bad_header(f"names two columns '{name[:60]}'", "The first line of a CSV file names its columns.")
        return names

    def __iter__(self) -> Iterator[Numbered]:
        for number, record in numbered(self._records()):
            if isinstance(record, Fault):
                yield number, record, 0
            else:
                yield number, self._row(record), sum(map(len, record))

    def _records(self) -> Iterator[list[str] | Fault | None]:
        while (record := self._next()) is not None:
            yield record or None

    def _next(self) -> list[str] | Fault | None:
        """The next record's fields, its fault, None at the end of the file; no fields for a blank line."""
        self._lines.length = 0
        self._number += 1
        try:
            return next(self._reader, None)
        except _TooLong:
            message = f"the row is longer than the {MAX_ROW_BYTES:,} bytes that are allowed"
            raise Unreadable(Fault("", "row_too_long", message, "Perhaps a quote is not closed."), self._number or None) from None
        except csv.Error as error:
            hint = "A field that holds a delimiter, a quote or a line break stands in quotes, and a quote in it is doubled."
            return Fault("", "bad_csv", f"not valid CSV at line {self._reader.line_num:,} of the file: {error}", hint)

    def _row(self, record: list[str]) -> Row | Fault:
        if len(record) != len(self.columns):
            message = f"the row has {len(record):,} fields where the header has {len(self.columns):,}"
            return Fault("", "column_count", message, f"It ends at line {self._reader.line_num:,} of the file.")
        for name, text in zip(self.columns, record, strict=True):
            if fault := bad_text(text, name):
                return _not_utf8(name) if fault.rule == "lone_surrogate" else fault
        return dict(zip(self.columns, record, strict=True))


class _TooLong(Exception):
    """A record is longer than any row may be."""


class _Lines:
    """The file's lines as text. Bytes that are not UTF-8 come as lone surrogates, which no UTF-8 text can hold."""

    def __init__(self, stream: BufferedReader) -> None:
        self._stream = stream
        self._bom = BOM
        self.length = 0
        """Bytes of the record that is being read."""

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = self._stream.readline(MAX_ROW_BYTES + 1).removeprefix(self._bom)
        self._bom = b""
        if not line:
            raise StopIteration
        self.length += len(line)
        if self.length > MAX_ROW_BYTES:
            raise _TooLong
        return line.decode("utf-8", "surrogateescape")


def _bad_header(what: str, hint: str) -> Unreadable:
    return Unreadable(Fault("", "bad_header", f"the header {what}", hint))


def _not_utf8(column: str) -> Fault:
    return Fault(column, "bad_encoding", "the text is not UTF-8", "Save the file as UTF-8.")
