"""Every help page as one Markdown page: `python -m service.cli.pages > docs/cli.md`.

A test fails when docs/cli.md is not what this prints.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from typing import Any

from typer.main import get_command

from service.cli import app
from service.cli.output import MEANING

HEAD = """# The `tunesmith` command

Data goes to standard output, everything else to standard error. `-o json` and `-o yaml` print what the
service answers, whole.

**Which service.** `--base-url`, else `--data-dir`, else `TUNESMITH_BASE_URL`, else the embedded stack on
`TUNESMITH_DATA_DIR` (`.tunesmith`). **Which key.** With `--data-dir`, that directory's own; else the file named by
`TUNESMITH_API_KEY_FILE`, else `TUNESMITH_API_KEY`, else the data directory's, for the stack that runs there and no
other. A key is never an argument.
"""


def pages() -> str:
    """The whole page."""
    codes = "\n".join(f"| {code.value} | {meaning} |" for code, meaning in MEANING.items())
    parts = [HEAD, f"## Exit codes\n\n| code | meaning |\n|---|---|\n{codes}\n"]
    for path in commands():
        name = " ".join(["tunesmith", *path])
        parts.append(f"## {name}\n\n```\n{_help(path)}\n```\n")
    return "\n".join(parts)


def commands() -> list[tuple[str, ...]]:
    """Every command that is shown, by its words after `tunesmith`."""
    return list(_commands(get_command(app), ()))


def _commands(command: Any, path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """Paths of every command that is shown, in the order of the help page."""
    yield path
    for name, below in getattr(command, "commands", {}).items():
        if not below.hidden:
            yield from _commands(below, (*path, name))


def _help(path: tuple[str, ...]) -> str:
    printed = io.StringIO()
    with redirect_stdout(printed):
        app([*path, "--help"], prog_name="tunesmith", standalone_mode=False)
    return "\n".join(line.rstrip() for line in printed.getvalue().strip().splitlines())


if __name__ == "__main__":
    sys.stdout.write(pages())
