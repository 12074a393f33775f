"""Files that users bring, through the whole data check: every format, packed or not, right and wrong in every way that is known."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import struct
import tempfile
from collections.abc import Iterable
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from service.data_process import run_check
from service.data_report import CheckRequest, DataReport
from service.datasets import check
from service.formats.packed import Growth
from service.formats.rows import MAX_ROW_BYTES, Unreadable
from service.formats.source import Source
from tests.tiny_chat import chat_row, write_chat_model
from tests.unit.test_data_process import alone
from trainers.registry import Fault
from trainers.spec import DataSpec, MappingSpec

GROWTH = Growth(ratio=200, most=2**30)
PAIRS = [{"question": f"hello {i}", "answer": f"wörld; {i}, 😀\n{'x' * i}"} for i in range(12)]
TO_CHAT = MappingSpec(prompt="question", completion="answer")
SMALL_FRAME = {"gzip": gzip.compress, "zstd": zstandard.compress}


def as_jsonl(rows: Iterable[Any]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def as_json(rows: Iterable[Any], **style: Any) -> bytes:
    return json.dumps(list(rows), **style).encode()


def as_csv(rows: list[dict[str, Any]], **style: Any) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), **style)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def as_parquet(rows: list[dict[str, Any]], **style: Any) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), file, **style)
    return file.getvalue()


@pytest.fixture
def checked(tmp_path: Path) -> Any:
    """Writes the bytes to a file and checks it, in this process."""
    model_dir = write_chat_model(tmp_path / "model")

    def run(content: bytes, mapping: MappingSpec | None = None, format: str = "auto", **asked: Any) -> DataReport:
        path = tmp_path / "data.jsonl"
        path.write_bytes(content)
        data = DataSpec(format=format, mapping=mapping)  # type: ignore[arg-type]
        defaults: dict[str, Any] = {"max_length": 256, "overlong": "truncate", "min_rows": 1, "out_dir": str(tmp_path / "out")}
        request = CheckRequest(path=str(path), model_dir=str(model_dir), method="supervised", data=data, **(defaults | asked))
        report = check(request)
        assert report.sha256 == hashlib.sha256(content).hexdigest(), "the hash is that of the file, packed as it is"
        return report

    return run


def places(report: DataReport) -> list[tuple[int | None, str, str]]:
    return [(fault.line, fault.path, fault.rule) for fault in report.faults]


def rows_of(content: bytes, asked: str = "auto") -> list[tuple[int, Any]]:
    """Rows with their numbers; where the rest can't be read, its fault with that row."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "data"
        path.write_bytes(content)
        found: list[tuple[int, Any]] = []
        with Source(path, GROWTH) as source:
            try:
                found.extend((number, row) for number, row, _ in source.rows(asked))
            except Unreadable as end:
                found.append((end.row or 0, end.fault))
            assert source.sha256() == hashlib.sha256(content).hexdigest()
        return found


def rules(content: bytes, asked: str = "auto") -> list[Any]:
    """As `rows_of`, with rules in place of faults and rows."""
    return [(number, row.rule if isinstance(row, Fault) else "") for number, row in rows_of(content, asked)]


# The same rows in every form


