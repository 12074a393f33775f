"""Between messages and plain values, field by field by name. Pure, and knows no message of ours.

A setting that is added to a model of `trainers.spec` and, under the same name, to its message needs no line here. An
"auto" or another word that stands for the server's choice is an absent field; a word of a fixed set is an enum value.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeVar

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from google.protobuf.unknown_fields import UnknownFieldSet

from service.errors import invalid
from service.strict import dotted

M = TypeVar("M", bound=Message)
Path = tuple[str | int, ...]
Field = Any
"""google.protobuf.descriptor.FieldDescriptor or its C twin, which have no type in common."""
Enum = Any
"""Likewise an EnumDescriptor."""


def values(message: Message, path: Path = ()) -> dict[str, Any]:
    """What a message says, as the values of a JSON object with the same fields.

    Refuses fields that this server does not know: a setting of a newer client would otherwise be dropped without a word.
    A number that is no value of its enum stays a number, for the validator to refuse.
    """
    for unknown in UnknownFieldSet(message):
        where = f"'{dotted(path)}'" if path else "The message"
        raise invalid(
            f"{where} has a field of number {unknown.field_number}, which this server does not know; it may be older than its client.",
            dotted(path) or None,
        )
    return {field.name: _value(field, value, (*path, field.name)) for field, value in message.ListFields()}


def _value(field: Field, value: Any, path: Path) -> Any:
    if _is_map(field):
        return dict(value)
    if field.is_repeated:
        return [values(item, (*path, at)) for at, item in enumerate(value)] if field.message_type else list(value)
    if field.message_type is not None:
        return values(value, path)
    if field.enum_type is not None:
        return word(field.enum_type, value)
    return value


def fill(message: M, source: object) -> M:
    """`message` with every field that `source` has an attribute for; None, and a word where a field has no place for it, stay absent."""
    for field in message.DESCRIPTOR.fields:
        value = getattr(source, field.name, None)
        if value is not None:
            _fill(message, field, value)
    return message


def _fill(message: Message, field: Field, value: Any) -> None:
    is_word = isinstance(value, str)
    if _is_map(field):
        getattr(message, field.name).update(value)
    elif field.is_repeated:
        if not is_word:
            _extend(getattr(message, field.name), field, value)
    elif field.message_type is not None:
        if not is_word:
            getattr(message, field.name).SetInParent()
            fill(getattr(message, field.name), value)
    elif field.enum_type is not None:
        setattr(message, field.name, number(field.enum_type, value))
    elif is_word == (field.type == FieldDescriptor.TYPE_STRING):
        setattr(message, field.name, value)


def _extend(repeated: Any, field: Field, items: Iterable[Any]) -> None:
    if field.message_type is None:
        repeated.extend(items)
        return
    for item in items:
        fill(repeated.add(), item)


def word(enum: Enum, value: int) -> str | int:
    """The word of an enum's value: SCHEDULE_COSINE is "cosine". The number itself where it has none."""
    found = enum.values_by_number.get(value)
    return found.name.removeprefix(_prefix(enum)).lower() if found else value


def number(enum: Enum, text: str) -> Any:
    """The value of an enum for a word; its zero, UNSPECIFIED, for one that it lacks."""
    found = enum.values_by_name.get(f"{_prefix(enum)}{text.upper()}")
    return found.number if found else 0


def timestamp(seconds: float | None) -> Timestamp | None:
    """Seconds since 1970 as a message, to the microsecond."""
    if seconds is None:
        return None
    result = Timestamp()
    result.FromMicroseconds(round(seconds * 1e6))
    return result


def _prefix(enum: Enum) -> str:
    zero = enum.values_by_number[0].name
    return zero.removesuffix("UNSPECIFIED")


def _is_map(field: Field) -> bool:
    return field.message_type is not None and field.message_type.GetOptions().map_entry
