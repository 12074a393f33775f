"""The data check in one process: every kind of wrong file by name, and what is counted of a good one."""

from __future__ import annotations

import hashlib
import json
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from service import datasets
from service.data_report import CheckRequest, DataReport, LineFault, failed_report
from service.datasets import cache_key, check
from tests.tiny_chat import CHATML, chat_row, write_chat_model, write_rows
from trainers.data import TokenisedDataset
from trainers.registry import Fault
from trainers.spec import DataSpec

GOOD = json.dumps(chat_row()).encode()


@pytest.fixture
def checked(tmp_path: Path) -> Any:
    """Writes the lines to a file and checks it."""
    model_dir = write_chat_model(tmp_path / "model")

    def run(lines: list[Any] | bytes, **asked: Any) -> DataReport:
        path = tmp_path / "rows.jsonl"
        path.write_bytes(lines) if isinstance(lines, bytes) else write_rows(path, lines)
        defaults: dict[str, Any] = {"max_length": 64, "overlong": "truncate", "min_rows": 1, "out_dir": str(tmp_path / "out")}
        request = CheckRequest(path=str(path), model_dir=str(model_dir), method="supervised", **(defaults | asked))
        report = check(request)
        assert (report.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()) or report.failure
        assert report == DataReport.model_validate_json(report.model_dump_json()), "a report is a plain value"
        assert report.ok == (tmp_path / "out" / "meta.json").exists() or "out_dir" in asked
        return report

    return run


def places(report: DataReport) -> list[tuple[int | None, str, str]]:
    return [(fault.line, fault.path, fault.rule) for fault in report.faults]


# What is wrong with a file, by the names of the list in the reliability notes


def test_empty(checked: Any) -> None:
    for content in (b"", b"\n\n  \n"):
        report = checked(content)
        assert places(report) == [(None, "", "empty_file")]
        assert (report.summary, report.error_code) == ("Training file is empty", "invalid_training_file")
    assert checked(b"", param="validation_file").summary == "Validation file is empty"


def test_bad_json_on_line_n(checked: Any) -> None:
    report = checked([chat_row(), '{"messages": [', chat_row(), "nonsense"])
    assert places(report) == [(2, "", "bad_json"), (4, "", "bad_json")]
    assert report.summary.startswith("Invalid file format. Line 2: not valid JSON:")
    assert report.summary.endswith("(2 faults in 2 lines)")
    assert (report.examples, report.faulty_lines, report.error_code) == (4, 2, "invalid_training_file")


def test_mixed_row_shapes(checked: Any) -> None:
    report = checked([chat_row(), {"prompt": "a", "completion": "b"}])
    assert places(report) == [(2, "", "mixed_row_shapes")]
    assert "line 1 is a chat row" in report.faults[0].message


def test_bad_role(checked: Any) -> None:
    report = checked([{"messages": [{"role": "usr", "content": "a"}, {"role": "assistant", "content": "b"}]}])
    assert places(report) == [(1, "messages[0].role", "bad_role")]
    assert report.summary == 'Invalid file format. Line 1, messages[0].role: "usr" is not a role'
    assert report.faults[0].hint == "Did you mean 'user'?"


def test_missing_content(checked: Any) -> None:
    report = checked([{"messages": [{"role": "user"}, {"role": "assistant", "content": "b"}]}])
    assert places(report) == [(1, "messages[0].content", "missing_content")]


def test_no_assistant_turn(checked: Any) -> None:
    assert places(checked([{"messages": [{"role": "user", "content": "a"}]}])) == [(1, "messages", "no_assistant_turn")]


def test_zero_trainable_tokens(checked: Any, tmp_path: Path) -> None:
    assert places(checked([chat_row(weight=0)])) == [(1, "messages", "no_trained_tokens")]
    write_chat_model(tmp_path / "model", "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}")
    assert places(checked([chat_row()])) == [(1, "", "no_trained_tokens")]


def test_too_few_examples(checked: Any) -> None:
    report = checked([chat_row()] * 7, min_rows=10)
    assert places(report) == [(None, "", "too_few_examples")]
    assert report.summary == "Training file has 7 example(s), but must have at least 10 examples"
    assert report.error_code == "invalid_n_examples"
    assert checked([chat_row()] * 10, min_rows=10).ok


def test_too_few_examples_beside_another_fault_is_told_last(checked: Any) -> None:
    report = checked([chat_row(), "x"], min_rows=10)
    assert [rule for _, _, rule in places(report)] == ["bad_json", "too_few_examples"]
    assert report.error_code == "invalid_training_file"


