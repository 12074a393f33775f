"""JSON bodies, read strictly: what two parsers could read differently is refused, and refusals say what would do.

Knows no field of any request. Used by the routes that take a JSON body; `parse_json` needs the body
to be within its limit already.
"""

from __future__ import annotations

import difflib
import json
import math
import re
from functools import cache
from typing import Any, NoReturn, TypeVar, cast

from fastapi import Request
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from service.errors import ErrorCode, TunesmithError, invalid

MAX_DEPTH = 32
MAX_DIGITS = 19
NO_SUCH_KIND = ("union_tag_invalid", "union_tag_not_found")
"""Pydantic's words for an object whose `type`, or whatever tells its shape, names none that there is."""
M = TypeVar("M", bound=BaseModel)
Schema = dict[str, Any]
Path = tuple[str | int, ...]

_STRUCTURE = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"?|[\[{\]}]', re.DOTALL)
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]")
_CONTROL_BUT_SPACE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")


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
    _check_strings(value, _CONTROL_BUT_SPACE if multiline else _CONTROL)
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
        raise invalid(f"The key {_shown(twice)} stands twice in one object of the request body.")
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


def _check_strings(value: object, refused: re.Pattern[str]) -> None:
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, str):
            _check_string(item, refused)
        elif isinstance(item, list):
            waiting.extend(cast("list[object]", item))
        elif isinstance(item, dict):
            entries = cast("dict[str, object]", item)
            waiting.extend((*entries, *entries.values()))


def _check_string(text: str, refused: re.Pattern[str]) -> None:
    if (found := refused.search(text)) is not None:
        raise invalid(f"The string {_shown(text)} of the request body holds the control character U+{ord(found[0]):04X}.")
    if not text.isascii() and any("\ud800" <= char <= "\udfff" for char in text):
        raise invalid(f"The string {_shown(text)} of the request body holds a lone surrogate.")


def validated(model: type[M], value: object) -> M:
    """`value` as a `model`; INVALID_REQUEST that names the field by its dotted path and says what would do."""
    try:
        return model.model_validate(value)
    except ValidationError as exc:
        raise _refusal(exc.errors(include_url=False), _schema(model), value) from None


@cache
def _schema(model: type[BaseModel]) -> Schema:
    return model.model_json_schema()


def _refusal(errors: list[ErrorDetails], root: Schema, value: object) -> TunesmithError:
    """The error for the first faulty field; in a union the branch that got furthest says most."""
    paths = [_field_path(error["loc"], root, value) for error in errors]
    path, error = max(
        ((path, error) for path, error in zip(paths, errors, strict=True) if path[: len(paths[0])] == paths[0]),
        key=lambda found: (len(found[0]), found[1]["type"] in NO_SUCH_KIND),
    )
    if error["type"] in NO_SUCH_KIND:
        return _no_such_kind(path, error)
    param = dotted(path)
    if not path:
        return invalid("The request body must be a JSON object.")
    if error["type"] == "missing":
        return invalid(f"Missing required field '{param}'.", param)
    if error["type"] == "extra_forbidden":
        return invalid(f"Unknown field '{param}'{_nearest(str(path[-1]), _nodes(path[:-1], root, value))}", param)
    if error["type"] == "value_error":
        return invalid(f"'{param}' {error['msg'].removeprefix('Value error, ')}.", param)
    if error["loc"][-1] == "[key]":
        rules = [{"type": "string", **node["propertyNames"]} for node in _nodes(path[:-1], root, value) if "propertyNames" in node]
        rule = _words({"anyOf": rules}, root)
        return invalid(f"The keys of '{dotted(path[:-1])}' must be {rule}.", dotted(path[:-1]))
    expected = " or ".join(dict.fromkeys(_words(node, root) for node in _nodes(path, root, value)))
    return invalid(f"'{param}' must be {expected}, not {_shown(error['input'])}.", param)


def _no_such_kind(path: Path, error: ErrorDetails) -> TunesmithError:
    """An object whose shape one of its fields decides, and which names none that there is."""
    context: dict[str, str] = error.get("ctx", {})
    field = context["discriminator"].strip("'")
    param = dotted((*path, field))
    if error["type"] == "union_tag_not_found":
        return invalid(f"Missing required field '{param}'.", param)
    expected = context["expected_tags"].replace("'", '"').replace(", ", " or ")
    return invalid(f"'{param}' must be {expected}, not {_shown(error['input'][field])}.", param)


