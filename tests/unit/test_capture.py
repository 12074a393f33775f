"""What a process writes, on its way into storage: capture, redaction, limits. With a real storage, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from service.run_logs import LogReader, last_lines, writers
from tests.run_specs import run_spec
from trainers import capture
from trainers.redact import HIDDEN, redactor
from trainers.run_log import PIECE, RunLog, piece_key, piece_name
from trainers.spec import is_log, logs_prefix
from trainers.storage import StorageUnavailable, open_storage

KEY = "ts_0123456789ab_" + "c" * 64 + "_0a1b2c3d"
SECRETS = {
    f"Authorization: Bearer {'x' * 20}": "Authorization: Bearer [redacted]",
    f"key {KEY} in a line": "key [redacted] in a line",
    "AKIAABCDEFGHIJKLMNOP": "[redacted]",
    "https://user:hunter2@host/path": "https://[redacted]@host/path",
    "postgresql+psycopg://tunesmith:pw@db:5432/jobs": "postgresql+psycopg://[redacted]@db:5432/jobs",
    "GET https://b.s3/x?X-Amz-Date=1&X-Amz-Signature=abc123&X-Amz-Expires=9": (
        "GET https://b.s3/x?X-Amz-Date=1&X-Amz-Signature=[redacted]&X-Amz-Expires=9"
    ),
    'aws_secret_access_key = "wJalrXUtnFEMI"': 'aws_secret_access_key = "[redacted]"',
    "hf_abcdefghijklmnopqrstuv": "[redacted]",
    "the value of-a-variable here": "the value [redacted] here",
    "the token of the run: r4nd0m-run-token": "the token of the run: [redacted]",
}
HARMLESS = [
    "Step 3/60: training loss=0.52, 1,234 tokens/s",
    "pad token: </s>; tokens: 900; key: value; task-with-a-rather-long-name",
    "s3://bucket/prefix/objects and file:///var/lib/x and mail@example.com",
    "false, token, 1",
]


def test_what_looks_like_a_secret_is_taken_out() -> None:
    environment = {
        "MY_API_KEY": "of-a-variable",
        "TOKENIZERS_PARALLELISM": "false",
        "RAY_AUTH_MODE": "token",
        "AUTH_TOKEN_PATH": "/etc/passwd/x",
    }
    redact = redactor(environment, ["r4nd0m-run-token"])
    assert {text: redact(text) for text in SECRETS} == SECRETS
    assert [redact(text) for text in HARMLESS] == HARMLESS
    assert redact("/etc/passwd/x") == "/etc/passwd/x", "where a secret lies is none"


WORKER = """
import logging, os, sys
from tests.run_specs import run_spec
from trainers import capture
from trainers.storage import open_storage

capture.BEAT_SECONDS = 0.05
url, lines = sys.argv[1], int(sys.argv[2])
print("before")
with capture.captured(open_storage(url), run_spec(storage_url=url), "rank-0", ["secret-of-the-run"]):
    capture.speak()
    logging.getLogger("trainers.loop").info("a line of logging with secret-of-the-run")
    print("printed", flush=True)
    os.system("echo from another process")
    os.write(2, b"10%\\r50%\\r100%\\n\\x1b[31mred\\x1b[0m\\n")
    os.write(2, b"x" * 100_000 + b"\\n")
    print("\\n".join(f"line {n}" for n in range(lines)))
    print("no end", end="", flush=True)
