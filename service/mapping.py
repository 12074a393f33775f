"""From the columns that users have to the rows that methods take, as a job's `tunesmith.data.mapping` declares. Pure.

Called by the data check before the method's own rules, so that those hold for mapped rows too. A column without a value,
absent or null, counts as missing.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Any, cast

from service.jsonl import parse_value
from trainers.registry import Fault, Row
from trainers.spec import MappingSpec

SHOWN_COLUMNS = 20
KEPT = frozenset({"name", "weight", "tool_calls", "tool_call_id", "function_call", "refusal"})
"""What a message whose keys are mapped keeps beside role and content: all that methods know. Other keys are left out."""
ROW_KEPT = ("tools", "functions", "parallel_tool_calls")
"""What a row keeps beside its conversation."""


class ColumnMapping:
    """One declared mapping."""

    def __init__(self, spec: MappingSpec) -> None:
        self._spec = spec
        self._required = [column for column in (spec.prompt, spec.completion, spec.messages) if column]
        self._named = [*self._required, spec.system] if spec.system else self._required
        self._role, self._content = spec.role or "role", spec.content or "content"

    def wanted(self) -> list[str]:
        """Columns that are read, with the tops of dotted paths among them."""
        return [*self._named, *(column.partition(".")[0] for column in self._named), *ROW_KEPT]

    def missing(self, columns: Iterable[str]) -> list[Fault]:
        """A fault for each column that no row of a table with these columns has."""
        there = list(columns)
        return [_missing(column, there) for column in self._named if column not in there and column.partition(".")[0] not in there]

    def row(self, raw: Row) -> Row | Fault:
        """The row that a method takes, or why there is none."""
        for column in self._required:
            if _value(raw, column) is None:
                return _missing(column, raw)
        messages = self._conversation(raw) if self._spec.messages else self._pair(raw)
        if isinstance(messages, Fault):
            return messages
        beside = ROW_KEPT if self._spec.messages else ()
        return {"messages": messages, **{key: raw[key] for key in beside if raw.get(key) not in (None, "")}}

    def _pair(self, raw: Row) -> list[Row]:
        spec = self._spec
        system = _value(raw, spec.system) if spec.system else None
        first = [{"role": "system", "content": system}] if system not in (None, "") else []
        assert spec.prompt is not None
        assert spec.completion is not None
        return [
            *first,
            {"role": "user", "content": _value(raw, spec.prompt)},
            {"role": "assistant", "content": _value(raw, spec.completion)},
        ]

    def _conversation(self, raw: Row) -> object:
        """The messages, or whatever stands in their place: the method says what is wrong with that."""
        column = self._spec.messages
        assert column is not None
        value: object = _value(raw, column)
        if isinstance(value, str):  # a table without lists keeps a conversation as text
            value = parse_value(value, column)
        if not isinstance(value, list) or not (self._spec.role or self._spec.content or self._spec.roles):
            return cast("object", value)
        return [self._message(item) for item in cast("list[object]", value)]

    def _message(self, item: object) -> object:
        if not isinstance(item, dict):
            return item
        message = cast("dict[str, Any]", item)
        if self._role not in message:
            return message
        role, roles = message[self._role], self._spec.roles or {}
        kept = {key: value for key, value in message.items() if key in KEPT and value is not None}
        renamed = {"role": roles.get(role, role) if isinstance(role, str) else role}
        return {**renamed, **({"content": message[self._content]} if self._content in message else {}), **kept}


def _value(raw: Row, column: str) -> Any:
    """What stands in a column, None where nothing does. A key that holds dots itself comes before a path."""
    if column in raw:
        return raw[column]
    value: Any = raw
    for part in column.split("."):
        if isinstance(value, dict):
            value = cast("dict[str, Any]", value).get(part)
        elif isinstance(value, list) and part.isdecimal() and int(part) < len(cast("list[Any]", value)):
            value = cast("list[Any]", value)[int(part)]
        else:
            return None
    return value


def _missing(column: str, there: Iterable[str]) -> Fault:
    names = list(islice(there, SHOWN_COLUMNS + 1))
    shown = ", ".join(name[:40] for name in names[:SHOWN_COLUMNS]) + (", …" if len(names) > SHOWN_COLUMNS else "")
    message = f"the mapping names the column '{column}', which has no value here"
    return Fault(column, "missing_column", message, f"The columns here are {shown}." if names else "There are no columns here.")
