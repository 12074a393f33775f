"""`tunesmith files check`: the service's own data check, on this machine.

The base model must have been pulled into the data directory's storage: its tokenizer and template
decide what a row becomes. `jobs create --check` uses `report_on` too.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer

from service.cli import jobfile
from service.cli.local import Local
from service.cli.options import DataDir, FileFormat, FileMapping, Output
from service.cli.output import Column, Ended, ExitCode, Format, epilog, facts, plain, say, show_data, show_rows, visible
from service.cli.screen import bar

if TYPE_CHECKING:
    from service.data_report import DataReport, PreviewRow

EPILOG = epilog(
    "tunesmith files check train.jsonl --model smollm2-135m-instruct",
    "tunesmith files check train.jsonl --preview 2",
    "tunesmith files check valid.jsonl --validation --max-length 512 -o json",
    "tunesmith files check pairs.csv.gz --map prompt=question --map completion=answer",
)
FAULTS: list[Column] = [
    ("LINE", lambda fault: fault["line"] or "-"),
    ("FIELD", lambda fault: fault["path"] or "-"),
    ("RULE", lambda fault: fault["rule"]),
    ("MESSAGE", lambda fault: fault["message"]),
    ("HINT", lambda fault: fault["hint"]),
]


def check(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="JSON Lines, JSON array, CSV or Parquet; also packed by gzip or zstd.")],
    model: Annotated[str | None, typer.Option(help="Base model that the file is for; the only one pulled unless given.")] = None,
    method: Annotated[str, typer.Option(help="Method that the file is for.")] = "supervised",
    validation: Annotated[bool, typer.Option("--validation", help="It is a validation file: one row is enough.")] = False,
    max_length: Annotated[int | None, typer.Option(min=16, help="Longest row in tokens; as in a job unless given.")] = None,
    overlong: Annotated[
        str | None, typer.Option(metavar="truncate|drop|error", help="What happens to longer rows; as in a job unless given.")
    ] = None,
    preview: Annotated[int, typer.Option(min=0, max=5, metavar="N", help="Show the first N rows as the model will see them.")] = 0,
    format: FileFormat = None,
    mapping: FileMapping = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=10_000, help="Faults that are listed; all are counted.")] = 50,
    output: Output = Format.TABLE,
    data_dir: DataDir = None,
) -> None:
    """Check a file as the service will, without uploading it.

    Prints every fault with its line (or row), field, rule and hint, and counts rows and tokens with the model's
    own template. With --preview it shows rows as text, and what of them is trained on. Exit code 1 when
    the file can't be trained on.
    """
    asked = {"training": {"max_length": max_length, "overlong": overlong}, "data": data_asked(format, mapping)}
    ours = {name: {key: value for key, value in section.items() if value} for name, section in asked.items()}
    param = "validation_file" if validation else "training_file"
    report = report_on(path, Local.of(data_dir), model, method, param, ours, limit=limit, preview=preview)
    show_report(report, output)
    if not report.ok:
        say(plain(f"{path} can't be trained on: {report.fault_count:,} fault(s) in {report.faulty_lines:,} {report.unit}(s)"))
        raise typer.Exit(ExitCode.FAILED)


def data_asked(format: str | None, mapping: Sequence[str] | None) -> dict[str, Any]:
    """A job's `tunesmith.data` as the options give it. Raises Ended."""
    body: jobfile.Body = {}
    if format is not None:
        body["format"] = format
    for field, column in jobfile.pairs(mapping or [], "--map").items():
        jobfile.put(body, f"mapping.{field}", column)
    return body


def report_on(
    path: Path,
    local: Local,
    model: str | None,
    method: str,
    param: Literal["training_file", "validation_file"],
    ours: dict[str, Any],
    *,
    limit: int = 50,
    preview: int = 0,
) -> DataReport:
    """The report of a local file. `ours` holds a job's `tunesmith` as far as given. Raises Ended."""
    from pydantic import ValidationError

    from service.data_process import run_check
    from service.data_report import MIN_ROWS, CheckRequest
    from trainers.spec import TunesmithSpec

    if not path.is_file():
        raise Ended(ExitCode.USAGE, f"{path} is no file")
    settings = local.settings
    try:
        spec = TunesmithSpec.model_validate(ours)
        request = CheckRequest(
            path=str(path.absolute()),
            method=method,
            model_dir=str(local.model_dir(model)),
            max_length=spec.training.max_length,
            overlong=spec.training.overlong,
            min_rows=MIN_ROWS[param],
            limit=limit,
            param=param,
            preview=preview,
            data=spec.data,
            max_unpacked_ratio=settings.max_unpacked_ratio,
            max_unpacked_bytes=settings.max_unpacked_bytes,
        )
    except ValidationError as error:
        raise Ended(ExitCode.USAGE, _first(error.errors())) from None
    total, name = path.stat().st_size, plain(path.name)
    with bar(f"checking {name}", total) as shown:
        return asyncio.run(
            run_check(
                request,
                memory_bytes=settings.validation_memory_bytes,
                timeout=settings.validation_timeout,
                on_progress=lambda rows, done: shown.at(done, total, f"checking {name}: {rows:,} rows"),
            )
        )


def _first(errors: Sequence[Any]) -> str:
    error = cast("dict[str, Any]", errors[0])
    return f"{'.'.join(str(part) for part in error['loc'])}: {error['msg']}"


def show_report(report: DataReport, output: Format) -> None:
    """Counts, rows as the model sees them, then faults."""
    if output is not Format.TABLE:
        show_data(report.model_dump(mode="json"), output)
        return
    for line in facts([(name.replace("_", " "), f"{value:,}") for name, value in counts(report).items()]):
        typer.echo(line)
    for row in report.preview:
        _show_row(row, report.unit)
    if report.faults:
        typer.echo()
        (_, place), *others = FAULTS
        show_rows([fault.model_dump() for fault in report.faults], [(report.unit.upper(), place), *others], output)
        if report.fault_count > len(report.faults):
            say(f"… and {report.fault_count - len(report.faults):,} more; --limit shows more of them")


def _show_row(row: PreviewRow, unit: str) -> None:
    """Text as it is, the trained part in green, and in [[ ]] where there are no colours."""
    cut = f", cut from {row.tokens_uncut:,}" if row.truncated else ""
    typer.echo()
    typer.secho(f"{unit} {row.line}: {row.tokens:,} tokens{cut}, {row.trained_tokens:,} trained on", bold=True)
    coloured = sys.stdout.isatty()
    for part in row.parts:
        text = visible(part.text)
        if part.trained:
            text = typer.style(text, fg="green") if coloured else f"[[{text}]]"
        typer.echo(text, nl=False)
    typer.echo(" …" if row.shortened else "")


def counts(report: DataReport) -> dict[str, int]:
    """The report's numbers; those that are usually 0 only when they are not."""
    always = ("examples", "rows", "tokens", "trained_tokens", "longest")
    sometimes = ("truncated_rows", "dropped_rows", "rows_without_trained_tokens", "fault_count", "faulty_lines")
    values: dict[str, int] = {name: getattr(report, name) for name in (*always, *sometimes)}
    return {name: value for name, value in values.items() if name in always or value}