print("after")
"""


@pytest.mark.parametrize("into", ["pipe", "file"])
def test_all_that_a_process_writes_is_kept_and_still_goes_where_it_went(into: str, tmp_path: Path) -> None:
    storage = open_storage(url := (tmp_path / "objects").as_uri())
    command = [sys.executable, "-c", WORKER, url, "3000"]
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "MY_SECRET": "unseen-by-all"}
    if into == "pipe":
        done = subprocess.run(command, capture_output=True, env=env, timeout=60, check=True)
        seen = done.stdout + done.stderr
    else:
        with (tmp_path / "out").open("wb") as file:
            subprocess.run(command, stdout=file, stderr=file, env=env, timeout=60, check=True)
        seen = (tmp_path / "out").read_bytes()
    kept = b"".join(LogReader(storage, "ftjob-1", 1, "rank-0").fresh()).decode().splitlines()
    for line in ("printed", "from another process", "100%", "red", "line 0", "line 2999", "no end"):
        assert line in kept, line
    assert any(line.endswith("INFO trainers.loop a line of logging with [redacted]") for line in kept)
    assert [line for line in kept if line.startswith("xxx")] == ["x" * capture.LONGEST_LINE + " [… cut]"]
    assert not {"before", "after"} & set(kept)
    for part in (b"before", b"printed", b"line 2999", b"no end", b"after", b"x" * 100_000):
        assert part in seen, part[:20]


def test_lines_are_there_while_the_process_still_runs(tmp_path: Path) -> None:
    storage = open_storage(url := (tmp_path / "objects").as_uri())
    code = WORKER.replace('print("no end", end="", flush=True)', "sys.stdout.flush(); sys.stdin.read()")
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(
        [sys.executable, "-c", code, url, "1"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=env
    ) as worker:
        deadline = time.monotonic() + 30
        while "line 0" not in last_lines(storage, "ftjob-1", 1, 0, 100):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        worker.kill()
    assert writers(storage, "ftjob-1", 1) == ["rank-0"]


class Away:
    """A storage that does not answer."""

    def put(self, key: str, data: bytes, *, if_absent: bool = False) -> None:
        raise StorageUnavailable(key)


def test_a_storage_that_is_away_fails_nothing_and_gets_all_later(tmp_path: Path) -> None:
    log = RunLog(Away(), "p", "rank-0", 2**20)  # type: ignore[arg-type]
    for number in range(3):
        log.add(f"line {number}")
        with pytest.raises(StorageUnavailable):
            log.save()
    log._storage = storage = open_storage((tmp_path / "objects").as_uri())
    log.save()
    assert storage.get(piece_key("p", "rank-0", 0)) == b"line 0\nline 1\nline 2\n"
    with capture.captured(Away(), run_spec(), "rank-1"):  # type: ignore[arg-type]
        os.write(1, b"said\n")


def test_a_long_log_keeps_its_limit_its_beginning_and_its_end(tmp_path: Path) -> None:
    storage = open_storage((tmp_path / "objects").as_uri())
    log = RunLog(storage, logs_prefix("ftjob-1", 1), "rank-0", 2**20)
    line = "x" * 1000
    for number in range(3000):
        log.add(f"{number} {line}")
        if number % 300 == 0:
            log.save()
    log.save()
    pieces = list(storage.list(logs_prefix("ftjob-1", 1)))
    assert 2**19 < sum(piece.bytes for piece in pieces) <= 2**20
    assert max(piece.bytes for piece in pieces) <= PIECE
    kept = [text.split()[0] for text in b"".join(LogReader(storage, "ftjob-1", 1, "rank-0").fresh()).decode().splitlines()]
    marker = kept.index("[…")
    assert kept[:marker] == [str(number) for number in range(marker)]
    assert kept[marker + 1 :] == [str(number) for number in range(3000 - len(kept) + marker + 1, 3000)]
    assert marker * 1000 > 2**17


def test_a_reader_goes_on_where_it_was_while_the_log_grows(tmp_path: Path) -> None:
    storage = open_storage((tmp_path / "objects").as_uri())
    log, reader = RunLog(storage, logs_prefix("ftjob-1", 1), "rank-0", 8192), LogReader(storage, "ftjob-1", 1, "rank-0")
    read = b""
    for number in range(200):
        log.add(f"line {number}")
        log.save()
        read += b"".join(reader.fresh())
    assert read.decode().splitlines() == [f"line {number}" for number in range(200)]
    assert last_lines(storage, "ftjob-1", 1, 0, 2) == ["line 198", "line 199"]
    assert last_lines(storage, "ftjob-1", 1, 5, 2) == []


def test_names_of_pieces() -> None:
    for writer in ("driver", "rank-0", "rank-123"):
        name = piece_name(key := piece_key(logs_prefix("ftjob-1", 2), writer, 7))
        assert name is not None
        assert (name.writer, name.number, is_log(key)) == (writer, 7, True)
    assert piece_name("runs/ftjob-1/2/logs/other.txt") is None
    assert not is_log("runs/ftjob-1/2/checkpoints/step-1/manifest.json")
    assert HIDDEN in redactor({})(KEY)
