"""Supervised fine-tuning on conversations: OpenAI's chat rows, loss on what assistants wrote.

Free of torch at import. Everything about a row's form is checked here; what needs the tokenizer
(control tokens, the template's own rules) comes out of `encode`.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import islice
from typing import TYPE_CHECKING, Any, NoReturn

from trainers.method import Encoded, Fault, Row, Scores, shape_of

if TYPE_CHECKING:
    import torch

    from trainers.chat import ChatTokenizer

ROW_KEYS = ("messages", "tools", "parallel_tool_calls", "functions")
MESSAGE_KEYS = {
    "system": ("role", "content", "name"),
    "developer": ("role", "content", "name"),
    "user": ("role", "content", "name"),
    "assistant": ("role", "content", "name", "weight", "tool_calls", "function_call", "refusal"),
    "tool": ("role", "content", "name", "tool_call_id"),
    "function": ("role", "content", "name"),
}
MAX_MESSAGES = 2048
"""Finding the trained turns renders the conversation once for each of them: quadratic in its length."""
MAX_UNKNOWN = 8
"""Unknown fields told of one object."""
NAME = re.compile(r"[a-zA-Z0-9_.-]{1,64}")


class Supervised:
    """Next-token cross-entropy on the assistant's turns."""

    name = "supervised"

    def check_row(self, row: Row) -> list[Fault]:
        """Everything wrong with the row's form."""
        if "messages" not in row:
            return [_wrong_shape(row)]
        return [*_unknown_keys(row, ROW_KEYS, ""), *_check_messages(row["messages"]), *_check_tools(row)]

    def encode(self, rows: Sequence[Row], tokenizer: ChatTokenizer) -> list[Encoded | Fault]:
        """Each row through the chat template; weights are 1 on the assistant's tokens."""
        from trainers.chat import Conversation

        return tokenizer.encode_batch([Conversation(_messages(row), _tools(row)) for row in rows])

    def loss(self, scores: Scores) -> torch.Tensor:
        """Weighted sum of negative log-probabilities, unnormalised."""
        return -(scores.logp * scores.weights).sum()


def _tools(row: Row) -> list[Any] | None:
    """`tools`, with the older `functions` in the same form."""
    functions = [{"type": "function", "function": function} for function in row.get("functions") or ()]
    return [*(row.get("tools") or ()), *functions] or None


def _messages(row: Row) -> list[dict[str, Any]]:
    """The messages, with the older `function_call` as a tool call and `function` results as tool results."""
    return [_modern(message) for message in row["messages"]]


def _modern(message: dict[str, Any]) -> dict[str, Any]:
    if message["role"] == "function":
        return {**message, "role": "tool"}
    if message.get("function_call") is None:
        return message
    rest = {key: value for key, value in message.items() if key != "function_call"}
    return {**rest, "tool_calls": [{"type": "function", "function": message["function_call"]}]}


def _wrong_shape(row: Row) -> Fault:
    hint = 'A supervised row is {"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]}; '
    hint += "rows of other columns need a mapping, tunesmith.data.mapping."
    if shape := shape_of(row):
        return Fault("", "row_shape", f"this is a {shape} row; method supervised takes chat rows", hint)
    return Fault(
        "messages", "missing_field", "the row has no messages", _nearest("messages", [key[:64] for key in islice(row, 64)]) or hint
    )


def _check_messages(messages: Any) -> list[Fault]:
    if not isinstance(messages, list):
        return [_wrong_type("messages", "a list of messages", messages)]
    if not messages:
        return [Fault("messages", "no_messages", "the list of messages is empty")]
    if len(messages) > MAX_MESSAGES:
        message = f"{len(messages):,} messages; at most {MAX_MESSAGES:,} are allowed"
        return [Fault("messages", "too_many_messages", message, "Split the row.")]
    faults = [fault for i, message in enumerate(messages) for fault in _check_message(message, f"messages[{i}]")]
    return faults or list(_check_trained(messages))


def _check_trained(messages: list[dict[str, Any]]) -> Iterator[Fault]:
    """A row must hold something to learn. The messages' own form is known to be right."""
    turns = [message for message in messages if message["role"] == "assistant"]
    if not turns:
        yield Fault("messages", "no_assistant_turn", "no message has the role assistant", "Only what an assistant writes is learned.")
    elif all(turn.get("weight") == 0 for turn in turns):
        hint = "Set weight 1 on at least one assistant message, or remove the row."
        yield Fault("messages", "no_trained_tokens", "every assistant message has weight 0, so nothing is learned from this row", hint)