FORMS = {
    "jsonl": as_jsonl(PAIRS),
    "json": as_json(PAIRS),
    "json, indented": as_json(PAIRS, indent=2, ensure_ascii=False),
    "csv": as_csv(PAIRS),
    "csv; with byte order mark": b"\xef\xbb\xbf" + as_csv(PAIRS, delimiter=";", lineterminator="\n"),
    "csv, tabs, all quoted": as_csv(PAIRS, delimiter="\t", quoting=csv.QUOTE_ALL),
    "parquet": as_parquet(PAIRS),
    "parquet, zstd, groups of 5": as_parquet(PAIRS, compression="zstd", row_group_size=5),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_format_gives_the_same_dataset(checked: Any, tmp_path: Path, form: str) -> None:
    checked(as_jsonl(chat_row(row["question"], row["answer"]) for row in PAIRS))
    expected = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    packings = [lambda data: data, gzip.compress, zstandard.compress, _two_members, lambda data: _skippable() + zstandard.compress(data)]
    for pack in packings:
        report = checked(pack(FORMS[form]), TO_CHAT)
        assert places(report) == []
        assert (report.rows, report.format) == (12, form.split(",")[0].split(";")[0])
        assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == expected
    assert checked(FORMS[form], TO_CHAT, format=report.format).ok, "what was detected may also be asked for"


def _two_members(data: bytes) -> bytes:
    half = len(data) // 2
    return gzip.compress(data[:half]) + gzip.compress(b"") + gzip.compress(data[half:])


def _skippable() -> bytes:
    return b"\x53\x2a\x4d\x18" + struct.pack("<I", 3) + b"abc"


async def test_parquet_packed_again_fits_the_process_limits(tmp_path: Path) -> None:
    """In its own process, with the smallest memory that a gateway may be told to give it."""
    path = tmp_path / "data"
    path.write_bytes(gzip.compress(as_parquet([chat_row(f"hello {i}", "world") for i in range(3000)])))
    model = str(write_chat_model(tmp_path / "model"))
    request = CheckRequest(
        path=str(path), model_dir=model, method="supervised", max_length=64, overlong="drop", out_dir=str(tmp_path / "out")
    )
    report = await run_check(request, memory_bytes=700 * 2**20, timeout=timedelta(seconds=60))
    assert (report.rows, report.format) == (3000, "parquet")
    assert [path.name for path in tmp_path.iterdir()].count("out") == 1


# Conversations


SHARE_GPT = {"id": 1, "conversation": [{"from": "human", "value": "hi", "html": None}, {"from": "gpt", "value": "yo", "weight": 1}]}
TO_SHARE_GPT = MappingSpec(messages="conversation", role="from", content="value", roles={"human": "user", "gpt": "assistant"})


@pytest.mark.parametrize("form", [as_jsonl, as_json, as_parquet])
def test_conversations_of_any_format(checked: Any, form: Any) -> None:
    assert checked(form([chat_row()] * 3)).rows == 3
    assert checked(form([SHARE_GPT] * 3), TO_SHARE_GPT).rows == 3


def test_fields_that_parquet_must_give_every_message_are_no_fields_where_they_are_null(checked: Any) -> None:
    call = [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
    rich = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": 0}]}
    other = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "c", "name": "n"}], "tools": None}
    assert checked(as_parquet([other, rich, other])).faults_by_rule == {"no_trained_tokens": 1}
    assert [row["messages"][1] for _, row in rows_of(as_parquet([other, rich]))] == [other["messages"][1], rich["messages"][1]]
    with_call = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": None, "tool_calls": call}]}
    assert rows_of(as_parquet([with_call]))[0][1]["messages"][1] == {"role": "assistant", "tool_calls": call}


def test_a_conversation_as_text_in_a_table(checked: Any) -> None:
    table = as_csv([{"id": i, "chat": json.dumps(chat_row()["messages"])} for i in range(3)])
    assert checked(table, MappingSpec(messages="chat")).rows == 3
    wrong = as_csv([{"id": 1, "chat": "hello"}, {"id": 2, "chat": '[{"role": "user", "role": "user"}]'}, {"id": 3, "chat": '"\\ud800"'}])
    report = checked(wrong, MappingSpec(messages="chat"))
    assert places(report) == [(1, "chat", "bad_json"), (2, "chat", "duplicate_key"), (3, "chat", "lone_surrogate")]


# Mapping


def test_system_message_and_dotted_paths(checked: Any) -> None:
    rows = [
        {"in": {"text": "q"}, "out": [{"text": "a"}], "rules": "be brief", "a.b": "dots"},
        {"in": {"text": "q"}, "out": [{"text": "a"}], "a.b": "dots"},
    ]
    mapping = MappingSpec(prompt="in.text", completion="out.0.text", system="rules")
    assert checked(as_jsonl(rows), mapping).rows == 2
    assert checked(as_parquet(rows), mapping).rows == 2
    assert checked(as_jsonl(rows), MappingSpec(prompt="a.b", completion="out.0.text")).rows == 2
    assert places(checked(as_jsonl(rows), MappingSpec(prompt="in.text", completion="out.1.text")))[0] == (1, "out.1.text", "missing_column")


def test_a_missing_column_is_named_beside_those_there_are(checked: Any) -> None:
    report = checked(as_jsonl([PAIRS[0], {"question": "a", "anwser": "b"}, {"question": None, "answer": "b"}]), TO_CHAT)
    assert places(report) == [(2, "answer", "missing_column"), (3, "question", "missing_column")]
    assert "'answer'" in report.faults[0].message
    assert report.faults[0].hint == "The columns here are question, anwser."


