"""`tunesmith audit …`: who changed what in the organization, and when. Needs an admin key."""

from __future__ import annotations

from datetime import datetime
from itertools import islice
from typing import Annotated, Any

import typer

from service.cli.connection import connected
from service.cli.options import BaseUrl, DataDir, Limit, Output
from service.cli.output import Column, Format, epilog, show_rows
from service.cli.times import when
from service.cli.views import part

app = typer.Typer(help="The audit log of your organization. Needs an admin key.", no_args_is_help=True)
FORMATS = ["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S"]


@app.callback()
def audit() -> None:
    """The audit log of your organization. Needs an admin key."""


COLUMNS: list[Column] = [
    ("TIME", lambda entry: when(entry["effective_at"])),
    ("TYPE", lambda entry: entry["type"]),
    ("OBJECT", lambda entry: entry["tunesmith"]["object_id"]),
    ("PROJECT", lambda entry: part(entry, "project").get("name") or "-"),
    ("KEY", lambda entry: part(entry, "actor", "api_key").get("id") or "operator"),
    ("REQUEST", lambda entry: entry["tunesmith"]["request_id"] or "-"),
]


@app.command(
    "list",
    epilog=epilog(
        "tunesmith audit list",
        "tunesmith audit list --type api_key.created --type api_key.deleted --since 2026-11-01",
        "tunesmith audit list --project proj_abc123 -n 1000 -o json",
    ),
)
def list_audit_logs(
    types: Annotated[list[str] | None, typer.Option("--type", help="Only this type, e.g. job.created; may be repeated.")] = None,
    projects: Annotated[
        list[str] | None, typer.Option("--project", metavar="PROJECT", help="Only changes in this project; may be repeated.")
    ] = None,
    since: Annotated[datetime | None, typer.Option(formats=FORMATS, help="Not before this local time.")] = None,
    until: Annotated[datetime | None, typer.Option(formats=FORMATS, help="Before this local time.")] = None,
    limit: Limit = 100,
    output: Output = Format.TABLE,
    base_url: BaseUrl = None,
    data_dir: DataDir = None,
) -> None:
    """List what was changed, newest first: when, what, on which object, with which key, in which request."""
    bounds = {name: int(moment.timestamp()) for name, moment in (("gte", since), ("lt", until)) if moment is not None}
    given: dict[str, Any] = {"event_types": types, "project_ids": projects, "effective_at": bounds}
    wanted = {name: value for name, value in given.items() if value}
    with connected(base_url, data_dir) as service:
        found = service.client.admin.organization.audit_logs.list(limit=min(limit, 100), **wanted)
        show_rows([entry.to_dict() for entry in islice(found, limit)], COLUMNS, output)