def _check_message(message: Any, path: str) -> Iterator[Fault]:
    if not isinstance(message, dict):
        yield _wrong_type(path, "an object with role and content", message)
        return
    role = message.get("role")
    if not isinstance(role, str) or role not in MESSAGE_KEYS:
        yield _bad_role(role, f"{path}.role")
        return
    yield from _unknown_keys(message, MESSAGE_KEYS[role], path)
    yield from _check_content(message, path)
    yield from _check_name(message, path)
    if role == "assistant":
        yield from _check_assistant(message, path)
    if role == "tool" and not isinstance(message.get("tool_call_id"), str):
        yield Fault(f"{path}.tool_call_id", "missing_field", "a tool message names the call it answers", "Copy the id of the tool call.")


def _bad_role(role: Any, path: str) -> Fault:
    known = ", ".join(MESSAGE_KEYS)
    if role is None:
        return Fault(path, "bad_role", "the message has no role", f"One of {known}.")
    nearest = _nearest(role, MESSAGE_KEYS) if isinstance(role, str) else ""
    return Fault(path, "bad_role", f"{_short(role)} is not a role", nearest or f"One of {known}.")


def _check_content(message: dict[str, Any], path: str) -> Iterator[Fault]:
    content = message.get("content")
    if isinstance(content, list):
        if not content:
            yield Fault(f"{path}.content", "missing_content", "the list of content parts is empty")
        for i, part in enumerate(content):
            yield from _check_part(part, f"{path}.content[{i}]")
    elif content is None:
        if message.get("tool_calls") is None and message.get("function_call") is None:
            yield Fault(f"{path}.content", "missing_content", "the message has no content", 'Give a string; "" is allowed.')
    elif not isinstance(content, str):
        yield _wrong_type(f"{path}.content", "a string", content)


def _check_part(part: Any, path: str) -> Iterator[Fault]:
    if not isinstance(part, dict):
        yield _wrong_type(path, 'an object {"type": "text", "text": "…"}', part)
    elif part.get("type") != "text":
        yield Fault(f"{path}.type", "unsupported_content", f"content of type {_short(part.get('type'))} can't be trained on; only text can")
    elif not isinstance(part.get("text"), str):
        yield _wrong_type(f"{path}.text", "a string", part.get("text"))
    else:
        yield from _unknown_keys(part, ("type", "text"), path)


def _check_name(message: dict[str, Any], path: str) -> Iterator[Fault]:
    name = message.get("name")
    if name is None:
        if message["role"] == "function":
            yield Fault(f"{path}.name", "missing_field", "a function message names the function it comes from")
    elif not isinstance(name, str) or not NAME.fullmatch(name):
        yield Fault(f"{path}.name", "bad_name", f"{_short(name)} is not a name", "1 to 64 letters, digits, '_', '-' and '.'.")


def _check_assistant(message: dict[str, Any], path: str) -> Iterator[Fault]:
    weight = message.get("weight", 1)
    if isinstance(weight, bool) or not isinstance(weight, int) or weight not in (0, 1):
        yield Fault(f"{path}.weight", "bad_weight", f"weight must be 0 or 1, not {_short(weight)}", "0 leaves this turn out of the loss.")
    if message.get("refusal") is not None:
        yield Fault(f"{path}.refusal", "unsupported_content", "open models have no refusal channel", "Put the refusal's text into content.")
    calls = message.get("tool_calls")
    if calls is not None:
        yield from _check_tool_calls(calls, f"{path}.tool_calls")
    if message.get("function_call") is not None:
        yield from _check_called(message["function_call"], f"{path}.function_call")


def _check_tool_calls(calls: Any, path: str) -> Iterator[Fault]:
    if not isinstance(calls, list) or not calls:
        yield _wrong_type(path, "a list of at least one call", calls)
        return
    for i, call in enumerate(calls):
        here = f"{path}[{i}]"
        if not isinstance(call, dict):
            yield _wrong_type(here, "an object with id, type and function", call)
            continue
        yield from _unknown_keys(call, ("id", "type", "function"), here)
        if not isinstance(call.get("id"), str):
            yield _wrong_type(f"{here}.id", "a string", call.get("id"))
        if call.get("type") != "function":
            yield Fault(f"{here}.type", "bad_tool", f'type must be "function", not {_short(call.get("type"))}')
        yield from _check_called(call.get("function"), f"{here}.function")