def test_binary_renamed_jsonl(checked: Any) -> None:
    assert places(checked(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", min_rows=10)) == [(1, "", "binary")]


def test_utf_16_and_byte_order_mark(checked: Any) -> None:
    assert places(checked((GOOD + b"\n").decode().encode("utf-16"))) == [(1, "", "bad_encoding")]
    assert places(checked(b"\xef\xbb\xbf" + GOOD)) == [(1, "", "byte_order_mark")]


def test_control_tokens_in_user_text(checked: Any) -> None:
    report = checked([chat_row("a<|im_end|>\n<|im_start|>assistant\nyes")])
    assert places(report) == [(1, "messages[0].content", "control_token")]
    assert "<|im_end|>" in report.summary


@pytest.mark.parametrize(
    ("line", "rule"),
    [
        (b'{"messages": NaN}', "bad_number"),
        (b'{"messages": [], "messages": []}', "duplicate_key"),
        (b'{"messages": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "too_deep"),
        (b'{"messages": ' + b"1" * 5_000 + b"}", "bad_number"),
        (b'{"messages": [{"role": "user", "content": "\\ud800"}]}', "lone_surrogate"),
        (b'{"messages": "\xff"}', "bad_encoding"),
    ],
)
def test_lines_that_json_readers_take_differently(checked: Any, line: bytes, rule: str) -> None:
    assert places(checked([GOOD, line, GOOD]))[0][::2] == (2, rule)


def test_blank_lines_are_faults_except_at_the_end(checked: Any) -> None:
    report = checked(GOOD + b"\n\n \n" + GOOD + b"\n\n\n")
    assert places(report) == [(2, "", "blank_line"), (3, "", "blank_line")]
    assert report.examples == 2
    assert checked(GOOD + b"\r\n" + GOOD + b"\n\n").rows == 2


def test_a_line_too_long_is_one_fault_and_the_rest_is_still_read(checked: Any) -> None:
    report = checked(GOOD + b"\n" + b'{"a": "' + b"x" * (9 * 2**20) + b'"}\n' + b"oops\n")
    assert places(report) == [(2, "", "line_too_long"), (3, "", "bad_json")]


def test_faults_are_counted_far_beyond_those_listed(checked: Any) -> None:
    report = checked(b'{"messages": 1}\n' * 99_000 + GOOD + b"\n")
    assert [fault.line for fault in report.faults] == list(range(1, 51))
    assert (report.fault_count, report.faulty_lines, report.complete) == (99_000, 99_000, True)
    assert report.faults_by_rule == {"wrong_type": 99_000}
    assert report.summary.endswith("(99,000 faults in 99,000 lines)")


def test_a_file_of_nothing_but_faults_is_not_read_to_its_end(checked: Any) -> None:
    report = checked(b"{}\n" * 150_000, limit=3)
    assert 100_000 <= report.faulty_lines < 101_000
    assert (len(report.faults), report.complete) == (3, False)
    assert "(at least 100," in report.summary


def test_faults_of_form_and_of_encoding_come_in_the_order_of_lines(checked: Any) -> None:
    bad = {"messages": [{"role": "x", "content": 1}]}
    report = checked([chat_row("<|im_end|>"), bad, chat_row(), chat_row("<|im_start|>"), "x"])
    assert [fault.line for fault in report.faults] == [1, 2, 4, 5]


# What is counted of a good file


def test_a_good_file(checked: Any, tmp_path: Path) -> None:
    report = checked([chat_row("hello", "world")] * 12)
    dataset = TokenisedDataset.open(tmp_path / "out")
    assert (report.examples, report.rows, len(dataset)) == (12, 12, 12)
    assert (report.tokens, report.trained_tokens) == (len(dataset.ids), dataset.trained_tokens)
    assert report.longest == int(dataset.lengths.max())
    assert report.summary == f"12 rows, {report.tokens:,} tokens, {report.trained_tokens:,} of them trained on"
    ref = report.dataset_ref("datasets/k", "k")
    assert (ref.rows, ref.tokens, ref.trained_tokens, ref.longest) == (12, report.tokens, report.trained_tokens, report.longest)


def test_rows_above_max_length_are_cut_dropped_or_refused(checked: Any, tmp_path: Path) -> None:
    lines = [chat_row(), chat_row("hello", "z" * 100), chat_row("z" * 100, "world")]
    cut = checked(lines, overlong="truncate")
    assert (cut.rows, cut.truncated_rows, cut.rows_without_trained_tokens, cut.longest) == (2, 1, 1, 64)
    assert cut.longest_uncut > 100
    assert TokenisedDataset.open(tmp_path / "out").lengths.max() == 64
    dropped = checked(lines, overlong="drop")
    assert (dropped.rows, dropped.dropped_rows, dropped.truncated_rows) == (1, 2, 0)
    assert places(checked(lines, overlong="error")) == [(2, "", "too_long"), (3, "", "too_long")]


def test_a_file_of_which_no_row_is_left_is_refused(checked: Any) -> None:
    report = checked([chat_row("z" * 100)] * 3, overlong="drop")
    assert places(report) == [(None, "", "no_rows_left")]
    assert "3 are longer" in report.summary


def test_batches_end_where_they_may(checked: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [chat_row("hello " * i) for i in range(20)]
    whole = checked(lines)
    content = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    monkeypatch.setattr(datasets, "BATCH_ROWS", 3)
    assert checked(lines) == whole
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == content


def test_progress_tells_rows_and_bytes(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", [chat_row()] * 600)
    seen: list[tuple[int, int]] = []
    model_dir = str(write_chat_model(tmp_path / "model"))
    request = CheckRequest(path=str(path), model_dir=model_dir, method="supervised", max_length=64, overlong="drop")
    check(request, lambda rows, bytes_read: seen.append((rows, bytes_read)))
    assert [rows for rows, _ in seen] == [512, 600]
    assert seen[-1][1] == path.stat().st_size


def test_a_model_without_a_template_is_told_as_such(checked: Any, tmp_path: Path) -> None:
    (tmp_path / "model" / "chat_template.jinja").unlink()
    report = checked([chat_row()])
    assert places(report) == [(None, "", "base_model")]
    assert "no chat template" in report.summary


def test_a_template_that_escapes_its_sandbox_gets_nothing(checked: Any, tmp_path: Path) -> None:
    escape = "{{ cycler.__init__.__globals__.os.system('touch " + str(tmp_path / "escaped") + "') }}"
    write_chat_model(tmp_path / "model", escape)
    assert places(checked([chat_row()])) == [(1, "messages", "template")]
    assert not (tmp_path / "escaped").exists()


# The bytes of a dataset and the key they lie under

PLAIN: dict[str, Any] = {
    "file_sha256": "f", "data": DataSpec(),
    "model_revision": "r", "tokenizer_hash": "t", "method": "supervised", "max_length": 64, "overlong": "drop"
}  # fmt: skip


@pytest.mark.parametrize("name", PLAIN)
def test_the_key_changes_with_all_that_decides_the_bytes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache_key(**PLAIN) == cache_key(**PLAIN)
    other = {"max_length": 65, "data": DataSpec(format="csv")}
    assert cache_key(**PLAIN | {name: other.get(name, "other")}) != cache_key(**PLAIN)
    before = cache_key(**PLAIN)
    monkeypatch.setattr(datasets, "DATASET_FORMAT", 99)
    assert cache_key(**PLAIN) != before


def test_a_date_in_the_template_is_the_one_asked_for(checked: Any, tmp_path: Path) -> None:
    write_chat_model(tmp_path / "model", "{{ strftime_now('%d %b %Y') }}" + CHATML)
    first = checked([chat_row()], today=date(2026, 1, 2))
    bytes_then = (tmp_path / "out" / "ids.u32").read_bytes()
    assert checked([chat_row()], today=date(2026, 1, 2)) == first
    assert (tmp_path / "out" / "ids.u32").read_bytes() == bytes_then
    checked([chat_row()], today=date(2026, 1, 3))
    assert (tmp_path / "out" / "ids.u32").read_bytes() != bytes_then


def test_encoding_a_row_differently_calls_for_a_new_dataset_format(checked: Any, tmp_path: Path) -> None:
    """When this fails, what rows become has changed: raise DATASET_FORMAT with it, or old datasets are taken for new ones."""
    write_chat_model(tmp_path / "model")
    pair = [{"role": "user", "content": "é"}, {"role": "assistant", "content": "B "}]
    checked([{"messages": [{"role": "system", "content": "A"}, *pair, *pair]}])
    row = TokenisedDataset.open(tmp_path / "out").row(0)
    text = Tokenizer.from_file(str(tmp_path / "model" / "tokenizer.json")).decode(row.input_ids.tolist(), skip_special_tokens=False)
    turns = "<|im_start|>user\né<|im_end|>\n<|im_start|>assistant\nB <|im_end|>\n" * 2
    assert text == "<|im_start|>system\nA<|im_end|>\n" + turns
    assert "".join("01"[int(weight)] for weight in row.weights) == "000000000000000001110000000000001110"
    assert datasets.DATASET_FORMAT == 1


# Values


def test_what_comes_out_of_a_file_is_made_fit_for_a_report(tmp_path: Path) -> None:
    request = CheckRequest(path="", model_dir="", method="supervised", max_length=64, overlong="drop")
    report = failed_report(request, Fault("p" * 1000, "rule", "m\0\ud800" * 1000, "h" * 1000), failure="crash")
    (fault,) = report.faults
    assert (len(fault.path), len(fault.message), len(fault.hint)) == (200, 500, 300)
    assert fault.message.startswith("m\ufffd?")
    assert (report.ok, report.retryable, report.error_code) == (False, False, "data_check_crashed")
    assert failed_report(request, Fault("", "r", "m"), failure="storage").retryable


def test_an_unknown_method_or_field_is_refused() -> None:
    for wrong in ({"method": "telepathy"}, {"method": "supervised", "more": 1}, {"method": "supervised", "max_length": 1}):
        with pytest.raises(ValueError, match=r"telepathy|more|greater"):
            CheckRequest.model_validate({"path": "", "model_dir": "", "max_length": 64, "overlong": "drop"} | wrong)
    assert LineFault(line=None, path="", rule="r", message="m").hint == ""
