"""The data check: every faulty row of a file with its rule, token counts, and the tokenised dataset.

One streaming pass in constant memory, in the process that calls `check`; data_process.py runs it in one
of its own, with limits. How rows are read is the formats' business (formats/), what one must look like the method's.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from service.data_report import CheckRequest, DataReport, LineFault, PreviewRow, failed_report, line_fault, unit_of
from service.formats.packed import Growth
from service.formats.rows import BLANK_LINE, Rows, Unreadable
from service.formats.source import Source
from service.mapping import ColumnMapping
from service.preview import preview_row
from trainers.registry import DATASET_FORMAT, DatasetWriter, Encoded, Fault, Row, get, open_tokenizer, shape_of
from trainers.spec import DataSpec

if TYPE_CHECKING:
    from trainers.chat import ChatTokenizer

BATCH_ROWS = 512
BATCH_BYTES = 4 * 2**20
"""Rows are tokenised together up to these: enough to keep all cores busy, little enough to hold."""
MAX_FAULTY_LINES = 100_000
"""After so many the file is wrong as a whole, and reading on tells nothing new."""
OnProgress = Callable[[int, int], None]
"""Called with the rows seen and the bytes read so far."""


def cache_key(
    *, file_sha256: str, data: DataSpec, model_revision: str, tokenizer_hash: str, method: str, max_length: int, overlong: str
) -> str:
    """Name of a tokenised dataset: sha256 (hex) over everything that decides its bytes."""
    read_as = data.model_dump(mode="json")
    parts = ["tunesmith-dataset", DATASET_FORMAT, file_sha256, read_as, model_revision, tokenizer_hash, method, max_length, overlong]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def check(request: CheckRequest, on_progress: OnProgress | None = None) -> DataReport:
    """Check the file in this process. Raises OSError when a disk fails; what is wrong with the data is in the report."""
    growth = Growth(request.max_unpacked_ratio, request.max_unpacked_bytes)
    with Source(Path(request.path), growth, Path(request.out_dir).parent if request.out_dir else None) as source:
        try:
            tokenizer = open_tokenizer(Path(request.model_dir), request.today)
        except ValueError as error:
            fault = Fault("", "base_model", f"the base model can't encode conversations: {error}", "Choose another base model.")
            return failed_report(request, fault, sha256=source.sha256())
        with DatasetWriter(Path(request.out_dir)) if request.out_dir else nullcontext() as writer:
            return _Pass(request, tokenizer, source, writer, on_progress or quiet).report()


def quiet(rows: int, bytes_read: int) -> None:
    """Progress that no one asked for."""


class _Faults:
    """The first faults in full, all of them counted. They are recorded in the order of rows."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.listed: list[LineFault] = []
        self.by_rule: Counter[str] = Counter()
        self.lines = 0
        self._last_line: int | None = None

    def record(self, line: int | None, fault: Fault) -> None:
        self.by_rule[fault.rule] += 1
        self.lines += line not in (None, self._last_line)
        self._last_line = line
        if len(self.listed) < self.limit:
            self.listed.append(line_fault(line, fault))


