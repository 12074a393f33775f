"""The data check: every faulty line of a file with its rule, token counts, and the tokenised dataset.

One streaming pass in constant memory. `check` does the work; `run_check` runs it in a process of its
own with limits, because rows and chat templates come from outside. Called by the scheduler (before a
job is queued) and by `tunesmith files check`. What a row must look like is the method's business.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field, field_validator

from service.jsonl import LineReader, parse_row
from trainers.registry import DATASET_FORMAT, DatasetWriter, Encoded, Fault, Row, get, open_tokenizer, shape_of
from trainers.spec import DatasetRef, Frozen

if TYPE_CHECKING:
    from trainers.chat import ChatTokenizer

BATCH_ROWS = 512
BATCH_BYTES = 4 * 2**20
"""Rows are tokenised together up to these: enough to keep all cores busy, little enough to hold."""
MAX_FAULTY_LINES = 100_000
"""After so many the file is wrong as a whole, and reading on tells nothing new."""
OnProgress = Callable[[int, int], None]
"""Called with the rows seen and the bytes read so far."""


class LineFault(Frozen):
    """One thing wrong with the file."""

    line: int | None = Field(description="Line, counted from 1; null when the fault is not of one line.")
    path: str = Field(description='Field within the row, for example "messages[2].role"; empty for the whole line.')
    rule: str = Field(description="Stable name of the rule.")
    message: str = Field(description="What is wrong.")
    hint: str = Field("", description="What to do about it.")


class DataReport(Frozen):
    """What the data check found. Counts are of rows and tokens that training would see, unless they say otherwise."""

    param: Literal["training_file", "validation_file"]
    sha256: str = Field(description="Hash of the file's bytes.")
    examples: int = Field(0, description="Lines of the file that are not blank.")
    rows: int = Field(0, description="Rows kept.")
    tokens: int = Field(0, description="Tokens of the rows kept, after cutting.")
    trained_tokens: int = Field(0, description="Tokens that carry loss.")
    longest: int = Field(0, description="Tokens of the longest row kept.")
    longest_uncut: int = Field(0, description="Tokens of the longest row before cutting.")
    truncated_rows: int = Field(0, description="Rows kept whose end was cut off at max_length.")
    dropped_rows: int = Field(0, description="Rows left out because they are longer than max_length.")
    rows_without_trained_tokens: int = Field(0, description="Rows left out because cutting took every token that carries loss.")
    faults: list[LineFault] = Field(default=[], description="The first faults, in the order of lines.")
    fault_count: int = Field(0, description="All faults, also those not listed.")
    faulty_lines: int = Field(0, description="Lines with at least one fault.")
    faults_by_rule: dict[str, int] = Field(default={}, description="How often each rule was broken.")
    complete: bool = Field(True, description="False when checking stopped early because of too many faulty lines or a limit.")
    failure: Literal["memory", "time", "crash", "storage"] | None = Field(
        None, description="Set when the check itself ended early: it ran into a limit, or (storage) a disk could not be read or written."
    )

    @property
    def ok(self) -> bool:
        """Whether the file can be trained on."""
        return self.fault_count == 0

    @property
    def retryable(self) -> bool:
        """Whether the same file might pass at another time: nothing is known to be wrong with it."""
        return self.failure == "storage"

    @property
    def error_code(self) -> str:
        """The code on the wire for a file that is not ok."""
        return "invalid_n_examples" if set(self.faults_by_rule) == {"too_few_examples"} else f"invalid_{self.param}"

    @property
    def summary(self) -> str:
        """One sentence for a person; the first fault stands for all."""
        if self.ok:
            return f"{self.rows:,} rows, {self.tokens:,} tokens, {self.trained_tokens:,} of them trained on"
        first = self.faults[0]
        if self.fault_count == 1 and first.line is None:
            return first.message
        where = f"line {first.line}" if first.line else "the file"
        field = f", {first.path}" if first.path else ""
        more = f" ({self.fault_count:,} faults in {self.faulty_lines:,} lines)" if self.fault_count > 1 else ""
        return f"Invalid file format. {where[0].upper()}{where[1:]}{field}: {first.message}{more}"

    def dataset_ref(self, prefix: str, key: str) -> DatasetRef:
        """The reference a run is given to the dataset stored under `prefix` with this cache key."""
        return DatasetRef(
            prefix=prefix, sha256=key, rows=self.rows, tokens=self.tokens, trained_tokens=self.trained_tokens, longest=self.longest
        )


class CheckRequest(Frozen):
    """What is to be checked, and how."""

    path: str = Field(description="The file.")
    method: str
    model_dir: str = Field(description="Directory of the base model: tokenizer, chat template.")
    max_length: int = Field(ge=16)
    overlong: Literal["truncate", "drop", "error"]
    min_rows: int = Field(10, ge=1)
    out_dir: str | None = Field(None, description="Where the tokenised dataset is written when the file has no faults.")
    limit: int = Field(50, ge=1, le=10_000, description="Faults that are listed; all are counted.")
    param: Literal["training_file", "validation_file"] = "training_file"

    @field_validator("method")
    @classmethod
    def _is_known(cls, name: str) -> str:
        return get(name).name


def cache_key(
    *, file_sha256: str, model_revision: str, tokenizer_hash: str, method: str, max_length: int, overlong: str
) -> str:
    """Name of a tokenised dataset: sha256 (hex) over everything that decides its bytes."""
    parts = ["tunesmith-dataset", DATASET_FORMAT, file_sha256, model_revision, tokenizer_hash, method, max_length, overlong]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def check(request: CheckRequest, on_progress: OnProgress | None = None) -> DataReport:
    """Check the file in this process. Raises OSError when a disk fails; what is wrong with the data is in the report."""
    with open(request.path, "rb") as file:
        reader = LineReader(file)
        try:
            tokenizer = open_tokenizer(Path(request.model_dir))
        except ValueError as error:
            fault = Fault("", "base_model", f"the base model can't encode conversations: {error}", "Choose another base model.")
            return failed_report(request, fault, sha256=reader.sha256())
        with DatasetWriter(Path(request.out_dir)) if request.out_dir else nullcontext() as writer:
            return _Pass(request, tokenizer, reader, writer, on_progress or _quiet).report()


def failed_report(
    request: CheckRequest, fault: Fault, *, sha256: str = "", failure: Literal["memory", "time", "crash", "storage"] | None = None
) -> DataReport:
    """The report of a check that could not look at the rows."""
    return DataReport(
        param=request.param,
        sha256=sha256,
        faults=[_line_fault(None, fault)],
        fault_count=1,
        faults_by_rule={fault.rule: 1},
        complete=False,
        failure=failure,
    )


def _quiet(rows: int, bytes_read: int) -> None:
    """Progress that no one asked for."""


def _line_fault(line: int | None, fault: Fault) -> LineFault:
    """Cut to lengths that a report can hold: parts of paths and messages come out of the file."""
    return LineFault(line=line, path=fault.path[:200], rule=fault.rule, message=fault.message[:500], hint=fault.hint[:300])


class _Pass:
    """One pass over one file; counts as it goes."""

    def __init__(
        self, request: CheckRequest, tokenizer: ChatTokenizer, reader: LineReader, writer: DatasetWriter | None, on_progress: OnProgress
    ) -> None:
        self.request, self.tokenizer, self.reader, self.writer, self.on_progress = request, tokenizer, reader, writer, on_progress
        self.method = get(request.method)
        self.counts: Counter[str] = Counter()
        self.by_rule: Counter[str] = Counter()
        self.faults: list[LineFault] = []
        self.longest = self.longest_uncut = 0
        self.pending: list[tuple[int, Row]] = []
        self.pending_faults: list[tuple[int, Fault]] = []
        self.pending_bytes = 0
        self.shape: tuple[str, int] | None = None

    def report(self) -> DataReport:
        """Read the whole file; the report of it."""
        complete = self._read()
        self._judge_whole()
        return DataReport(
            param=self.request.param,
            sha256=self.reader.sha256(),
            examples=self.counts["examples"],
            rows=self.counts["rows"],
            tokens=self.counts["tokens"],
            trained_tokens=self.counts["trained_tokens"],
            longest=self.longest,
            longest_uncut=self.longest_uncut,
            truncated_rows=self.counts["truncated_rows"],
            dropped_rows=self.counts["dropped_rows"],
            rows_without_trained_tokens=self.counts["rows_without_trained_tokens"],
            faults=self.faults,
            fault_count=self.by_rule.total(),
            faulty_lines=self.counts["faulty_lines"],
            faults_by_rule=dict(self.by_rule),
            complete=complete,
        )

    def _read(self) -> bool:
        """Every line; False when the file is not worth reading to its end."""
        if refusal := self.reader.refusal():
            self._record(1, refusal)
            self.counts["faulty_lines"] += 1
            return False
        for number, line in self._lines():
            self._take(number, line)
            if len(self.pending) >= BATCH_ROWS or self.pending_bytes >= BATCH_BYTES or len(self.pending_faults) >= BATCH_ROWS:
                self._flush()
                if self.counts["faulty_lines"] >= MAX_FAULTY_LINES:
                    return False
        self._flush()
        return True

    def _lines(self) -> Iterator[tuple[int, bytes | Fault]]:
        """Lines with their numbers. Blank ones are faults, except at the end of the file."""
        blank: range = range(0)
        for number, line in enumerate(self.reader, 1):
            if isinstance(line, bytes) and not line.strip():
                blank = range(blank.start if blank else number, number + 1)
                continue
            for earlier in blank:
                yield earlier, Fault("", "blank_line", "the line is blank", "Remove it.")
            blank = range(0)
            yield number, line

    def _take(self, number: int, line: bytes | Fault) -> None:
        """Look at one line; queue it for tokenising when its form is right."""
        row = line if isinstance(line, Fault) else parse_row(line)
        if not (isinstance(row, Fault) and row.rule == "blank_line"):
            self.counts["examples"] += 1
        faults = [row] if isinstance(row, Fault) else self._check_row(number, row)
        self.pending_faults.extend((number, fault) for fault in faults)
        self.counts["faulty_lines"] += bool(faults)
        if not faults and not isinstance(row, Fault):
            self.pending.append((number, row))
            self.pending_bytes += len(line)

    def _check_row(self, number: int, row: Row) -> list[Fault]:
        shape = shape_of(row)
        if shape and self.shape is None:
            self.shape = (shape, number)
        if shape and self.shape and shape != self.shape[0]:
            message = f"this is a {shape} row, while line {self.shape[1]} is a {self.shape[0]} row"
            return [Fault("", "mixed_row_shapes", message, "All rows of a file have one format.")]
        return self.method.check_row(row)

    def _flush(self) -> None:
        """Tokenise the queued rows and record what has come up, in the order of lines."""
        encoded = self.method.encode([row for _, row in self.pending], self.tokenizer)
        for (number, _), result in zip(self.pending, encoded, strict=True):
            fault = result if isinstance(result, Fault) else self._keep(result)
            if fault:
                self.pending_faults.append((number, fault))
                self.counts["faulty_lines"] += 1
        for number, fault in sorted(self.pending_faults, key=lambda item: item[0]):
            self._record(number, fault)
        self.pending, self.pending_faults, self.pending_bytes = [], [], 0
        self.on_progress(self.counts["examples"], self.reader.bytes_read)

    def _keep(self, row: Encoded) -> Fault | None:
        """Cut or drop the row as asked, count it and write it; the fault if it can't be trained on."""
        length, request = len(row), self.request
        self.longest_uncut = max(self.longest_uncut, length)
        if not row.weights.any():
            return Fault("", "no_trained_tokens", "the row has no token that carries loss", "Give an assistant message some content.")
        if length > request.max_length:
            if request.overlong == "error":
                message = f"the row has {length:,} tokens; max_length is {request.max_length:,}"
                return Fault("", "too_long", message, 'Shorten it, raise max_length, or set overlong to "truncate" or "drop".')
            if request.overlong == "drop":
                self.counts["dropped_rows"] += 1
                return None
            row = row.cut(request.max_length)
        self._count(row, cut=length > len(row))
        return None

    def _count(self, row: Encoded, *, cut: bool) -> None:
        trained = int((row.weights > 0).sum())
        if trained == 0:
            self.counts["rows_without_trained_tokens"] += 1
            return
        self.counts.update(rows=1, tokens=len(row), trained_tokens=trained, truncated_rows=int(cut))
        self.longest = max(self.longest, len(row))
        if self.writer and not self.by_rule:
            self.writer.append(row)

    def _record(self, line: int | None, fault: Fault) -> None:
        if not self.by_rule and self.writer:
            self.writer.discard()
        self.by_rule[fault.rule] += 1
        if len(self.faults) < self.request.limit:
            self.faults.append(_line_fault(line, fault))

    def _judge_whole(self) -> None:
        """Faults that no single line has."""
        examples, minimum = self.counts["examples"], self.request.min_rows
        name = "Training" if self.request.param == "training_file" else "Validation"
        if examples == 0 and not self.by_rule:
            self._record(None, Fault("", "empty_file", f"{name} file is empty", "Upload JSON Lines: one JSON object per line."))
        elif examples < minimum and not self.by_rule.keys() & {"compressed", "binary", "bad_encoding"}:
            message = f"{name} file has {examples} example(s), but must have at least {minimum} examples"
            self._record(None, Fault("", "too_few_examples", message))
        elif self.counts["rows"] == 0 and not self.by_rule:
            self._record(None, Fault("", "no_rows_left", self._why_none_left(), "Raise max_length."))

    def _why_none_left(self) -> str:
        dropped, lost, longest = self.counts["dropped_rows"], self.counts["rows_without_trained_tokens"], self.request.max_length
        return f"no row is left with max_length {longest:,}: {dropped:,} are longer, {lost:,} lost every token that carries loss when cut"


def throttled(report: OnProgress, seconds: float = 1.0) -> OnProgress:
    """`report`, called at most once in `seconds`."""
    last = 0.0

    def maybe(rows: int, bytes_read: int) -> None:
        nonlocal last
        if (now := time.monotonic()) - last >= seconds:
            last = now
            report(rows, bytes_read)

    return maybe
