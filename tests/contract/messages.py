"""JSON's words and protobuf's, one into the other, as a client would write it by hand. Knows no message."""

from __future__ import annotations

from typing import Any

from google.protobuf.json_format import MessageToDict

from tests.contract.vocabulary import Body


def message(target: Any, given: Body) -> Any:
    """`target` with the fields of a JSON object, words of enums as their values."""
    for name, value in given.items():
        descriptor = target.DESCRIPTOR.fields_by_name[name]
        if isinstance(value, dict) and not descriptor.message_type.GetOptions().map_entry:
            getattr(target, name).SetInParent()
            message(getattr(target, name), value)
        elif isinstance(value, dict):
            getattr(target, name).update(value)
        elif isinstance(value, list):
            getattr(target, name).extend(value)
        elif descriptor.enum_type is not None and isinstance(value, str):
            setattr(target, name, next(v.number for v in descriptor.enum_type.values if v.name.lower().endswith(f"_{value}")))
        else:
            setattr(target, name, value)
    return target


def word(source: Any, name: str) -> str | None:
    """The value of an enum field as JSON has it: JOB_STATUS_QUEUED is "queued". None where it says nothing."""
    enum, number = source.DESCRIPTOR.fields_by_name[name].enum_type, getattr(source, name)
    prefix = enum.values_by_number[0].name.removesuffix("UNSPECIFIED")
    return enum.values_by_number[number].name.removeprefix(prefix).lower() if number else None


def optional(source: Any, name: str) -> Any:
    """An optional field, None where it is absent."""
    return getattr(source, name) if source.HasField(name) else None


def plain(value: Any) -> Any:
    """A Struct as JSON values."""
    return MessageToDict(value)
