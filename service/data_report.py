"""What the data check is asked and what it answers: values that travel as JSON between processes.

A report is kept in a failed job's error and beside a tokenised dataset, and printed by `tunesmith files
check`. Knows nothing of how rows are checked.
"""

from __future__ import annotations

from datetime import date
from typing import Literal

from pydantic import Field, field_validator

from trainers.registry import Fault, get
from trainers.spec import DatasetRef, DataSpec, Frozen

Param = Literal["training_file", "validation_file"]
"""Which of a job's files it is, as the wire names it."""
MIN_ROWS: dict[Param, int] = {"training_file": 10, "validation_file": 1}
Failure = Literal["memory", "time", "size", "crash", "storage"]
"""How a check ends without having looked at all rows."""


class CheckRequest(Frozen):
    """What is to be checked, and how."""

    path: str = Field(description="The file.")
    method: str = Field(description="Name of the method, see trainers.registry.")
    model_dir: str = Field(description="Directory of the base model: tokenizer, chat template.")
    max_length: int = Field(ge=16, description="Longest row, in tokens.")
    overlong: Literal["truncate", "drop", "error"] = Field(description="What becomes of a longer row.")
    min_rows: int = Field(default=10, ge=1, description="A file with fewer rows is refused.")
    out_dir: str | None = Field(default=None, description="Where the tokenised dataset is written when the file has no faults.")
    limit: int = Field(default=50, ge=1, le=10_000, description="Faults that are listed; all are counted.")
    param: Param = Field(default="training_file", description="What messages call the file.")
    preview: int = Field(default=0, ge=0, le=5, description="Rows that the report shows as the model will see them.")
    data: DataSpec = Field(default=DataSpec(), description="Format of the file, and which columns hold what.")
    max_unpacked_ratio: int = Field(default=200, ge=1, description="How many times its size a file may become when it is unpacked.")
    max_unpacked_bytes: int = Field(default=16 * 2**30, ge=1, description="How large it may become at all.")
    today: date = Field(default_factory=date.today, description="What a chat template that asks for the date is told.")

    @field_validator("method")
    @classmethod
    def _is_known(cls, name: str) -> str:
        return get(name).name


class LineFault(Frozen):
    """One thing wrong with the file."""

    line: int | None = Field(description="Line, or row of a file without lines, from 1; null when the fault is of the file.")
    path: str = Field(description='Field within the row, for example "messages[2].role"; empty for the whole line.')
    rule: str = Field(description="Stable name of the rule.")
    message: str = Field(description="What is wrong.")
    hint: str = Field(default="", description="What to do about it.")


class TextPart(Frozen):
    """A stretch of a row's text."""

    text: str = Field(description="As the chat template renders it, control tokens included.")
    trained: bool = Field(description="Whether its tokens carry loss.")


class PreviewRow(Frozen):
    """A row as the model will see it in training."""

    line: int = Field(description="Line of the file, counted from 1.")
    tokens: int = Field(description="Tokens that are trained with, after cutting.")
    tokens_uncut: int = Field(description="Tokens before cutting.")
    trained_tokens: int = Field(description="Tokens that carry loss.")
    truncated: bool = Field(description="Whether its end was cut off at max_length.")
    parts: tuple[TextPart, ...] = Field(description="The text from its beginning to where it is cut, in parts that carry loss or do not.")
    shortened: bool = Field(description="Whether the text goes on after the last part: long ones are not shown to their end.")


class DataReport(Frozen):
    """What the data check found. Counts are of rows and tokens that training would see, unless they say otherwise."""

    param: Param = Field(description="Which of a job's files was checked.")
    sha256: str = Field(description="Hash of the file's bytes; empty when they were not read to the end.")
    format: Literal["jsonl", "json", "csv", "parquet"] | None = Field(
        default=None, description="Format of the file; null when it has none."
    )
    examples: int = Field(default=0, description="Rows of the file that are not blank.")
    rows: int = Field(default=0, description="Rows kept.")
    tokens: int = Field(default=0, description="Tokens of the rows kept, after cutting.")
    trained_tokens: int = Field(default=0, description="Tokens that carry loss.")
    longest: int = Field(default=0, description="Tokens of the longest row kept.")
    longest_uncut: int = Field(default=0, description="Tokens of the longest row before cutting.")
    truncated_rows: int = Field(default=0, description="Rows kept whose end was cut off at max_length.")
    dropped_rows: int = Field(default=0, description="Rows left out because they are longer than max_length.")
    rows_without_trained_tokens: int = Field(default=0, description="Rows left out because cutting took every token that carries loss.")
    faults: tuple[LineFault, ...] = Field(default=(), description="The first faults, in the order of rows.")
    fault_count: int = Field(default=0, description="All faults found, also those not listed.")
    faulty_lines: int = Field(default=0, description="Rows with at least one fault.")
    faults_by_rule: dict[str, int] = Field(default={}, description="How often each rule was broken.")
    preview: tuple[PreviewRow, ...] = Field(default=(), description="The first rows kept, when they were asked for.")
    complete: bool = Field(default=True, description="False when checking stopped early by too many faulty rows, a limit or a broken file.")
    failure: Failure | None = Field(
        default=None,
        description="Set when the check itself ended early: it ran into a limit, crashed, or (storage) could not read or write a file.",
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
        if self.failure == "crash":
            return "data_check_crashed"
        return "invalid_n_examples" if set(self.faults_by_rule) == {"too_few_examples"} else f"invalid_{self.param}"

    @property
    def unit(self) -> str:
        """What the faults' numbers count."""
        return unit_of(self.format)

    @property
    def summary(self) -> str:
        """One sentence for a person; the first fault stands for all."""
        if self.ok:
            return f"{self.rows:,} rows, {self.tokens:,} tokens, {self.trained_tokens:,} of them trained on"
        first = self.faults[0]
        if self.fault_count == 1 and first.line is None:
            return first.message
        where = f"{self.unit.capitalize()} {first.line}" if first.line else "The file"
        field = f", {first.path}" if first.path else ""
        return f"Invalid file format. {where}{field}: {first.message}{self._more()}"

    def _more(self) -> str:
        if self.fault_count == 1:
            return ""
        at_least = "" if self.complete else "at least "
        return f" ({at_least}{self.fault_count:,} faults in {self.faulty_lines:,} {self.unit}s)"

    def dataset_ref(self, prefix: str, key: str) -> DatasetRef:
        """What a run is told of the dataset that lies under `prefix` with this cache key."""
        counts = self.model_dump(include={"rows", "tokens", "trained_tokens", "longest"})
        return DatasetRef(prefix=prefix, sha256=key, **counts)


def failed_report(request: CheckRequest, fault: Fault, *, sha256: str = "", failure: Failure | None = None) -> DataReport:
    """The report of a file whose rows could not be looked at."""
    return DataReport(
        param=request.param,
        sha256=sha256,
        faults=(line_fault(None, fault),),
        fault_count=1,
        faults_by_rule={fault.rule: 1},
        complete=False,
        failure=failure,
    )


def unit_of(format: str | None) -> str:
    """What numbers of rows count in this format."""
    return "line" if format in (None, "jsonl") else "row"


def line_fault(line: int | None, fault: Fault) -> LineFault:
    """Parts of paths and messages come out of the file or its chat template: cut and made fit for any database."""
    return LineFault(line=line, path=_fit(fault.path, 200), rule=fault.rule, message=_fit(fault.message, 500), hint=_fit(fault.hint, 300))


def _fit(text: str, length: int) -> str:
    return text[:length].replace("\0", "\ufffd").encode(errors="replace").decode()
