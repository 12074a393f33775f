"""Rows written as JSON, read strictly and in constant memory: one object a line. Knows nothing of what rows mean.

`JsonLines` is the reader of JSON Lines (formats/source.py); `parse_row` and `bad_text` hold the rules for rows of every format.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from io import BufferedReader
from typing import Any, NoReturn, cast

from service.formats.rows import MAX_ROW_BYTES, Numbered, numbered
from trainers.registry import Fault

MAX_NESTING = 32
_PIECE = 2**20
_SUSPECT = re.compile(rb"\\(?:u00[01]|u007[fF]|[bf]|u[dD][89a-fA-F])")
"""Escapes that may stand for a control character or a lone surrogate."""
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_SURROGATE = re.compile("[\ud800-\udfff]")


class JsonLines:
    """One row a line."""

    columns = None
    share = None

    def __init__(self, stream: BufferedReader) -> None:
        self._stream = stream

    def __iter__(self) -> Iterator[Numbered]:
        for number, line in numbered(self._lines()):
            if isinstance(line, Fault):
                yield number, line, 0
            else:
                yield number, parse_row(line), len(line)

    def _lines(self) -> Iterator[bytes | Fault | None]:
        """Each line without its end, the fault of one that is too long to read, None for a blank one."""
        while line := self._stream.readline(MAX_ROW_BYTES + 1):
            if len(line) <= MAX_ROW_BYTES or line.endswith(b"\n"):
                yield line.rstrip(b"\r\n") if line.strip() else None
            else:
                length = self._skip_line(len(line))
                yield Fault("", "line_too_long", f"the line is {length:,} bytes long; at most {MAX_ROW_BYTES:,} are allowed")

    def _skip_line(self, length: int) -> int:
        """Pass over the rest of the line in pieces; its whole length in bytes."""
        while piece := self._stream.readline(_PIECE):
            length += len(piece)
            if piece.endswith(b"\n"):
                break
        return length


class _Refused(ValueError):
    """Raised inside the JSON parser; carries rule and message."""


def parse_row(line: bytes, unit: str = "line") -> dict[str, Any] | Fault:
    """The JSON object on a line (or another `unit`), or the first thing wrong with it.

    Stricter than `json`: no duplicate keys, no NaN or infinity, no lone surrogates or control
    characters in strings, no nesting above `MAX_NESTING`.
    """
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        message = f"byte 0x{line[error.start]:02x} at position {error.start + 1} is not UTF-8"
        return Fault("", "bad_encoding", message, "Save the file as UTF-8.")
    if text.startswith("\ufeff"):
        return Fault(
            "", "byte_order_mark", f"the {unit} begins with a byte order mark", "Save the file as UTF-8 without a byte order mark."
        )
    value = _parse(text, unit)
    if isinstance(value, Fault):
        return value
    if not isinstance(value, dict):
        return Fault("", "not_an_object", f"the {unit} is not a JSON object", f"Write one object per {unit}.")
    row = cast("dict[str, Any]", value)
    if _SUSPECT.search(line) or line.count(b"{") + line.count(b"[") > MAX_NESTING:
        return inspect(row) or row
    return row


def parse_value(text: str, path: str) -> object:
    """The value of a JSON text that stands in a field, or the first thing wrong with it."""
    value = _parse(text, "text")
    if isinstance(value, Fault):
        return replace(value, path=path)
    return inspect(value, path) or value


def _parse(text: str, unit: str) -> object:
    try:
        return _DECODER.decode(text)
    except json.JSONDecodeError as error:
        line = f"line {error.lineno} of the {unit}, " if error.lineno > 1 else ""
        return Fault("", "bad_json", f"not valid JSON: {error.msg} at {line}column {error.colno}", _json_hint(text, unit))
    except _Refused as error:
        rule, message = error.args
        return Fault("", rule, message)
    except RecursionError:
        return _too_deep("")
    except ValueError:  # int() refuses thousands of digits
        return Fault("", "bad_number", "a number has too many digits")


def _json_hint(text: str, unit: str) -> str:
    if text.strip() == "{":
        return "The file looks like indented JSON; write one object per line, or a list of objects."
    return f"Each {unit} must be one complete JSON object."


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


def inspect(value: object, path: str = "", depth: int = 1) -> Fault | None:
    """The first string that can't be trained on, or nesting that goes too deep."""
    if isinstance(value, str):
        return bad_text(value, path)
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
        if fault := bad_text(key, path) or inspect(item, where, depth + 1):
            return fault
    return None


def bad_text(text: str, path: str) -> Fault | None:
    """Why the text can't be trained on, None when it can."""
    if _SURROGATE.search(text):
        return Fault(path, "lone_surrogate", "the text holds half of a surrogate pair, which is no character")
    if found := _CONTROL.search(text):
        return Fault(path, "control_character", f"the text holds the control character U+{ord(found[0]):04X}", "Remove it.")
    return None


def _too_deep(path: str) -> Fault:
    return Fault(path[:200], "too_deep", f"nested deeper than {MAX_NESTING} levels")
