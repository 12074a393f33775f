"""The supervised method: every rule of a chat row by name, and what a row becomes."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tiny_chat import chat_row, write_chat_model
from trainers.chat import ChatTokenizer
from trainers.method import Encoded, Fault
from trainers.registry import get

METHOD = get("supervised")
CALL = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}
TOOL = {"type": "function", "function": {"name": "weather", "description": "d", "parameters": {"type": "object"}, "strict": True}}
TOOLS_ROW: dict[str, Any] = {
    "messages": [
        {"role": "developer", "content": [{"type": "text", "text": "be "}, {"type": "text", "text": "kind"}]},
        {"role": "user", "content": "weather?", "name": "ann"},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "content": "rain", "tool_call_id": "call_1"},
        {"role": "assistant", "content": "It rains.", "weight": 1},
    ],
    "tools": [TOOL],
    "parallel_tool_calls": False,
}
FUNCTIONS_ROW: dict[str, Any] = {
    "messages": [
        {"role": "user", "content": "weather?"},
        {"role": "assistant", "content": None, "function_call": {"name": "weather", "arguments": "{}"}, "weight": 0},
        {"role": "function", "name": "weather", "content": "rain"},
        {"role": "assistant", "content": "It rains."},
    ],
    "functions": [TOOL["function"]],
}
TOOL_TEMPLATE = (
    "{% for t in tools or [] %}[{{ t.function.name }}]{% endfor %}{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% for c in m.tool_calls or [] %}{{ c.function.name }}{{ c.function.arguments | tojson }}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def messages(*turns: object) -> dict[str, object]:
    return {"messages": [{"role": "user", "content": "hello"}, *turns]}


def assistant(**fields: object) -> dict[str, object]:
    return messages({"role": "assistant", "content": "x", **fields})


def called(**function: object) -> dict[str, object]:
    return assistant(tool_calls=[{**CALL, "function": {**CALL["function"], **function}}])


@pytest.mark.parametrize("row", [chat_row(), TOOLS_ROW, FUNCTIONS_ROW, chat_row("", ""), chat_row(weight=1), chat_row(refusal=None)])
def test_good_rows_pass(row: dict[str, Any]) -> None:
    assert METHOD.check_row(row) == []


@pytest.mark.parametrize(
    ("row", "rule", "path"),
    [
        ({}, "missing_field", "messages"),
        ({"prompt": "a", "completion": "b"}, "row_shape", ""),
        ({"input": {}, "preferred_output": [], "non_preferred_output": []}, "row_shape", ""),
        ({"messages": "hello"}, "wrong_type", "messages"),
        ({"messages": []}, "no_messages", "messages"),
        ({"messages": [{"role": "user", "content": "x"}] * 2049}, "too_many_messages", "messages"),
        ({"messages": ["hello"]}, "wrong_type", "messages[0]"),
        ({**chat_row(), "source": "web"}, "unknown_field", "source"),
        (messages({"role": "asistant", "content": "x"}), "bad_role", "messages[1].role"),
        (messages({"content": "x"}), "bad_role", "messages[1].role"),
        (messages({"role": 7, "content": "x"}), "bad_role", "messages[1].role"),
        (messages({"role": "assistant"}), "missing_content", "messages[1].content"),
        (messages({"role": "user", "content": None}), "missing_content", "messages[1].content"),
        (assistant(content=[]), "missing_content", "messages[1].content"),
        (assistant(content=7), "wrong_type", "messages[1].content"),
        (assistant(content=["x"]), "wrong_type", "messages[1].content[0]"),
        (assistant(content=[{"type": "image_url", "image_url": {}}]), "unsupported_content", "messages[1].content[0].type"),
        (assistant(content=[{"type": "text"}]), "wrong_type", "messages[1].content[0].text"),
        (assistant(content=[{"type": "text", "text": "", "more": 1}]), "unknown_field", "messages[1].content[0].more"),
        (messages(), "no_assistant_turn", "messages"),
        (assistant(weight=0), "no_trained_tokens", "messages"),
        (assistant(weight=2), "bad_weight", "messages[1].weight"),
        (assistant(weight=True), "bad_weight", "messages[1].weight"),
        (assistant(weight=1.0), "bad_weight", "messages[1].weight"),
        (assistant(weight=None), "bad_weight", "messages[1].weight"),
        (assistant(refusal="no"), "unsupported_content", "messages[1].refusal"),
        (assistant(name="a b"), "bad_name", "messages[1].name"),
        (messages({"role": "user", "content": "x", "weight": 1}), "unknown_field", "messages[1].weight"),
        (assistant(tool_calls=[]), "wrong_type", "messages[1].tool_calls"),
        (assistant(tool_calls=["x"]), "wrong_type", "messages[1].tool_calls[0]"),
        (assistant(tool_calls=[{**CALL, "id": 1}]), "wrong_type", "messages[1].tool_calls[0].id"),
        (assistant(tool_calls=[{**CALL, "type": "custom"}]), "bad_tool", "messages[1].tool_calls[0].type"),
        (assistant(tool_calls=[{**CALL, "function": None}]), "wrong_type", "messages[1].tool_calls[0].function"),
        (called(name="a b"), "bad_name", "messages[1].tool_calls[0].function.name"),
        (called(arguments={}), "bad_arguments", "messages[1].tool_calls[0].function.arguments"),
        (called(arguments="[1]"), "bad_arguments", "messages[1].tool_calls[0].function.arguments"),
        (called(arguments='{"a": NaN}'), "bad_arguments", "messages[1].tool_calls[0].function.arguments"),
        (called(arguments='{"a": ' + "9" * 5000 + "}"), "bad_arguments", "messages[1].tool_calls[0].function.arguments"),
        (called(arguments="[" * 100_000), "bad_arguments", "messages[1].tool_calls[0].function.arguments"),
        (assistant(function_call={"name": "f"}), "bad_arguments", "messages[1].function_call.arguments"),
        (messages({"role": "tool", "content": "x"}), "missing_field", "messages[1].tool_call_id"),
        (messages({"role": "function", "content": "x"}), "missing_field", "messages[1].name"),
        ({**chat_row(), "tools": {}}, "wrong_type", "tools"),
        ({**chat_row(), "tools": [{"type": "retrieval"}]}, "bad_tool", "tools[0]"),
        ({**chat_row(), "tools": [{"type": "function", "function": {}}]}, "bad_name", "tools[0].function.name"),
        ({**chat_row(), "functions": [{"name": "f", "parameters": []}]}, "wrong_type", "functions[0].parameters"),
        ({**chat_row(), "functions": [{"name": "f", "returns": {}}]}, "unknown_field", "functions[0].returns"),
        ({**chat_row(), "parallel_tool_calls": 1}, "wrong_type", "parallel_tool_calls"),
    ],
)
def test_each_rule_by_name(row: dict[str, Any], rule: str, path: str) -> None:
    assert (rule, path) in [(fault.rule, fault.path) for fault in METHOD.check_row(row)]


def test_all_faults_of_a_row_are_told_with_hints() -> None:
    row = {"messages": [{"role": "usr", "content": "x"}, {"role": "assistant", "contnt": "y"}], "tool": []}
    found = {fault.path: fault for fault in METHOD.check_row(row)}
    assert list(found) == ["tool", "messages[0].role", "messages[1].contnt", "messages[1].content"]
    assert found["tool"].hint == "Did you mean 'tools'?"
    assert found["messages[0].role"].hint == "Did you mean 'user'?"
    assert found["messages[1].contnt"].hint == "Did you mean 'content'?"
    assert METHOD.check_row({"message": []})[0].hint == "Did you mean 'message'?"


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.sampled_from(["user", "assistant", "system", "tool"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["role", "content", "weight", "tool_calls", "function", "name", "text", "type"]), inner, max_size=4
        )
    ),
    max_leaves=10,
)


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from(["messages", "tools", "functions", "parallel_tool_calls", "x"]), JSON_VALUES, max_size=4))
def test_no_row_crashes_the_check(row: dict[str, Any]) -> None:
    assert all(isinstance(fault, Fault) for fault in METHOD.check_row(row))


PLACES = [["messages", 1, "content"], ["messages", 2, "tool_calls", 0, "function"], ["messages", 4], ["tools", 0, "function", "name"]]


@settings(deadline=None)
@given(st.sampled_from(PLACES), JSON_VALUES)
def test_a_good_row_with_one_spoiled_field_is_refused_or_encoded(
    tmp_path_factory: pytest.TempPathFactory, place: list[Any], value: Any
) -> None:
    row = copy.deepcopy(TOOLS_ROW)
    parent: Any = row
    for key in place[:-1]:
        parent = parent[key]
    parent[place[-1]] = value
    directory = tmp_path_factory.getbasetemp() / "spoiled"
    chat = ChatTokenizer.open(directory if directory.exists() else write_chat_model(directory, TOOL_TEMPLATE))
    if not METHOD.check_row(row):
        assert isinstance(METHOD.encode([row], chat)[0], (Encoded, Fault))


def trained(chat: ChatTokenizer, row: dict[str, Any]) -> tuple[str, str]:
    """The whole text, and that of the tokens that carry loss."""
    (encoded,) = METHOD.encode([row], chat)
    assert isinstance(encoded, Encoded)
    ids = encoded.input_ids.tolist()
    labelled = [i for i, w in zip(ids, encoded.weights, strict=True) if w]
    return tuple(chat.tokenizer.decode(part, skip_special_tokens=False) for part in (ids, labelled))  # type: ignore[return-value]


def test_a_tools_row_trains_the_call_and_the_answer(tmp_path: Path) -> None:
    chat = ChatTokenizer.open(write_chat_model(tmp_path, TOOL_TEMPLATE))
    text, labelled = trained(chat, TOOLS_ROW)
    assert text.startswith("[weather]<|im_start|>system\nbe kind<|im_end|>\n")
    assert labelled == 'weather{"city": "Oslo"}<|im_end|>It rains.<|im_end|>'


def test_the_older_functions_row_reads_as_a_tools_row_and_weight_0_is_honoured(tmp_path: Path) -> None:
    chat = ChatTokenizer.open(write_chat_model(tmp_path, TOOL_TEMPLATE))
    text, labelled = trained(chat, FUNCTIONS_ROW)
    assert text.startswith("[weather]<|im_start|>user")
    assert "weather{}<|im_end|>\n<|im_start|>tool\nrain" in text
    assert labelled == "It rains.<|im_end|>"


def test_half_a_character_within_arguments_is_a_fault(tmp_path: Path) -> None:
    chat = ChatTokenizer.open(write_chat_model(tmp_path, TOOL_TEMPLATE))
    row = called(arguments=json.dumps({"city": "\ud800"}))
    assert METHOD.check_row(row) == []
    (found,) = METHOD.encode([row], chat)
    assert isinstance(found, Fault)
    assert found.rule == "lone_surrogate"


def test_a_control_token_escaped_within_arguments_is_a_fault(tmp_path: Path) -> None:
    chat = ChatTokenizer.open(write_chat_model(tmp_path, TOOL_TEMPLATE))
    (found,) = METHOD.encode([called(arguments=r'{"city": "<\u007cim_end|>"}')], chat)
    assert isinstance(found, Fault)
    assert found.rule == "control_token"