@pytest.mark.parametrize("form", [as_csv, as_parquet])
def test_a_column_that_a_table_lacks_is_told_once(checked: Any, form: Any) -> None:
    report = checked(form(PAIRS), MappingSpec(prompt="question", completion="reply", system="rules"))
    assert places(report) == [(None, "reply", "missing_column"), (None, "rules", "missing_column")]
    assert report.faults[0].hint == "The columns here are question, answer."


def test_the_methods_own_rules_hold_for_mapped_rows(checked: Any) -> None:
    report = checked(as_jsonl([{"question": 3, "answer": "a"}, {"question": "<|im_end|>", "answer": "a"}]), TO_CHAT)
    assert places(report) == [(1, "messages[0].content", "wrong_type"), (2, "messages[0].content", "control_token")]
    odd = {"conversation": [{"from": "human", "value": "a"}, {"from": "bot", "value": "b"}, "c", {"value": "d"}]}
    report = checked(as_jsonl([odd]), TO_SHARE_GPT)
    assert places(report) == [
        (1, "messages[1].role", "bad_role"), (1, "messages[2]", "wrong_type"), (1, "messages[3].role", "bad_role")
    ]  # fmt: skip
    assert places(checked(as_jsonl([{"conversation": 1}]), TO_SHARE_GPT)) == [(1, "messages", "wrong_type")]


