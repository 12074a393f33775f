"""Values of a request against the models that say what it may hold: refusals name the field and say what would do.

Knows no transport and no field of any request. REST gives it the values of a JSON body, gRPC those of a message, so both
refuse the same things with the same words.
"""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Mapping
from functools import cache
from typing import Any, TypeVar, cast

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from service.errors import TunesmithError, invalid

M = TypeVar("M", bound=BaseModel)
Schema = dict[str, Any]
Path = tuple[str | int, ...]

NO_SUCH_KIND = ("union_tag_invalid", "union_tag_not_found")
"""Pydantic's words for an object whose `type`, or whatever tells its shape, names none that there is."""
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]")
_CONTROL_BUT_SPACE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")


def check_strings(value: object, *, multiline: bool = False) -> None:
    """Refuses control characters and lone surrogates, which no request of ours has a use for, in `value` and all it holds.

    With `multiline` tabs and line breaks are let through, which sources and prose have.
    """
    waiting: list[tuple[Path, object]] = [((), value)]
    while waiting:
        path, item = waiting.pop()
        if isinstance(item, str):
            check_string(item, dotted(path) or None, multiline=multiline)
        elif isinstance(item, list):
            waiting.extend(((*path, at), below) for at, below in enumerate(cast("list[object]", item)))
        elif isinstance(item, dict):
            for key, below in cast("dict[str, object]", item).items():
                check_string(key, dotted(path) or None, multiline=multiline)
                waiting.append(((*path, key), below))


def check_string(text: str, param: str | None = None, *, multiline: bool = False) -> None:
    """As check_strings, for one text; `param` is the field it stands in."""
    if (found := (_CONTROL_BUT_SPACE if multiline else _CONTROL).search(text)) is not None:
        raise invalid(f"The string {shown(text)} of the request holds the control character U+{ord(found[0]):04X}.", param)
    if not text.isascii() and any("\ud800" <= char <= "\udfff" for char in text):
        raise invalid(f"The string {shown(text)} of the request holds a lone surrogate.", param)


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
        return invalid("The request must be an object.")
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
    return invalid(f"'{param}' must be {expected}, not {shown(error['input'])}.", param)


def _no_such_kind(path: Path, error: ErrorDetails) -> TunesmithError:
    """An object whose shape one of its fields decides, and which names none that there is."""
    context: dict[str, str] = error.get("ctx", {})
    field = context["discriminator"].strip("'")
    param = dotted((*path, field))
    if error["type"] == "union_tag_not_found":
        return invalid(f"Missing required field '{param}'.", param)
    expected = context["expected_tags"].replace("'", '"').replace(", ", " or ")
    return invalid(f"'{param}' must be {expected}, not {shown(error['input'][field])}.", param)


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


def shown(value: object) -> str:
    """A short form of a client's value for a message."""
    match value:
        case dict():
            return "an object"
        case list():
            return "a list"
        case _:
            text = json.dumps(value)
            return text if len(text) <= 60 else text[:57] + "…"


def finite(data: Mapping[str, Any]) -> dict[str, Any]:
    """`data` on its way out, with None in place of the numbers that JSON cannot hold: a diverged loss is NaN."""
    return {key: _finite(value) for key, value in data.items()}


def _finite(value: Any) -> Any:
    match value:
        case float():
            return value if math.isfinite(value) else None
        case dict():
            return finite(cast("dict[str, Any]", value))
        case list() | tuple():
            return [_finite(item) for item in cast("list[Any]", value)]
        case _:
            return value
