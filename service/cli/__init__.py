"""The `tunesmith` command: `up`, `down`, `status`, `doctor`, and a noun with a verb for everything else.

Composed here; each noun has its own module. Nothing heavy is imported before a command runs, so that
`--help` comes at once.
"""

from __future__ import annotations

import sys
from importlib.metadata import version
from typing import Annotated

import typer

from service.cli import artifacts, audit, files, jobs, keys, migrate, models, organizations, projects, stack, webhooks
from service.cli.one_line import OneLineErrors
from service.cli.output import epilog, exit_codes

WIDTH = 100
"""Help pages are the same on every terminal, and in docs/cli.md."""

app = typer.Typer(
    cls=OneLineErrors,
    name="tunesmith",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "terminal_width": WIDTH},
    epilog=epilog("tunesmith up --detach", "tunesmith jobs create -f job.yaml --watch") + "\n\n" + exit_codes(),
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"tunesmith {version('tunesmith')}")
        raise typer.Exit


@app.callback()
def root(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an unexpected error.")] = False,
    show_version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")] = False,
) -> None:
    """Fine-tune language models on your own machines, over the OpenAI wire format."""


STACK = {
    "up": epilog("tunesmith up --detach", "tunesmith up --data-dir /srv/tunesmith --port 0 --grpc-port 0"),
    "down": epilog("tunesmith down"),
    "status": epilog("tunesmith status", "tunesmith status -o json | jq -r .base_url"),
    "doctor": epilog("tunesmith doctor"),
}
for command in (stack.up, stack.down, stack.status, stack.doctor):
    app.command(epilog=STACK[command.__name__])(command)
NOUNS = {
    noun.__name__.rpartition(".")[2]: noun.app
    for noun in (files, jobs, models, artifacts, organizations, projects, keys, audit, webhooks, migrate)
}
for name, noun in NOUNS.items():
    app.add_typer(noun, name=name)


def main() -> None:
    """Entry point of the console script."""
    app(prog_name="tunesmith")


if __name__ == "__main__":
    sys.exit(main())
