"""`tunesmith jobs logs` and `jobs metrics`: what a job's runs wrote and measured."""

from __future__ import annotations

import codecs
import sys
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import quote

import typer

from service.cli.connection import CONNECT_TIMEOUT, Service, answer_of, away, connected, refused
from service.cli.options import BaseUrl, DataDir, JobId
from service.cli.output import Column, ExitCode, Format, epilog, say, show_data, show_rows

if TYPE_CHECKING:
    import httpx

TABLE_ROWS = 40
"""Rows of a table unless told: a person looks at it."""
LOGS_EPILOG = epilog("tunesmith jobs logs ftjob-abc123 --follow", "tunesmith jobs logs ftjob-abc123 --attempt 1 --rank 3 --tail 100")
METRICS_EPILOG = epilog("tunesmith jobs metrics ftjob-abc123", "tunesmith jobs metrics ftjob-abc123 -o csv > curves.csv")


class CurveFormat(StrEnum):
    """Form of curves on standard output."""

    TABLE = "table"
    JSON = "json"
    CSV = "csv"


def logs(
    job: JobId,
    follow: Annotated[bool, typer.Option("--follow", help="Go on until the run has ended.")] = False,
    attempt: Annotated[int | None, typer.Option(min=1, help="Number of the run; the latest unless given.")] = None,
    rank: Annotated[str | None, typer.Option(metavar="N|driver", help="Which worker; 0 unless given.")] = None,
    tail: Annotated[int | None, typer.Option("--tail", "-n", min=1, max=100_000, help="Only so many last lines.")] = None,
    base_url: BaseUrl = None,
    data_dir: DataDir = None,
) -> None:
    """Show what a worker of a job's run wrote. Secrets are taken out, and of a very long log the middle."""
    asked = {"follow": follow or None, "attempt": attempt, "rank": rank, "tail": tail}
    with connected(base_url, data_dir) as service:
        try:
            with _answer(service, job, "logs", asked) as response:
                _copy(response.iter_bytes())
                if not follow:
                    say(f"{response.headers['x-tunesmith-log']} of run {response.headers['x-tunesmith-attempt']}")
        except KeyboardInterrupt:
            raise typer.Exit(ExitCode.OK) from None


def metrics(
    job: JobId,
    after_step: Annotated[int, typer.Option(min=0, help="Only steps beyond this one.")] = 0,
    max_points: Annotated[
        int | None, typer.Option(min=10, max=100_000, help=f"At most so many rows; {TABLE_ROWS} in a table unless given, else all.")
    ] = None,
    output: Annotated[CurveFormat, typer.Option("--output", "-o", help="Form of the data on standard output.")] = CurveFormat.TABLE,
    base_url: BaseUrl = None,
    data_dir: DataDir = None,
) -> None:
    """Show a job's curves: losses, accuracies, learning rate, gradient norm and speed by step."""
    most = max_points or (TABLE_ROWS if output is CurveFormat.TABLE else None)
    asked = {"after_step": after_step, "max_points": most, "format": "csv" if output is CurveFormat.CSV else "json"}
    with connected(base_url, data_dir) as service, _answer(service, job, "metrics", asked) as response:
        if output is CurveFormat.CSV:
            _copy(response.iter_bytes())
            return
        response.read()
        curves: dict[str, Any] = response.json()
    if output is CurveFormat.JSON:
        show_data(curves, Format.JSON)
        return
    data: dict[str, list[float | None]] = {name: column for name, column in curves["data"].items() if any(v is not None for v in column)}
    rows = [dict(zip(data, values, strict=True)) for values in zip(*data.values(), strict=True)]
    show_rows(rows, [_column(name) for name in data], Format.TABLE)
    if len(rows) < curves["total_rows"]:
        say(f"{len(rows)} of {curves['total_rows']} steps; --max-points shows more of them")


def _column(name: str) -> Column:
    def cell(row: Mapping[str, Any]) -> str:
        value = row[name]
        return "" if value is None else str(value) if name == "step" else f"{value:.4g}"

    return name.replace("_", " ").upper(), cell


def _copy(pieces: Iterator[bytes]) -> None:
    """Text to standard output as it comes."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    for piece in pieces:
        typer.echo(decoder.decode(piece), nl=False)
        sys.stdout.flush()


@contextmanager
def _answer(service: Service, job_id: str, what: str, asked: Mapping[str, Any]) -> Generator[httpx.Response]:
    """The answer to a call that the official client does not have, about to be read. Raises Ended."""
    import httpx

    params = {name: str(value).lower() for name, value in asked.items() if value is not None}
    url = f"fine_tuning/jobs/{quote(job_id, safe='')}/{what}"
    # A log that is followed may be silent for hours.
    timeout = httpx.Timeout(60.0, connect=CONNECT_TIMEOUT, read=None if "follow" in params else 60.0)
    try:
        with service.bytes_client() as client, client.stream("GET", url, params=params, timeout=timeout) as response:
            if not response.is_success:
                raise refused(response.status_code, answer_of(response), response.headers.get("x-request-id"), service.target)
            yield response
    except httpx.TransportError as error:
        raise away(error, service.target) from error
