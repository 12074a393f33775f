"""The options that many commands have, described once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from service.cli.output import Format

Output = Annotated[Format, typer.Option("--output", "-o", help="Form of the data on standard output.")]
BaseUrl = Annotated[
    str | None,
    typer.Option("--base-url", metavar="URL", help="Address of the service.  [env var: TUNESMITH_BASE_URL]", show_default=False),
]
DataDir = Annotated[
    Path | None,
    typer.Option(
        "--data-dir",
        metavar="DIR",
        help="Data directory of the embedded stack.  [env var: TUNESMITH_DATA_DIR; default: .tunesmith]",
        show_default=False,
    ),
]
FileFormat = Annotated[
    str | None,
    typer.Option("--format", metavar="jsonl|json|csv|parquet", help="Format of the files; told by their content unless given."),
]
FileMapping = Annotated[
    list[str] | None,
    typer.Option(
        "--map",
        "--mapping",
        metavar="FIELD=COLUMN",
        help="Column that holds prompt, completion, system or messages; or role, content, roles.NAME. May be repeated.",
    ),
]
JobId = Annotated[str, typer.Argument(metavar="JOB", help="Id of the job, ftjob-…")]
Limit = Annotated[int, typer.Option("--limit", "-n", min=1, help="Newest that are shown.")]