def dotted(path: Path) -> str:
    """`("a", "b", 0)` as `a.b[0]`."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")


def _field_path(loc: Path, root: Schema, value: object) -> Path:
    """`loc` without the names pydantic gives to the branches of a union."""
    path: Path = ()
    whole = value
    for part in loc:
        if isinstance(value, dict) and (part in value or any(part in node.get("properties", {}) for node in _nodes(path, root, whole))):
            value = cast("dict[str | int, object]", value).get(part)
        elif isinstance(value, list) and isinstance(part, int):
            value = cast("list[object]", value)[part]
        else:
            continue
        path = (*path, part)
    return path


def _nodes(path: Path, root: Schema, value: object) -> list[Schema]:
    """Schemas, unions taken apart, of the field at `path` of `value`."""
    nodes = _branches(root, root, value)
    for part in path:
        value = _inside(value, part)
        nodes = [branch for node in nodes for below in _below(node, part) for branch in _branches(below, root, value)]
    return nodes


def _inside(value: object, part: str | int) -> object:
    if isinstance(value, dict):
        return cast("dict[str | int, object]", value).get(part)
    if isinstance(value, list) and isinstance(part, int):
        return cast("list[object]", value)[part]
    return None


def _below(node: Schema, part: str | int) -> list[Schema]:
    if isinstance(part, int):
        return [node["items"]] if "items" in node else []
    found = node.get("properties", {}).get(part, node.get("additionalProperties"))
    return [found] if isinstance(found, dict) else []


def _branches(node: Schema, root: Schema, value: object = None) -> list[Schema]:
    """The schemas that a value may have."""
    if "$ref" in node:
        return _branches(root["$defs"][node["$ref"].rpartition("/")[2]], root, value)
    if "anyOf" in node or "oneOf" in node:
        return [branch for option in _options(node, value) for branch in _branches(option, root, value)]
    return [node]


def _options(node: Schema, value: object) -> list[Schema]:
    """The branches of a union; where a field tells them apart, the one that `value` names."""
    told = node.get("discriminator")
    if told is not None and isinstance(value, dict):
        named = cast("dict[str, object]", value).get(told["propertyName"])
        if isinstance(named, str) and named in told["mapping"]:
            return [{"$ref": told["mapping"][named]}]
    return node.get("anyOf") or node["oneOf"]


def _nearest(name: str, nodes: list[Schema]) -> str:
    known = [key for node in nodes for key in node.get("properties", {})]
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean '{close[0]}'?" if close else f"; known are {', '.join(sorted(known))}."


def _words(node: Schema, root: Schema) -> str:
    """What a schema wants, in words and with its bounds."""
    branches = _branches(node, root)
    if len(branches) > 1:
        return " or ".join(dict.fromkeys(_words(branch, root) for branch in branches))
    node = branches[0]
    if "const" in node or "enum" in node:
        return " or ".join(json.dumps(option) for option in node.get("enum", [node.get("const")]))
    match node.get("type"):
        case "integer":
            return "an integer" + _bounds(node)
        case "number":
            return "a number" + _bounds(node)
        case "string":
            return "a string" + _span(node.get("minLength"), node.get("maxLength"), "character") + _pattern(node)
        case "array":
            return "a list" + _span(node.get("minItems"), node.get("maxItems"), "item")
        case "object":
            return "an object" + _span(node.get("minProperties"), node.get("maxProperties"), "entry", "entries")
        case other:
            return str(other or "something else")


def _bounds(node: Schema) -> str:
    if "minimum" in node and "maximum" in node:
        return f" from {node['minimum']} to {node['maximum']}"
    signs = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}
    found = [f"{words} {node[key]}" for key, words in signs.items() if key in node]
    return (" " + " and ".join(found)) if found else ""


def _span(low: int | None, high: int | None, unit: str, plural: str | None = None) -> str:
    units = plural or unit + "s"
    match low, high:
        case None, None:
            return ""
        case None, _:
            return f" of at most {high} {units}"
        case _, None:
            return f" of at least {low} {unit if low == 1 else units}"
        case _:
            return f" of {low} to {high} {units}"


def _pattern(node: Schema) -> str:
    return f" matching {node['pattern']}" if "pattern" in node else ""


def _shown(value: object) -> str:
    """A short form of a client's value for a message."""
    match value:
        case dict():
            return "an object"
        case list():
            return "a list"
        case _:
            text = json.dumps(value)
            return text if len(text) <= 60 else text[:57] + "…"