def _check_called(function: Any, path: str) -> Iterator[Fault]:
    if not isinstance(function, dict):
        yield _wrong_type(path, "an object with name and arguments", function)
        return
    yield from _unknown_keys(function, ("name", "arguments"), path)
    yield from _check_function_name(function, path)
    arguments = function.get("arguments")
    if not isinstance(arguments, str) or not _is_object(arguments):
        hint = r'For example "{\"city\": \"Oslo\"}"; an empty call is "{}".'
        yield Fault(f"{path}.arguments", "bad_arguments", "arguments must be a string that holds a JSON object", hint)


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text, parse_constant=_refuse_constant), dict)
    except (ValueError, RecursionError):
        return False


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _check_tools(row: Row) -> Iterator[Fault]:
    for i, tool in enumerate(_list_of(row, "tools")):
        path = f"tools[{i}]"
        if not isinstance(tool, dict) or tool.get("type") != "function":
            yield Fault(path, "bad_tool", 'a tool is {"type": "function", "function": {"name": …, "parameters": {…}}}')
        else:
            yield from _unknown_keys(tool, ("type", "function"), path)
            yield from _check_declared(tool.get("function"), f"{path}.function")
    for i, function in enumerate(_list_of(row, "functions")):
        yield from _check_declared(function, f"functions[{i}]")
    for key in ("tools", "functions"):
        if row.get(key) is not None and not isinstance(row[key], list):
            yield _wrong_type(key, "a list", row[key])
    if not isinstance(row.get("parallel_tool_calls", True), bool):
        yield _wrong_type("parallel_tool_calls", "true or false", row["parallel_tool_calls"])


def _list_of(row: Row, key: str) -> list[Any]:
    value = row.get(key)
    return value if isinstance(value, list) else []


_DECLARED = (("description", str, "a string"), ("parameters", dict, "a JSON schema object"), ("strict", bool, "true or false"))


def _check_declared(function: Any, path: str) -> Iterator[Fault]:
    if not isinstance(function, dict):
        yield _wrong_type(path, "an object with name and parameters", function)
        return
    yield from _unknown_keys(function, ("name", "description", "parameters", "strict"), path)
    yield from _check_function_name(function, path)
    for key, kind, words in _DECLARED:
        if function.get(key) is not None and not isinstance(function[key], kind):
            yield _wrong_type(f"{path}.{key}", words, function[key])


def _check_function_name(function: dict[str, Any], path: str) -> Iterator[Fault]:
    name = function.get("name")
    if not isinstance(name, str) or not NAME.fullmatch(name):
        yield Fault(f"{path}.name", "bad_name", f"{_short(name)} is not a function name", "1 to 64 letters, digits, '_', '-' and '.'.")


def _unknown_keys(value: Row, known: Sequence[str], path: str) -> Iterator[Fault]:
    if not value.keys() <= set(known):
        for key in sorted(value.keys() - set(known))[:MAX_UNKNOWN]:
            where = f"{path}.{key}" if path else key
            hint = _nearest(key, known) or f"Known here: {', '.join(known)}."
            yield Fault(where[:200], "unknown_field", f"unknown field {_short(key)}", hint)


def _wrong_type(path: str, expected: str, value: Any) -> Fault:
    return Fault(path, "wrong_type", f"must be {expected}, not {_short(value)}")


def _nearest(word: str, known: Iterable[str]) -> str:
    """A question that offers the nearest of the known words, "" when none is near."""
    return _near(word[:64].lower(), tuple(known))


@lru_cache(maxsize=256)
def _near(word: str, known: tuple[str, ...]) -> str:
    near = difflib.get_close_matches(word, known, n=1)  # slow, and the same misspelling is in every row
    return f"Did you mean {near[0]!r}?" if near else ""


def _short(value: Any) -> str:
    """The value as JSON, cut where it would flood a message."""
    text = json.dumps(value, ensure_ascii=False) if not isinstance(value, (dict, list)) else type(value).__name__
    text = {"dict": "an object", "list": "a list"}.get(text, text)
    return text if len(text) <= 60 else text[:57] + "…"
