"""`tunesmith migrate openai`: take files and jobs along from OpenAI, or from any service that speaks its API.

Lists, downloads, shows what each job becomes and, when asked to, makes it again. Composes migrate_source.py, which only reads,
migrate_plan.py, which decides, and migrate_create.py; migrate_ledger.py remembers, so that the same command goes on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Option

from service.cli import migrate_create, migrate_plan, migrate_source
from service.cli.connection import Service, connected
from service.cli.download import place
from service.cli.migrate_ledger import Ledger, is_whole
from service.cli.migrate_plan import COLUMNS, Move
from service.cli.migrate_source import Gone, Source
from service.cli.options import BaseUrl, DataDir, Output
from service.cli.output import Ended, ExitCode, Format, Row, aligned, ask, complain, epilog, plain, say, show_data, show_rows, size
from service.cli.screen import bar
from service.filenames import clean_filename

app = typer.Typer(help="Move from another service.", no_args_is_help=True)
NAME_BYTES = 200
"""Of a downloaded file's name: file systems take 255, and `.partial` comes behind."""


@dataclass(frozen=True)
class Taken:
    """What the source has, and what of it lies here."""

    url: str
    ledger: Ledger
    jobs: Sequence[Row]
    files: Sequence[str]
    """Ids of the files that lie here, whole."""


@app.command(
    "openai",
    epilog=epilog(
        "tunesmith migrate openai --key-file openai-key",
        "tunesmith migrate openai --key-file openai-key --model qwen2.5-0.5b-instruct -o json",
        "tunesmith migrate openai --key-file openai-key --model qwen2.5-0.5b-instruct --create",
    ),
)
def from_openai(
    source: Annotated[str, Option("--from", metavar="URL", help="OpenAI, or a service that speaks its API.")] = migrate_source.OPENAI,
    key_file: Annotated[
        Path | None,
        Option("--key-file", metavar="FILE", help="File that holds the key there.  [env var: TUNESMITH_MIGRATE_KEY, the key itself]"),
    ] = None,
    model: Annotated[str | None, Option(metavar="BASE", help="Base model here that the jobs are to be made again on.")] = None,
    jobs: Annotated[list[str] | None, Option("--jobs", metavar="ID", help="Only this job; may be repeated.  [default: all]")] = None,
    all_files: Annotated[bool, Option("--all-files", help="Download also the files that no job used.")] = False,
    to: Annotated[
        Path | None,
        Option("--to", metavar="DIR", help="Where the files go.  [default: migrate/HOST in the data directory]", show_default=False),
    ] = None,
    create: Annotated[bool, Option("--create", help="Upload the files and create the jobs here.")] = False,
    yes: Annotated[bool, Option("--yes", "-y", help="Do not ask before jobs are created.")] = False,
    output: Output = Format.TABLE,
    base_url: BaseUrl = None,
    data_dir: DataDir = None,
) -> None:
    """Take fine-tuning files and jobs along from OpenAI.

    Downloads the files that jobs used and shows what each job would become here. Nothing is changed at the source, and
    without --create nothing here. Interrupted or repeated, it goes on: no file is moved, and no job created, twice.
    """
    if create and model is None:
        raise Ended(ExitCode.USAGE, "--create needs a base model", "Name one with --model; `tunesmith models list` shows them.")
    url = migrate_source.address(source)
    if create:
        with connected(base_url, data_dir) as service:
            service.client.models.retrieve(model or "")
    ledger = Ledger.of((to or _data_dir(data_dir) / "migrate" / migrate_source.host(url)).absolute(), url)
    with migrate_source.opened(url, key_file) as there:
        taken = _take(there, ledger, jobs or [], all_files=all_files)
    moves = [migrate_plan.plan(job, model, taken.files, named=bool(jobs)) for job in taken.jobs]
    _explain(moves)
    if not create:
        _show(taken, moves, {}, output)
        return
    with connected(base_url, data_dir) as service:
        _create(service, taken, moves, confirm=not yes, form=output)


def _data_dir(given: Path | None) -> Path:
    from service.settings import ClientSettings

    return given or ClientSettings().data_dir