def test_rows_of_other_columns_are_told_of_the_mapping(checked: Any) -> None:
    report = checked(as_csv(PAIRS))
    assert report.faults_by_rule == {"missing_field": 12}
    assert "tunesmith.data.mapping" in report.faults[0].hint


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"prompt": "a", "completion": "b", "messages": "c"}, "only one of the two"),
        ({"prompt": "a", "completion": "b", "roles": {"a": "user"}}, "only one of the two"),
        ({"prompt": "a"}, "prompt and completion are needed"),
        ({"system": "a"}, "prompt and completion are needed"),
        ({"role": "a"}, "must name"),
        ({}, "must name"),
    ],
)
def test_a_mapping_that_contradicts_itself(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        MappingSpec(**wrong)


# What a file is


@pytest.mark.parametrize(
    ("content", "asked", "rule"),
    [
        (FORMS["parquet"], "jsonl", "format_mismatch"),
        (FORMS["parquet"], "csv", "format_mismatch"),
        (FORMS["jsonl"], "parquet", "format_mismatch"),
        (FORMS["json"], "jsonl", "format_mismatch"),
        (FORMS["jsonl"], "json", "format_mismatch"),
        (FORMS["json"], "csv", "format_mismatch"),
        (FORMS["csv"], "json", "format_mismatch"),
        (FORMS["csv"], "jsonl", "bad_json"),
        (gzip.compress(FORMS["parquet"]), "jsonl", "format_mismatch"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "auto", "binary"),
        (b"\x7fELF\x02\x01\x01" + bytes(9), "csv", "binary"),
        (b"PK\x03\x04rest", "auto", "compressed"),
        (gzip.compress(gzip.compress(b"{}")), "auto", "compressed"),
        ('{"messages": []}\n'.encode("utf-16"), "auto", "bad_encoding"),
        ('{"messages": []}\n'.encode("utf-16-le"), "auto", "bad_encoding"),
        ('{"messages": []}\n'.encode("utf-16-be"), "json", "bad_encoding"),
        (b"\xef\xbb\xbf[{}]", "auto", "byte_order_mark"),
        (b"PAR1", "auto", "bad_parquet"),
        (b"PAR1" + bytes(100) + b"PAR1", "auto", "bad_parquet"),
    ],
)
def test_a_file_that_is_not_what_it_is_called(checked: Any, content: bytes, asked: str, rule: str) -> None:
    report = checked(content, format=asked)
    assert report.faults[0].rule == rule
    assert "too_few_examples" not in report.faults_by_rule


@pytest.mark.parametrize("asked", ["auto", "jsonl", "json", "csv", "parquet"])
@pytest.mark.parametrize("content", [b"", b"\n \n", gzip.compress(b""), zstandard.compress(b"\n")])
def test_empty(checked: Any, content: bytes, asked: str) -> None:
    assert places(checked(content, format=asked)) == [(None, "", "empty_file")]


def written(table: pa.Table) -> bytes:
    file = io.BytesIO()
    pq.write_table(table, file)
    return file.getvalue()


NO_ROWS = written(pa.table({"question": pa.array([], pa.string()), "answer": pa.array([], pa.string())}))


@pytest.mark.parametrize("content", [b"[]", b" [\n]\n", as_csv(PAIRS).split(b"\r\n")[0], NO_ROWS], ids=["json", "spaced", "csv", "parquet"])
def test_a_file_without_rows(checked: Any, content: bytes) -> None:
    assert places(checked(content)) == [(None, "", "empty_file")]


@pytest.mark.parametrize("line", [b"x" * 100, b"nonsense here", b"no, names: here", b'"messages": [1, 2]}', b"a,,b", b"a,b;c"])
def test_text_is_taken_for_csv_only_with_a_header(line: bytes) -> None:
    assert rules(line + b"\n" + line) == [(1, "bad_json"), (2, "bad_json")]


def test_mixed_shapes_are_told_by_row(checked: Any) -> None:
    mixed = [chat_row(), {"prompt": "a", "completion": "b"}]
    report = checked(as_json(mixed))
    assert places(report) == [(2, "", "mixed_row_shapes")]
    assert "row 1 is a chat row" in report.faults[0].message
    assert report.summary.startswith("Invalid file format. Row 2:")


# Packed


@pytest.mark.parametrize("pack", SMALL_FRAME.values(), ids=SMALL_FRAME)
def test_a_bomb_is_told_before_it_bursts(checked: Any, pack: Any) -> None:
    bomb = pack(b"0" * 60_000_000)
    report = checked(bomb)
    assert report.faults_by_rule.keys() >= {"compression_bomb"}
    assert (report.complete, report.ok) == (False, False)
    many = as_jsonl([chat_row()] * 200_000)
    report = checked(pack(many), max_unpacked_bytes=4 * 10**6)
    assert places(report) == [(None, "", "compression_bomb")]
    assert checked(pack(as_jsonl([chat_row()] * 20_000))).ok, "a small file may be as repetitive as it likes"


def test_a_table_may_be_a_bomb_too(checked: Any) -> None:
    content = written(pa.table({"question": ["x" * 1_000_000] * 40, "answer": ["y"] * 40}))
    assert len(content) < 100_000
    assert places(checked(content, TO_CHAT)) == [(None, "", "compression_bomb")]


@pytest.mark.parametrize("pack", SMALL_FRAME.values(), ids=SMALL_FRAME)
def test_a_broken_stream(checked: Any, pack: Any) -> None:
    whole = pack(as_jsonl(chat_row(f"{i}", hashlib.sha256(str(i).encode()).hexdigest()) for i in range(300)))
    flipped = bytearray(whole)
    flipped[len(flipped) // 2] ^= 0xFF
    flips = [bytes(flipped)] if pack is gzip.compress else []  # zstd has no checksum unless asked for one
    for content in (whole[:-1], whole[: len(whole) // 2], whole + b"garbage", whole + b"\0", *flips, whole[:6]):
        report = checked(content)
        assert places(report)[-1] == (None, "", "compressed_data_broken") or "bad_json" in report.faults_by_rule
        assert (report.complete, report.ok) == (False, False)
    assert "follows its end" in checked(whole + b"garbage").faults[-1].message
    assert checked(whole + whole).rows == 600
    other = gzip.compress(b"{}") if pack is zstandard.compress else zstandard.compress(b"{}")
    assert "compressed_data_broken" in checked(whole + other).faults_by_rule


# JSON arrays


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b'[{"a": 1}, {"b": nonsense}, {"c": 1, "c": 2}, {"d": 1}]', ["", "bad_json", "duplicate_key", ""]),
        (b'[5, [1], "x", null, {}]', [*["not_an_object"] * 4, ""]),
        (b'[{"a": "\\\\"}, {"b": "]},{[\\""}]', ["", ""]),
        (b'[{"a": 1},]', ["", "bad_json"]),
        (b'[,{"a": 1}]', ["bad_json", ""]),
        (b'[{"a": 1}', ["bad_json"]),
        (b'[{"a": 1}, {"b": "', ["", "bad_json"]),
        (b'[{"a": 1}]]', ["", "bad_json"]),
        (b'[{"a": 1}]\n[{"a": 1}]', ["", "bad_json"]),
        (b'[{"a": 1}}', ["bad_json"]),
        (b'[{"a": [1}]}, {"b": 1}]', ["bad_json"]),
        (b'[{"a": ' + b"[" * 50 + b"]" * 50 + b"}, {}]", ["too_deep", ""]),
        (b"[" * 200_000 + b"]" * 200_000, ["too_deep"]),
        (b'[{"a": NaN}, {"b": 1e400}, {"c": ' + b"9" * 5000 + b"}]", ["bad_number"] * 3),
        (b'[{"a": "\\ud800"}, {"b": "\\u0000"}, {"c": "\xff"}]', ["lone_surrogate", "control_character", "bad_encoding"]),
    ],
)  # fmt: skip
def test_faults_of_an_array_are_of_their_row(content: bytes, expected: list[str]) -> None:
    assert [rule for _, rule in rules(content)] == expected


def test_what_is_wrong_within_a_row_of_many_lines_is_placed_in_it() -> None:
    ((number, fault),) = [found for found in rows_of(b'[{"a": 1},\n{\n  "b": no\n}]') if isinstance(found[1], Fault)]
    assert (number, fault.rule) == (2, "bad_json")
    assert "line 2 of the row, column 8" in fault.message


def test_one_huge_row_of_an_array_leaves_the_others(checked: Any) -> None:
    huge = json.dumps(chat_row("x" * (MAX_ROW_BYTES + 100))).encode()
    row = json.dumps(chat_row()).encode()
    report = checked(b"[" + row + b"," + huge + b"," + row + b"]")
    assert places(report) == [(2, "", "row_too_long")]
    assert (report.examples, report.complete) == (3, True)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**18), 10**18) | st.text('ab\\"[]{},: \n', max_size=12),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text('a"\\]', max_size=3), inner, max_size=4),
    max_leaves=12,
)


