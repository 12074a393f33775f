"""How the command talks: data on standard output, everything else on standard error, and one table of exit codes.

Knows no service and no job. Every command uses it; `OneLineErrors` turns whatever ends a command into one line.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from enum import IntEnum, StrEnum
from typing import Any

import typer
from rich.cells import cell_len

Row = Mapping[str, Any]
Column = tuple[str, Callable[[Row], object]]
"""Heading, and the cell of a row."""


class ExitCode(IntEnum):
    """What a command's exit status tells; MEANING is the text for people."""

    OK = 0
    FAILED = 1
    USAGE = 2
    NOT_FOUND = 3
    DENIED = 4
    AWAY = 5
    CANCELLED = 6
    INTERRUPTED = 130


MEANING: dict[ExitCode, str] = {
    ExitCode.OK: "done; of a watch: the job succeeded, or you detached",
    ExitCode.FAILED: "it failed: the job, the data check, a download, a file; or you answered no",
    ExitCode.USAGE: "wrong use: an option, the job file, a request the service refuses, a stack that can't start",
    ExitCode.NOT_FOUND: "no such job, file, model or artifact",
    ExitCode.DENIED: "no API key, or one that the service refuses",
    ExitCode.AWAY: "the service does not answer, or fails",
    ExitCode.CANCELLED: "of a watch: the job was cancelled",
    ExitCode.INTERRUPTED: "interrupted by Ctrl-C",
}


class Ended(Exception):
    """A command can't go on. `message` says why in one line, `next_step` what to do about it."""

    def __init__(self, code: ExitCode, message: str, next_step: str = "") -> None:
        super().__init__(code, message, next_step)
        self.code, self.message, self.next_step = code, message, next_step


class Format(StrEnum):
    """Form of the data on standard output."""

    TABLE = "table"
    JSON = "json"
    YAML = "yaml"


def epilog(*examples: str) -> str:
    """The end of a help page: how the command is typed."""
    return "\b\n" + "\n".join(["Examples:" if len(examples) > 1 else "Example:", *(f"  {example}" for example in examples)])


def exit_codes() -> str:
    """The table of exit codes, for the end of a help page."""
    return "\b\n" + "\n".join(["Exit codes:", *(f"  {code.value:<4} {meaning}" for code, meaning in MEANING.items())])


def say(text: str = "") -> None:
    """Talk: a line on standard error."""
    typer.echo(text, err=True)


def ask(question: str) -> bool:
    """Ask for yes or no, on standard error; no answer is no."""
    typer.echo(f"{question} [Y/n] ", err=True, nl=False)
    answer = sys.stdin.readline()
    return answer.endswith("\n") and answer.strip().lower() in ("", "y", "yes")


def complain(ended: Ended) -> None:
    """Say why a command can't go on."""
    typer.secho(f"error: {plain(ended.message)}", err=True, fg="red")
    if ended.next_step:
        say(plain(ended.next_step))


def plain(value: object) -> str:
    """`value` as text of one line that can't steer a terminal: names and messages come from outside."""
    if value is None:
        return ""
    return _harmless(str(value), kept="")


def visible(text: str) -> str:
    """`text` with its lines and tabs, but nothing else that could steer a terminal."""
    return _harmless(text, kept="\n\t")


def _harmless(text: str, kept: str) -> str:
    return "".join(
        char if char.isprintable() or char in kept else char.encode("unicode_escape", "backslashreplace").decode() for char in text
    )


def show_rows(rows: Sequence[Row], columns: Sequence[Column], form: Format) -> None:
    """A list on standard output: a table of these columns, or the rows whole."""
    if form is not Format.TABLE:
        show_data(list(rows), form)
        return
    cells = [[heading for heading, _ in columns], *([plain(cell(row)) for _, cell in columns] for row in rows)]
    heading, *lines = aligned(cells)
    typer.secho(heading, bold=True)
    for line in lines:
        typer.echo(line)


def show_one(row: Row, fields: Sequence[Column], form: Format) -> None:
    """One thing on standard output: a line for each field that has a value, or the whole."""
    if form is not Format.TABLE:
        show_data(row, form)
        return
    for line in facts([(name, cell(row)) for name, cell in fields]):
        typer.echo(line)


def facts(pairs: Sequence[tuple[str, object]]) -> list[str]:
    """Lines `name  value`, without the empty ones."""
    return aligned([[name, plain(value)] for name, value in pairs if value is not None and value != ""])


def show_data(value: object, form: Format) -> None:
    """JSON or YAML on standard output."""
    if form is Format.JSON:
        typer.echo(json.dumps(value, indent=2))
    else:
        import yaml

        typer.echo(yaml.safe_dump(value, sort_keys=False, allow_unicode=True), nl=False)


def show_stream(row: Row, form: Format) -> None:
    """One of many on standard output, while more may come: a JSON line, or a YAML document."""
    if form is Format.JSON:
        typer.echo(json.dumps(row))
    else:
        typer.echo("---")
        show_data(dict(row), Format.YAML)
    sys.stdout.flush()


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines whose cells stand below each other; nothing is ever cut, so that ids can be copied."""
    widths = [max(cell_len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return ["  ".join(cell + " " * (width - cell_len(cell)) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def size(count: float) -> str:
    """Bytes for a person."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def duration(seconds: float) -> str:
    """Seconds for a person: the two largest units."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m {whole % 60:02}s"
    if whole < 86400:
        return f"{whole // 3600}h {whole % 3600 // 60:02}m"
    return f"{whole // 86400}d {whole % 86400 // 3600:02}h"


def on_terminal() -> bool:
    """Whether a person reads what is said."""
    return sys.stderr.isatty()
