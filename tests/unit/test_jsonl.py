"""Lines of a JSON Lines file: what is refused, with which words, and that nothing is held or unpacked."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.jsonl import MAX_LINE_BYTES, MAX_NESTING, LineReader, parse_row
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


@pytest.mark.parametrize(
    ("content", "rule"),
    [
        (gzip.compress(b'{"messages": []}\n' * 100_000), "compressed"),
        (b"PK\x03\x04rest", "compressed"),
        (b"\x28\xb5\x2f\xfdrest", "compressed"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "binary"),
        (b"\x7fELF\x02\x01\x01" + bytes(9), "binary"),
        ('{"messages": []}\n'.encode("utf-16"), "bad_encoding"),
        ('{"messages": []}\n'.encode("utf-16-le"), "bad_encoding"),
        ('{"messages": []}\n'.encode("utf-16-be"), "bad_encoding"),
    ],
)
def test_a_file_that_is_no_text_is_refused_by_its_first_bytes(content: bytes, rule: str) -> None:
    reader = LineReader(io.BytesIO(content))
    refusal = reader.refusal()
    assert refusal is not None
    assert refusal.rule == rule
    assert reader.bytes_read == 0
    assert reader.sha256() == hashlib.sha256(content).hexdigest()


def test_text_is_not_refused_and_nothing_is_lost_by_looking() -> None:
    content = '{"a": "日本語"}\r\n{"b": 1}'.encode()
    reader = LineReader(io.BytesIO(content))
    assert reader.refusal() is None
    assert list(reader) == ['{"a": "日本語"}'.encode(), b'{"b": 1}']
    assert (reader.sha256(), reader.bytes_read) == (hashlib.sha256(content).hexdigest(), len(content))


@pytest.mark.parametrize(("extra", "fits"), [(0, True), (1, False), (3 * 2**20, False)])
def test_a_line_is_read_up_to_the_limit_and_passed_over_beyond(extra: int, fits: bool) -> None:
    long = b"x" * (MAX_LINE_BYTES + extra)
    first, second = list(LineReader(io.BytesIO(long + b"\nnext")))
    assert second == b"next"
    if fits:
        assert first == long
    else:
        assert isinstance(first, Fault)
        assert first.rule == "line_too_long"