@settings(deadline=None)
@given(st.lists(st.dictionaries(st.text("ab\\", max_size=4), JSON_VALUES, max_size=4), max_size=6), st.integers(1, 9), st.booleans())
def test_an_array_comes_back_as_it_was_wherever_it_is_cut(rows: list[dict[str, Any]], piece: int, indented: bool) -> None:
    from service.formats import json_array

    text = json.dumps(rows, indent=1 if indented else None).encode()
    before, json_array._PIECE = json_array._PIECE, piece
    try:
        assert [row for _, row, _ in json_array.JsonArray(io.BufferedReader(io.BytesIO(text)))] == rows  # type: ignore[type-var]
    finally:
        json_array._PIECE = before


@settings(deadline=None, max_examples=200)
@given(st.text('[]{}",\\ a1:\n', max_size=30), st.sampled_from(["auto", "jsonl", "json", "csv"]))
def test_no_text_crashes_a_reader(text: str, asked: str) -> None:
    rows_of(text.encode(), asked)


# CSV


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b'a,b\n1,2\n3\n4,5,6\n7,"8\n9"\n', [(1, ""), (2, "column_count"), (3, "column_count"), (4, "")]),
        (b'a,b\n1,"2"x\n3,4\n', [(1, "bad_csv"), (2, "")]),
        (b'a,b\n1,2\n3,"4\n5,6\n', [(1, ""), (2, "bad_csv")]),
        (b"a,b\n1,\xff\n3,4\n", [(1, "bad_encoding"), (2, "")]),
        (b"a,b\n1,\x1b[31m\n3," + b"x" * 5000 + b"\0\n", [(1, "control_character"), (2, "control_character")]),
        (b"a,b\n\n1,2\n\n\n", [(1, "blank_line"), (2, "")]),
        (b"a,a\n1,2\n", [(0, "bad_header")]),
        (b'a,""\n1,2\n', [(0, "bad_header")]),
        (b"a,b\n1,2\r3,4\n", [(1, "bad_csv")]),
        (b'"a;b",c\n1,2\n', [(1, "")]),
        (b"a;b,c\n1,2\n", [(0, "bad_header")]),
        (b"," * 2000 + b"\n", [(0, "bad_header")]),
        (b"a\n1\n", [(1, "")]),
    ],
)
def test_faults_of_a_csv_file(content: bytes, expected: list[tuple[int, str]]) -> None:
    assert rules(content, "csv") == expected


