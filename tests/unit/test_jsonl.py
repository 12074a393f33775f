"""Lines of a JSON Lines file: what is refused, with which words, and that nothing long is held."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.formats.rows import MAX_ROW_BYTES
from service.jsonl import MAX_NESTING, JsonLines, parse_row
from trainers.registry import Fault


def fault_of(line: bytes) -> Fault:
    found = parse_row(line)
    assert isinstance(found, Fault)
    return found


@pytest.mark.parametrize(
    ("line", "rule", "words"),
    [
        (b'{"a": 1', "bad_json", "column"),
        (b"{", "bad_json", "column"),
        (b'{"a": 1} {"b": 2}', "bad_json", "Extra data"),
        (b"{'a': 1}", "bad_json", "double quotes"),
        (b'{"a": "x\ty"}', "bad_json", "control character"),
        (b"[1]", "not_an_object", "not a JSON object"),
        (b'"text"', "not_an_object", "not a JSON object"),
        (b'{"a": NaN}', "bad_number", "NaN"),
        (b'{"a": -Infinity}', "bad_number", "-Infinity"),
        (b'{"a": 1e400}', "bad_number", "too large"),
        (b'{"a": ' + b"9" * 5000 + b"}", "bad_number", "too many digits"),
        (b'{"a": 1, "b": {"c": 1, "c": 2}}', "duplicate_key", '"c" comes twice'),
        (b'{"a": "\\ud800"}', "lone_surrogate", "surrogate"),
        (b'{"a": "\\udc00\\ud800"}', "lone_surrogate", "surrogate"),
        (b'{"\\ud800": 1}', "lone_surrogate", "surrogate"),
        (b'{"a": "\\u0000"}', "control_character", "U+0000"),
        (b'{"a": "\\u001B[31m"}', "control_character", "U+001B"),
        (b'{"a": ' + b"[" * 40 + b"]" * 40 + b"}", "too_deep", str(MAX_NESTING)),
        (b'{"a": ' + b"[" * 200_000 + b"]" * 200_000 + b"}", "too_deep", str(MAX_NESTING)),
        (b'{"a":' * 200_000 + b"1" + b"}" * 200_000, "too_deep", str(MAX_NESTING)),
        (b"\xef\xbb\xbf{}", "byte_order_mark", "byte order mark"),
        (b'{"a": "\xe9"}', "bad_encoding", "0xe9"),
    ],
)
def test_a_faulty_line_is_told_by_rule(line: bytes, rule: str, words: str) -> None:
    found = fault_of(line)
    assert found.rule == rule
    assert words in found.message
    assert len(found.message) < 300


def test_the_field_of_a_bad_text_is_named() -> None:
    assert fault_of(b'{"messages": [{"content": "\\ud800"}]}').path == "messages[0].content"


def test_a_surrogate_pair_tab_newline_and_nesting_at_the_limit_are_good() -> None:
    row = {"a": "😀 \t\n\r", "b": json.loads("[" * (MAX_NESTING - 1) + "]" * (MAX_NESTING - 1))}
    assert parse_row(json.dumps(row).encode()) == row


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**18), 10**18) | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@settings(deadline=None)
@given(st.dictionaries(st.text(max_size=8), JSON_VALUES, max_size=5), st.booleans())
def test_an_object_comes_back_as_it_was_or_is_refused_for_its_text(row: dict[str, Any], ascii_only: bool) -> None:
    found = parse_row(json.dumps(row, ensure_ascii=ascii_only).encode())
    assert found == row or (isinstance(found, Fault) and found.rule == "control_character")


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_no_bytes_crash_the_parser(line: bytes) -> None:
    assert isinstance(parse_row(line), (dict, Fault))


def lines(content: bytes) -> list[Any]:
    return [(number, row) for number, row, _ in JsonLines(io.BufferedReader(io.BytesIO(content)))]  # type: ignore[type-var]


def test_lines_end_as_they_do_on_any_system() -> None:
    assert lines('{"a": "日本語"}\r\n{"b": 1}'.encode()) == [(1, {"a": "日本語"}), (2, {"b": 1})]


@pytest.mark.parametrize(("extra", "fits"), [(0, True), (1, False), (3 * 2**20, False)])
def test_a_line_is_read_up_to_the_limit_and_passed_over_beyond(extra: int, fits: bool) -> None:
    frame = b'{"a": ""}'
    long = frame[:-2] + b"x" * (MAX_ROW_BYTES - len(frame) + extra) + frame[-2:]
    (_, first), second = lines(long + b'\n{"b": 1}')
    assert second == (2, {"b": 1})
    if fits:
        assert first == json.loads(long)
    else:
        assert isinstance(first, Fault)
        assert first.rule == "line_too_long"
