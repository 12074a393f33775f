"""JSON bodies, read strictly: what two parsers could read differently is refused, and refusals say what would do.

Knows no field of any request. Used by the routes that take a JSON body; `parse_json` needs the body
to be within its limit already.
"""

from __future__ import annotations

import json
import math
import re
from typing import NoReturn

from fastapi import Request

from service.errors import ErrorCode, TunesmithError, invalid
from service.strict import check_strings, shown
from service.strict import validated as validated

MAX_DEPTH = 32
MAX_DIGITS = 19

_STRUCTURE = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"?|[\[{\]}]', re.DOTALL)


async def read_json(request: Request, *, multiline: bool = False) -> object:
    """The request's body as JSON values; with `multiline` its strings may hold tabs and line breaks.

    Raises UNSUPPORTED_MEDIA_TYPE unless it is declared as JSON, INVALID_REQUEST unless it is plain JSON.
    """
    kind, _, parameters = request.headers.get("content-type", "").partition(";")
    charset = re.search(r'charset\s*=\s*"?([^\s";]+)', parameters, re.IGNORECASE)
    if kind.strip().lower() != "application/json" or (charset and charset[1].lower() not in ("utf-8", "utf8")):
        raise TunesmithError(ErrorCode.UNSUPPORTED_MEDIA_TYPE, "The request body must be JSON, with content-type: application/json.")
    return parse_json(await request.body(), multiline=multiline)


def parse_json(body: bytes, *, multiline: bool = False) -> object:
    """Values of a JSON text in UTF-8.

    Refuses duplicate keys, NaN and infinite numbers, integers of more than 19 digits, more than 32
    levels, lone surrogates and control characters, none of which a request of ours has a use for; source
    and prose, for which `multiline` stands, have tabs and line breaks.
    """
    _check_depth(body)
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as exc:
        raise invalid(f"The request body is not valid UTF-8 (byte {exc.start}).") from None
    try:
        value = json.loads(text, object_pairs_hook=_object, parse_int=_integer, parse_float=_number, parse_constant=_no_constant)
    except json.JSONDecodeError as exc:
        raise invalid(f"The request body is not valid JSON: {exc.msg} (line {exc.lineno}, column {exc.colno}).") from None
    check_strings(value, multiline=multiline)
    return value


def _check_depth(body: bytes) -> None:
    depth = 0
    for token in _STRUCTURE.finditer(body):
        match token[0]:
            case b"[" | b"{":
                depth += 1
                if depth > MAX_DEPTH:
                    raise invalid(f"The request body is nested deeper than {MAX_DEPTH} levels.")
            case b"]" | b"}":
                depth -= 1
            case _:
                pass


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    result = dict(pairs)
    if len(result) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise invalid(f"The key {shown(twice)} stands twice in one object of the request body.")
    return result


def _integer(digits: str) -> int:
    if len(digits.lstrip("-")) > MAX_DIGITS:
        raise invalid(f"An integer of the request body has more than {MAX_DIGITS} digits.")
    return int(digits)


def _number(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        raise invalid(f"The number {digits[:30]} of the request body is too large.")
    return number


def _no_constant(name: str) -> NoReturn:
    raise invalid(f"The request body holds {name}, which is not JSON.")