def _take(there: Source, ledger: Ledger, wanted: Sequence[str], *, all_files: bool) -> Taken:
    """Everything that is to be had: what lies here already is not asked for again."""
    listed = there.files()
    jobs = there.jobs(wanted)
    if not jobs and not all_files:
        raise Ended(
            ExitCode.NOT_FOUND,
            f"there are no fine-tuning jobs at {there.url}",
            "A key sees one project's jobs: take that project's key. --all-files downloads files without jobs.",
        )
    used = [job[name] for job in jobs for name in migrate_create.FILES if job.get(name)]
    files = list(dict.fromkeys([*used, *(listed if all_files else ())]))
    say(f"{there.url}: {len(jobs)} jobs, {len(files)} files to have in {plain(ledger.directory)}")
    at_hand = [file_id for file_id in files if ledger.kept(file_id) or _brought(there, ledger, listed.get(file_id))]
    return Taken(there.url, ledger, jobs, at_hand)


def _brought(there: Source, ledger: Ledger, file: Row | None) -> bool:
    """Whether a file that is not in the ledger could be had."""
    if file is None:
        return False
    name = clean_filename(file["filename"]).encode()[-NAME_BYTES:].decode(errors="ignore")
    path, count = place(ledger.directory, f"files/{file['id']}/{name}"), file["bytes"]
    if not is_whole(path, count):
        try:
            with bar(f"downloading {plain(name)}", count) as shown:
                there.bring(file["id"], count, path, shown)
        except Gone as gone:
            say(f"{file['id']} is not handed out: {plain(gone)}")
            return False
        say(f"downloaded {file['id']} ({size(count)}) to {plain(path)}")
    ledger.downloaded(file["id"], file["filename"], count, path)
    return True


def _explain(moves: Sequence[Move]) -> None:
    for move in moves:
        if move.why_not:
            say(f"{move.id} does not move: {plain(move.why_not)}")
        for note in move.notes if not move.why_not else ():
            say(f"{move.id}: {plain(note)}")
    if moves:
        for told in migrate_plan.NEVER_MOVES:
            say(told)


def _create(service: Service, taken: Taken, moves: Sequence[Move], *, confirm: bool, form: Format) -> None:
    offered = [move for move in reversed(moves) if not move.why_not]
    here = migrate_create.known(service, offered, taken.ledger)
    wanted = [move for move in offered if move.id not in here]
    if here:
        say(f"{len(here)} of them are here already")
    if wanted and confirm and not _agreed(service, wanted):
        raise Ended(ExitCode.FAILED, "nothing was created", "The files stay downloaded; --yes does not ask.")
    refused = 0
    for move in wanted:
        try:
            here[move.id] = migrate_create.create(service, migrate_source.host(taken.url), move, taken.ledger)
        except Ended as ended:
            if ended.code is not ExitCode.USAGE:
                raise Ended(ended.code, ended.message, f"{ended.next_step} The same command goes on from there.".strip()) from ended
            complain(ended)
            refused += 1
    _show(taken, moves, here, form, service)
    if refused:
        raise Ended(ExitCode.FAILED, f"{refused} of {len(wanted)} jobs were refused", "The same command tries them again.")


def _agreed(service: Service, wanted: Sequence[Move]) -> bool:
    rows = [migrate_plan.row(move, None) for move in wanted]
    for line in aligned([[heading for heading, _ in COLUMNS], *([plain(cell(row)) for _, cell in COLUMNS] for row in rows)]):
        say(line)
    return ask(f"Create these {len(wanted)} jobs at {service.target.base_url}?")


def _show(taken: Taken, moves: Sequence[Move], here: dict[str, str], form: Format, service: Service | None = None) -> None:
    """The jobs as a table, or everything as data."""
    rows = [migrate_plan.row(move, here.get(move.id)) for move in moves]
    if form is Format.TABLE:
        show_rows(rows, COLUMNS, form)
        return
    target = service.target.base_url if service else None
    files: list[dict[str, Any]] = []
    for file_id in taken.files:
        known_as = taken.ledger.here(target, "files", file_id) if target else None
        files.append({"id": file_id, **(taken.ledger.kept(file_id) or {}), "here": known_as})
    show_data({"source": taken.url, "directory": str(taken.ledger.directory), "files": files, "jobs": rows}, form)