def test_a_quote_that_is_never_closed_ends_the_reading(checked: Any) -> None:
    report = checked(b'question,answer\na,b\nc,"' + b"d\n" * (MAX_ROW_BYTES // 2 + 10), TO_CHAT)
    assert places(report) == [(2, "", "row_too_long")]
    assert (report.rows, report.complete) == (1, False)


def test_spaces_around_names_are_no_part_of_them() -> None:
    assert rows_of(b"question , answer\na, b\n") == [(1, {"question": "a", "answer": " b"})]


# Parquet


def test_values_that_json_does_not_have() -> None:
    table = pa.table(
        {
            "day": pa.array([date(2026, 1, 2)] * 3),
            "bytes": pa.array([b"text", b"\xff", None]),
            "number": pa.array([1.5, 2.5, float("nan")]),
            "map": pa.array([[("k", 1)]] * 3, pa.map_(pa.string(), pa.int64())),
            "kind": pa.array(["x", "y", "x"]).dictionary_encode(),
        }
    )
    content = written(table)
    (_, first), (_, second), (_, third) = rows_of(content)
    assert first == {"day": "2026-01-02", "bytes": "text", "number": 1.5, "map": {"k": 1}, "kind": "x"}
    assert (second.path, second.rule) == ("bytes", "bad_encoding")
    assert (third.path, third.rule) == ("number", "bad_number")


def test_a_text_of_parquet_that_is_no_text() -> None:
    buffers = [None, pa.py_buffer(struct.pack("<3i", 0, 1, 2)), pa.py_buffer(b"a\xff")]
    table = pa.table({"text": pa.Array.from_buffers(pa.string(), 2, buffers)})
    assert rules(written(table)) == [(1, ""), (2, "bad_encoding")]
    assert rules(as_parquet([{"text": "a\x1bb"}, {"text": "a"}])) == [(1, "control_character"), (2, "")]


def test_parquet_that_nests_too_deep() -> None:
    for depth in (40, 2000):
        kind = pa.string()
        for _ in range(depth):
            kind = pa.struct([("f", kind)])
        value: Any = "x"
        for _ in range(depth):
            value = {"f": value}
        table = pa.table({"m": pa.array([value], kind) if depth < 60 else pa.nulls(1, kind)})
        assert rules(written(table))[0][1] == ("too_deep" if depth < 60 else "bad_parquet")


def test_a_huge_row_of_parquet_leaves_the_others() -> None:
    found = rules(as_parquet([{"a": "x"}, {"a": "y" * (MAX_ROW_BYTES + 1)}, {"a": "z"}]))
    assert found == [(1, ""), (2, "row_too_long"), (3, "")]


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_flipped_bytes_of_parquet_are_faults(data: st.DataObject) -> None:
    whole = bytearray(FORMS["parquet"])
    at = data.draw(st.integers(4, len(whole) - 1))
    whole[at] = data.draw(st.integers(0, 255))
    rows_of(bytes(whole))


# Large, in a process of its own whose peak memory is measured


@pytest.mark.parametrize("begin", [b"", b"["])
def test_one_huge_row_is_read_in_constant_memory(tmp_path: Path, begin: bytes) -> None:
    path = tmp_path / "data"
    row = json.dumps(chat_row()).encode()
    between = b"," if begin else b"\n"
    with path.open("wb") as file:
        file.write(begin + row + between + b'{"messages": [{"role": "user", "content": "' + b"x" * 8192)
        file.truncate(file.tell() + 200 * 2**20)  # a hole takes no disk
        file.seek(0, io.SEEK_END)
        file.write(b'"}]}' + between + row + (b"]" if begin else b""))
    report, peak = alone(_asked(tmp_path, path))
    assert [fault.line for fault in report.faults] == [2]
    assert report.faults[0].rule in ("row_too_long", "line_too_long")
    assert (report.examples, report.complete) == (3, True)
    assert peak < 180 * 2**20


@pytest.mark.parametrize(
    "content", [b"[" + b"{}," * 10**6, b"a,b\n" + b"1,2\n" * 10**6, gzip.compress(b"{}\n" * 10**6)], ids=["json", "csv", "gzip"]
)
def test_a_million_faulty_rows_end_early_in_constant_memory(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "data"
    path.write_bytes(content)
    report, peak = alone(_asked(tmp_path, path))
    assert report.fault_count >= 100_000
    assert (len(report.faults), report.complete) == (50, False)
    assert peak < 180 * 2**20


def _asked(tmp_path: Path, path: Path) -> CheckRequest:
    model = str(write_chat_model(tmp_path / "model"))
    return CheckRequest(path=str(path), model_dir=model, method="supervised", max_length=64, overlong="drop", min_rows=1)
