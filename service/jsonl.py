"""Lines of an uploaded JSON Lines file, read strictly and in constant memory. Knows nothing of what rows mean.

The data check (datasets.py) reads through it. A line is never held beyond `MAX_LINE_BYTES`; a file that
is not text is refused by its first bytes and never unpacked.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from typing import IO, Any, NoReturn, cast

from trainers.registry import Fault

MAX_LINE_BYTES = 8 * 2**20
MAX_NESTING = 32
_PIECE = 2**20
_MAGIC = {
    b"\x1f\x8b": "gzip",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"PK\x03\x04": "zip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x04\x22\x4d\x18": "lz4",
    b"7z\xbc\xaf": "7z",
}
_UTF16 = (b"\xff\xfe", b"\xfe\xff")
_SUSPECT = re.compile(rb"\\(?:u00[01]|u007[fF]|[bf]|u[dD][89a-fA-F])")
"""Escapes that may stand for a control character or a lone surrogate."""
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_SURROGATE = re.compile("[\ud800-\udfff]")


class LineReader:
    """The lines of a file opened for binary reading, and the hash of all its bytes."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._digest = hashlib.sha256()
        self.bytes_read = 0

    def refusal(self) -> Fault | None:
        """Why the file is no text at all, from its first bytes; None when it may be."""
        head = self._file.read(4096)
        self._file.seek(0)
        for magic, name in _MAGIC.items():
            if head.startswith(magic):
                return Fault("", "compressed", f"the file is compressed ({name})", "Unpack it and upload the .jsonl file itself.")
        if head.startswith(_UTF16) or _looks_utf16(head):
            return Fault("", "bad_encoding", "the file is UTF-16", "Save it as UTF-8 without a byte order mark.")
        if b"\0" in head:
            return Fault("", "binary", "the file is binary, not text", "Upload JSON Lines: one JSON object per line, in UTF-8.")
        return None

    def __iter__(self) -> Iterator[bytes | Fault]:
        """Each line without its end, or the fault of a line that is too long to read."""
        while line := self._read(MAX_LINE_BYTES + 1):
            if len(line) <= MAX_LINE_BYTES or line.endswith(b"\n"):
                yield line.rstrip(b"\r\n")
            else:
                length = self._skip_line(len(line))
                yield Fault("", "line_too_long", f"the line is {length:,} bytes long; at most {MAX_LINE_BYTES:,} are allowed")

    def sha256(self) -> str:
        """Hash of the whole file; reads what no one has read yet."""
        while piece := self._file.read(_PIECE):
            self._take(piece)
        return self._digest.hexdigest()

    def _read(self, limit: int) -> bytes:
        line = self._file.readline(limit)
        self._take(line)
        return line

    def _take(self, piece: bytes) -> None:
        self._digest.update(piece)
        self.bytes_read += len(piece)

    def _skip_line(self, length: int) -> int:
        """Pass over the rest of the line in pieces; its whole length in bytes."""
        while piece := self._read(_PIECE):
            length += len(piece)
            if piece.endswith(b"\n"):
                break
        return length


def _looks_utf16(head: bytes) -> bool:
    """UTF-16 without a byte order mark: text whose every other byte is NUL."""
    even, odd = head[0::2], head[1::2]
    return len(head) >= 4 and (even.count(0) > 0.4 * len(head) > 4 * odd.count(0) or odd.count(0) > 0.4 * len(head) > 4 * even.count(0))


class _Refused(ValueError):
    """Raised inside the JSON parser; carries rule and message."""


def parse_row(line: bytes) -> dict[str, Any] | Fault:
    """The JSON object on a line, or the first thing wrong with it.

    Stricter than `json`: no duplicate keys, no NaN or infinity, no lone surrogates or control
    characters in strings, no nesting above `MAX_NESTING`.
    """
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        message = f"byte 0x{line[error.start]:02x} at position {error.start + 1} is not UTF-8"
        return Fault("", "bad_encoding", message, "Save the file as UTF-8.")
    if text.startswith("\ufeff"):
        return Fault("", "byte_order_mark", "the line begins with a byte order mark", "Save the file as UTF-8 without a byte order mark.")
    value = _parse(text)
    if isinstance(value, Fault):
        return value
    if not isinstance(value, dict):
        hint = 'Write one object per line, without the surrounding "[" and "]".' if isinstance(value, list) else ""
        return Fault("", "not_an_object", "the line is not a JSON object", hint)
    row = cast("dict[str, Any]", value)
    if _SUSPECT.search(line) or line.count(b"{") + line.count(b"[") > MAX_NESTING:
        return _inspect(row, "", 1) or row
    return row


def _parse(text: str) -> object:
    try:
        return _DECODER.decode(text)
    except json.JSONDecodeError as error:
        return Fault("", "bad_json", f"not valid JSON: {error.msg} at column {error.colno}", _json_hint(text))
    except _Refused as error:
        rule, message = error.args
        return Fault("", rule, message)
    except RecursionError:
        return _too_deep("")
    except ValueError:  # int() refuses thousands of digits
        return Fault("", "bad_number", "a number has too many digits")


def _json_hint(text: str) -> str:
    if text.strip() in ("[", "{"):
        return "The file looks like indented JSON; write one object per line."
    return "Each line must be one complete JSON object."


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise _Refused("duplicate_key", f"the key {json.dumps(twice[:60])} comes twice in one object")
    return value


def _float(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise _Refused("bad_number", f"the number {text[:40]} is too large")
    return value


def _constant(name: str) -> NoReturn:
    raise _Refused("bad_number", f"{name} is not a JSON number")


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_float=_float, parse_constant=_constant)


def _inspect(value: object, path: str, depth: int) -> Fault | None:
    """The first string that can't be trained on, or nesting that goes too deep."""
    if isinstance(value, str):
        return _bad_text(value, path)
    if isinstance(value, dict):
        items = cast("dict[str, object]", value).items()
        children = ((f"{path}.{key}" if path else key, key, item) for key, item in items)
    elif isinstance(value, list):
        children = ((f"{path}[{i}]", "", item) for i, item in enumerate(cast("list[object]", value)))
    else:
        return None
    if depth > MAX_NESTING:
        return _too_deep(path)
    for where, key, item in children:
        if fault := _bad_text(key, path) or _inspect(item, where, depth + 1):
            return fault
    return None


def _bad_text(text: str, path: str) -> Fault | None:
    if _SURROGATE.search(text):
        return Fault(path, "lone_surrogate", "the text holds half of a surrogate pair, which is no character")
    if found := _CONTROL.search(text):
        return Fault(path, "control_character", f"the text holds the control character U+{ord(found[0]):04X}", "Remove it.")
    return None


def _too_deep(path: str) -> Fault:
    return Fault(path[:200], "too_deep", f"nested deeper than {MAX_NESTING} levels")
