"""The rows of a JSON array, cut out of its text one by one, in constant memory however long the array is.

Only quotes, brackets and commas are looked at here. What a row holds is read by `service.jsonl`, so that its rules hold and
a fault in one row leaves the others as they are. Called by `formats.source`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from io import BufferedReader

from service.formats.rows import MAX_ROW_BYTES, Numbered, Unreadable
from service.jsonl import parse_row
from trainers.registry import Fault

_PIECE = 2**20
_STRING = rb'"(?:[^"\\]++|\\.)*+"'
_AMONG_ROWS = re.compile(_STRING + rb'|["\[\]{},]', re.DOTALL)
_WITHIN_ROW = re.compile(_STRING + rb'|["\[\]{}]', re.DOTALL)
_WITHIN_STRING = re.compile(rb'["\\]')
_SPACE = b" \t\r\n"
_CUT_OFF = "The file was cut off, or a bracket or a quote is missing in one of its rows."


class JsonArray:
    """One row an element. The text must begin with the array's bracket."""

    columns = None
    share = None

    def __init__(self, stream: BufferedReader) -> None:
        self._stream = stream

    def __iter__(self) -> Iterator[Numbered]:
        for number, element in enumerate(self._elements(), 1):
            if isinstance(element, Fault):
                yield number, element, 0
            else:
                yield number, parse_row(element, "row"), len(element)

    def _elements(self) -> Iterator[bytes | Fault]:
        cutter = _Cutter()
        piece = b""
        while not piece:
            piece = self._stream.read(_PIECE).lstrip(_SPACE)
        piece = piece[1:] or self._stream.read(_PIECE)
        while piece:
            yield from cutter.cut(piece)
            piece = self._stream.read(_PIECE)
        if not cutter.ended:
            raise Unreadable(Fault("", "bad_json", 'the file ends before the "]" of its array', _CUT_OFF), cutter.count + 1)


class _Cutter:
    """Takes the text behind the array's first bracket piece by piece and gives the elements that end in each."""

    def __init__(self) -> None:
        self.ended = False
        self.count = 0
        """Elements given."""
        self._depth = 0
        """Open brackets around."""
        self._in_string = False
        self._begin = 0
        """Where the scan of the next piece begins: behind a character that the last one's final backslash escapes."""
        self._held = bytearray()
        self._length = 0

    def cut(self, piece: bytes) -> Iterator[bytes | Fault]:
        """The elements that end in this piece. Raises Unreadable where the text is no array."""
        start, at, self._begin = 0, self._begin, 0
        while not self.ended and at < len(piece):
            if self._in_string:
                at = self._through_string(piece, at)
            elif found := (_WITHIN_ROW if self._depth else _AMONG_ROWS).search(piece, at):
                at = found.end()
                if self._ends_element(found[0]):
                    self._hold(piece[start : at - 1])
                    start = at
                    yield from self._taken()
            else:
                break
        if not self.ended:
            self._hold(piece[start:])
        elif piece[start:].strip(_SPACE):
            raise Unreadable(Fault("", "bad_json", "the file goes on behind the end of its array", "A file holds one array."))

    def _through_string(self, piece: bytes, at: int) -> int:
        """The place behind the next quote or escaped character of the string that is open."""
        found = _WITHIN_STRING.search(piece, at)
        if found is None:
            return len(piece)
        if found[0] == b'"':
            self._in_string = False
            return found.end()
        self._begin = max(0, found.end() + 1 - len(piece))
        return found.end() + 1

    def _ends_element(self, token: bytes) -> bool:
        """Take notice of a token outside of strings; whether an element of the array ends with it."""
        if token == b'"':
            self._in_string = True
        elif token in b"[{":
            self._depth += 1
        elif token in b"]}" and self._depth:
            self._depth -= 1
        elif token == b"}":
            raise Unreadable(Fault("", "bad_json", "the brackets of the row do not pair up", _CUT_OFF), self.count + 1)
        else:
            self.ended = token == b"]"
            return token in b"],"
        return False

    def _hold(self, part: bytes) -> None:
        self._length += len(part)
        if self._length <= MAX_ROW_BYTES:
            self._held += part
        else:
            self._held.clear()

    def _taken(self) -> Iterator[bytes | Fault]:
        """The element that has just ended; none between the brackets of an empty array."""
        element, length = bytes(self._held).strip(_SPACE), self._length
        self._held.clear()
        self._length = 0
        if length > MAX_ROW_BYTES:
            self.count += 1
            yield Fault("", "row_too_long", f"the row is {length:,} bytes long; at most {MAX_ROW_BYTES:,} are allowed")
        elif element:
            self.count += 1
            yield element
        elif self.count or not self.ended:
            self.count += 1
            yield Fault("", "bad_json", "there is no row beside a comma", "Remove the comma.")
