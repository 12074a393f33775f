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

from service.cli.local import Local
from service.cli.options import DataDir, Output
from service.cli.output import Column, Ended, ExitCode, Format, epilog, facts, plain, say, show_data, show_rows, visible
from service.cli.screen import bar

if TYPE_CHECKING:
    from service.data_report import DataReport, PreviewRow

EPILOG = epilog(
    "tunesmith files check train.jsonl --model smollm2-135m-instruct",
    "tunesmith files check train.jsonl --preview 2",
    "tunesmith files check valid.jsonl --validation --max-length 512 -o json",
)
FAULTS: list[Column] = [
    ("LINE", lambda fault: fault["line"] or "-"),
    ("FIELD", lambda fault: fault["path"] or "-"),
    ("RULE", lambda fault: fault["rule"]),
    ("MESSAGE", lambda fault: fault["message"]),
    ("HINT", lambda fault: fault["hint"]),
]


def check(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="JSON Lines file.")],
    model: Annotated[str | None, typer.Option(help="Base model that the file is for; the only one pulled unless given.")] = None,
    method: Annotated[str, typer.Option(help="Method that the file is for.")] = "supervised",
    validation: Annotated[bool, typer.Option("--validation", help="It is a validation file: one row is enough.")] = False,
    max_length: Annotated[int | None, typer.Option(min=16, help="Longest row in tokens; as in a job unless given.")] = None,
    overlong: Annotated[
        str | None, typer.Option(metavar="truncate|drop|error", help="What happens to longer rows; as in a job unless given.")
    ] = None,
    preview: Annotated[int, typer.Option(min=0, max=5, metavar="N", help="Show the first N rows as the model will see them.")] = 0,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=10_000, help="Faults that are listed; all are counted.")] = 50,
    output: Output = Format.TABLE,
    data_dir: DataDir = None,
) -> None:
    """Check a file as the service will, without uploading it.

    Prints every fault with its line, field, rule and hint, and counts rows and tokens with the model's
    own template. With --preview it shows rows as text, and what of them is trained on. Exit code 1 when
    the file can't be trained on.
    """
    training = {"max_length": max_length, "overlong": overlong}
    param = "validation_file" if validation else "training_file"
    given = {key: value for key, value in training.items() if value}
    report = report_on(path, Local.of(data_dir), model, method, param, given, limit=limit, preview=preview)
    show_report(report, output)
    if not report.ok:
        say(plain(f"{path} can't be trained on: {report.fault_count:,} fault(s) in {report.faulty_lines:,} line(s)"))
        raise typer.Exit(ExitCode.FAILED)


def report_on(
    path: Path,
    local: Local,
    model: str | None,
    method: str,
    param: Literal["training_file", "validation_file"],
    training: dict[str, Any],
    *,
    limit: int = 50,
    preview: int = 0,
) -> DataReport:
    """The report of a local file. `training` holds a job's `tunesmith.training` as far as given. Raises Ended."""
    from pydantic import ValidationError

    from service.data_process import run_check
    from service.data_report import MIN_ROWS, CheckRequest
    from trainers.spec import TrainingSpec

    if not path.is_file():
        raise Ended(ExitCode.USAGE, f"{path} is no file")
    try:
        spec = TrainingSpec(**training)
        request = CheckRequest(
            path=str(path.absolute()),
            method=method,
            model_dir=str(local.model_dir(model)),
            max_length=spec.max_length,
            overlong=spec.overlong,
            min_rows=MIN_ROWS[param],
            limit=limit,
            param=param,
            preview=preview,
        )
    except ValidationError as error:
        raise Ended(ExitCode.USAGE, _first(error.errors())) from None
    total, name, settings = path.stat().st_size, plain(path.name), local.settings
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
        _show_row(row)
    if report.faults:
        typer.echo()
        show_rows([fault.model_dump() for fault in report.faults], FAULTS, output)
        if report.fault_count > len(report.faults):
            say(f"… and {report.fault_count - len(report.faults):,} more; --limit shows more of them")


def _show_row(row: PreviewRow) -> None:
    """Text as it is, the trained part in green, and in [[ ]] where there are no colours."""
    cut = f", cut from {row.tokens_uncut:,}" if row.truncated else ""
    typer.echo()
    typer.secho(f"line {row.line}: {row.tokens:,} tokens{cut}, {row.trained_tokens:,} trained on", bold=True)
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