class _Pass:
    """One pass over one file; counts as it goes."""

    def __init__(
        self, request: CheckRequest, tokenizer: ChatTokenizer, source: Source, writer: DatasetWriter | None, on_progress: OnProgress
    ) -> None:
        self.request, self.tokenizer, self.source, self.writer, self.on_progress = request, tokenizer, source, writer, on_progress
        self.method = get(request.method)
        self.mapping = ColumnMapping(request.data.mapping) if request.data.mapping else None
        self.counts: Counter[str] = Counter()
        self.faults = _Faults(request.limit)
        self.longest = self.longest_uncut = 0
        self.preview: list[PreviewRow] = []
        self.pending: list[tuple[int, Row]] = []
        self.pending_faults: list[tuple[int, Fault]] = []
        self.pending_bytes = 0
        self.shape: tuple[str, int] | None = None

    def report(self) -> DataReport:
        """Read the whole file; the report of it."""
        complete = self._read()
        self._judge_whole(complete)
        return DataReport(
            param=self.request.param,
            sha256=self.source.sha256(),
            format=self.source.format,
            examples=self.counts["examples"],
            rows=self.counts["rows"],
            tokens=self.counts["tokens"],
            trained_tokens=self.counts["trained_tokens"],
            longest=self.longest,
            longest_uncut=self.longest_uncut,
            truncated_rows=self.counts["truncated_rows"],
            dropped_rows=self.counts["dropped_rows"],
            rows_without_trained_tokens=self.counts["rows_without_trained_tokens"],
            faults=tuple(self.faults.listed),
            fault_count=self.faults.by_rule.total(),
            faulty_lines=self.faults.lines,
            faults_by_rule=dict(self.faults.by_rule),
            preview=tuple(self.preview),
            complete=complete,
        )

    def _read(self) -> bool:
        """Every row; False when the file can't be read to its end, or is not worth it."""
        try:
            rows = self.source.rows(self.request.data.format, self.mapping.wanted() if self.mapping else None)
            if self._lacks_columns(rows):
                return False
            for number, row, size in rows:
                self._take(number, row, size)
                if len(self.pending) >= BATCH_ROWS or self.pending_bytes >= BATCH_BYTES or len(self.pending_faults) >= BATCH_ROWS:
                    self._flush()
                    if self.faults.lines >= MAX_FAULTY_LINES:
                        return False
        except Unreadable as end:
            self._flush()
            self._record(end.row, end.fault)
            return False
        self._flush()
        return True

    def _lacks_columns(self, rows: Rows) -> bool:
        """Whether the file is a table without a column that the mapping names: said once, for no row would have it."""
        faults = self.mapping.missing(rows.columns) if self.mapping and rows.columns else []
        for fault in faults:
            self._record(None, fault)
        return bool(faults)

    def _take(self, number: int, row: Row | Fault, size: int) -> None:
        """Look at one row; queue it for tokenising when its form is right."""
        self.counts["examples"] += row is not BLANK_LINE
        if self.mapping and not isinstance(row, Fault):
            row = self.mapping.row(row)
        if isinstance(row, Fault):
            self.pending_faults.append((number, row))
            return
        faults = self._check_row(number, row)
        self.pending_faults.extend((number, fault) for fault in faults)
        if not faults:
            self.pending.append((number, row))
            self.pending_bytes += size

    def _check_row(self, number: int, row: Row) -> list[Fault]:
        shape = shape_of(row)
        if shape and self.shape is None:
            self.shape = (shape, number)
        if shape and self.shape and shape != self.shape[0]:
            message = f"this is a {shape} row, while {self._unit} {self.shape[1]} is a {self.shape[0]} row"
            return [Fault("", "mixed_row_shapes", message, "All rows of a file have one format.")]
        return self.method.check_row(row)

    @property
    def _unit(self) -> str:
        return unit_of(self.source.format)

    def _flush(self) -> None:
        """Tokenise the queued rows and record what has come up, in the order of rows."""
        encoded = self.method.encode([row for _, row in self.pending], self.tokenizer)
        for (number, _), result in zip(self.pending, encoded, strict=True):
            fault = result if isinstance(result, Fault) else self._keep(number, result)
            if fault:
                self.pending_faults.append((number, fault))
        for number, fault in sorted(self.pending_faults, key=lambda item: item[0]):
            self._record(number, fault)
        self.pending, self.pending_faults, self.pending_bytes = [], [], 0
        self.on_progress(self.counts["examples"], self.source.bytes_read)

    def _keep(self, number: int, row: Encoded) -> Fault | None:
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
        self._count(number, row, uncut=length)
        return None

    def _count(self, number: int, row: Encoded, *, uncut: int) -> None:
        trained = int((row.weights > 0).sum())
        if trained == 0:
            self.counts["rows_without_trained_tokens"] += 1
            return
        self.counts.update(rows=1, tokens=len(row), trained_tokens=trained, truncated_rows=int(uncut > len(row)))
        self.longest = max(self.longest, len(row))
        if len(self.preview) < self.request.preview:
            self.preview.append(preview_row(number, row, uncut, self.tokenizer))
        if self.writer and not self.faults.by_rule:
            self.writer.append(row)

    def _record(self, line: int | None, fault: Fault) -> None:
        if self.writer and not self.faults.by_rule:
            self.writer.discard()
        self.faults.record(line, fault)

    def _judge_whole(self, complete: bool) -> None:
        """Faults that no single row has."""
        examples, minimum, found = self.counts["examples"], self.request.min_rows, self.faults.by_rule
        name = "Training" if self.request.param == "training_file" else "Validation"
        if examples == 0 and not found:
            self._record(None, Fault("", "empty_file", f"{name} file is empty", "Upload at least one row."))
        elif examples < minimum and complete:
            message = f"{name} file has {examples} example(s), but must have at least {minimum} examples"
            self._record(None, Fault("", "too_few_examples", message))
        elif self.counts["rows"] == 0 and not found:
            self._record(None, Fault("", "no_rows_left", self._why_none_left(), "Raise max_length."))

    def _why_none_left(self) -> str:
        dropped, lost, longest = self.counts["dropped_rows"], self.counts["rows_without_trained_tokens"], self.request.max_length
        return f"no row is left with max_length {longest:,}: {dropped:,} are longer, {lost:,} lost every token that carries loss when cut"
