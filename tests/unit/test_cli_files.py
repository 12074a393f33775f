"""`tunesmith files …` against the REST application, and `files check` on a tokenizer of its own."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.cli.local import Local
from service.settings import Settings
from tests.cli import Cli, cli_of, served_quietly
from tests.rest_server import Served
from tests.tiny_chat import chat_row, write_chat_model, write_rows

MODEL = "smollm2-135m-instruct"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served_quietly(tmp_path_factory.mktemp("data")) as running:
        yield running


@pytest.fixture
def cli(server: Served, tmp_path: Path) -> Cli:
    return cli_of(server, tmp_path / "key")


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "train.jsonl", [chat_row() for _ in range(12)])


def test_upload_list_get_content_delete(server: Served, cli: Cli, rows: Path) -> None:
    uploaded = cli.run("files", "upload", rows, "-o", "json")
    (file,) = json.loads(uploaded.stdout)
    assert server.app.data[file["id"]] == rows.read_bytes()
    assert f"as {file['id']}" in uploaded.stderr
    assert [row["id"] for row in cli.data("files", "list")] == [file["id"]]
    assert cli.data("files", "get", file["id"])["filename"] == "train.jsonl"
    assert cli.run("files", "content", file["id"]).stdout_bytes == rows.read_bytes()
    table = cli.run("files", "list").stdout.splitlines()
    assert table[0].split() == ["ID", "NAME", "SIZE", "PURPOSE", "CREATED"]
    assert table[1].split()[:2] == [file["id"], "train.jsonl"]
    assert cli.data("files", "delete", file["id"]) == [{"id": file["id"], "object": "file", "deleted": True}]
    assert cli.data("files", "list") == []


def test_lists_as_many_as_asked_newest_first(cli: Cli, rows: Path) -> None:
    made = [cli.data("files", "upload", rows)[0]["id"] for _ in range(4)]
    assert [row["id"] for row in cli.data("files", "list", "-n", "3")] == made[:0:-1]
    for file_id in made:
        cli.run("files", "delete", file_id)


def test_unknown_file(cli: Cli) -> None:
    result = cli.run("files", "get", "file-none", exit_code=3)
    assert result.stdout == ""
    assert result.stderr.startswith("error: No such file: 'file-none' (request req_")


@pytest.mark.parametrize(("content", "said"), [(None, "can't be read"), (b"", "is empty")])
def test_what_can_not_be_uploaded_is_told_before_the_service_is_asked(tmp_path: Path, content: bytes | None, said: str) -> None:
    path = tmp_path / "rows.jsonl"
    if content is not None:
        path.write_bytes(content)
    assert said in Cli().run("files", "upload", path, exit_code=2).stderr


def test_yaml(cli: Cli, rows: Path) -> None:
    assert cli.run("files", "upload", rows, "-o", "yaml").stdout.startswith("- id: file-")


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """A data directory into which the model has been pulled, as far as the data check needs it."""
    from trainers import manifest

    directory = tmp_path / "data"
    local = Local(Settings(data_dir=directory))
    entry = local.entry(MODEL)
    ref = entry.ref(entry.source[0])
    model = write_chat_model(tmp_path / "model")
    listed = manifest.Manifest(manifest.describe(model), {"id": MODEL})
    for file in listed.files:
        local.storage.put_file(f"{ref.prefix}/{file.name}", model / file.name)
    local.storage.put(f"{ref.prefix}/{manifest.MANIFEST}", listed.encode())
    return directory


def test_check_of_a_good_file(data_dir: Path, rows: Path) -> None:
    report = Cli().data("files", "check", rows, "--data-dir", data_dir)
    assert (report["rows"], report["fault_count"], report["faults"]) == (12, 0, [])
    assert 0 < report["trained_tokens"] < report["tokens"]
    table = Cli().run("files", "check", rows, "--model", MODEL, "--data-dir", data_dir).stdout
    assert f"trained tokens  {report['trained_tokens']}" in table


def test_check_tells_line_field_rule_and_hint(data_dir: Path, tmp_path: Path) -> None:
    bad = {"messages": [{"role": "usr", "content": "hello"}, {"role": "assistant", "content": "world"}]}
    path = write_rows(tmp_path / "bad.jsonl", [*[chat_row() for _ in range(10)], bad, "{"])
    result = Cli().run("files", "check", path, "--data-dir", data_dir, "-o", "json", exit_code=1)
    report = json.loads(result.stdout)
    assert [(fault["line"], fault["path"]) for fault in report["faults"]] == [(11, "messages[0].role"), (12, "")]
    assert all(fault["rule"] and fault["message"] for fault in report["faults"])
    assert "can't be trained on: 2 fault(s) in 2 line(s)" in result.stderr
    table = Cli().run("files", "check", path, "--data-dir", data_dir, exit_code=1).stdout
    assert "messages[0].role" in table
    listed = Cli().run("files", "check", path, "--data-dir", data_dir, "-n", "1", exit_code=1)
    assert "and 1 more" in listed.stderr


def test_check_as_a_validation_file_and_shorter(data_dir: Path, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "valid.jsonl", [chat_row(assistant="world " * 50)])
    Cli().run("files", "check", path, "--data-dir", data_dir, exit_code=1)
    report = Cli().data("files", "check", path, "--validation", "--max-length", "64", "--data-dir", data_dir)
    assert (report["rows"], report["truncated_rows"], report["longest"]) == (1, 1, 64)


def test_check_without_a_model(rows: Path, tmp_path: Path) -> None:
    result = Cli().run("files", "check", rows, "--data-dir", tmp_path / "empty", exit_code=3)
    assert "no base model has been pulled" in result.stderr
    result = Cli().run("files", "check", rows, "--model", "smolm2-135m-instruct", "--data-dir", tmp_path / "empty", exit_code=3)
    assert f"Did you mean '{MODEL}'?" in result.stderr


@pytest.mark.parametrize("wrong", [("--overlong", "cut"), ("--method", "nonsense")])
def test_check_with_a_wrong_setting(data_dir: Path, rows: Path, wrong: tuple[str, str]) -> None:
    result = Cli().run("files", "check", rows, *wrong, "--data-dir", data_dir, exit_code=2)
    assert result.stderr.startswith("error: ")


def test_check_of_other_formats_with_a_mapping(data_dir: Path, tmp_path: Path) -> None:
    path = tmp_path / "pairs.csv.gz"
    path.write_bytes(gzip.compress(b"question,answer\n" + b"hello,world\n" * 12))
    told = ("--map", "prompt=question", "--mapping", "completion=answer")
    report = Cli().data("files", "check", path, *told, "--data-dir", data_dir)
    assert (report["rows"], report["format"], report["fault_count"]) == (12, "csv", 0)
    table = Cli().run("files", "check", path, "--data-dir", data_dir, exit_code=1)
    assert "ROW  FIELD" in table.stdout
    assert "12 fault(s) in 12 row(s)" in table.stderr
    wrong = Cli().data("files", "check", path, *told, "--format", "csv", "--data-dir", data_dir)
    assert wrong["rows"] == 12
    assert "jsonl" in Cli().run("files", "check", path, "--format", "xml", "--data-dir", data_dir, exit_code=2).stderr
    lone = Cli().run("files", "check", path, "--map", "prompt=question", "--data-dir", data_dir, exit_code=2)
    assert "prompt and completion are needed" in lone.stderr
