"""`tunesmith projects …`: create, list, get, update, archive the projects of the organization. Needs an admin key."""

from __future__ import annotations

from itertools import islice
from typing import Annotated
from urllib.parse import quote

import typer

from service.cli.connection import connected
from service.cli.jobfile import pairs
from service.cli.options import BaseUrl, DataDir, Limit, Output
from service.cli.output import Column, Ended, ExitCode, Format, Row, epilog, say, show_one, show_rows, size
from service.cli.times import when
from service.cli.views import part

app = typer.Typer(help="Projects of your organization, and their quotas. Needs an admin key.", no_args_is_help=True)
PATH = "/organization/projects"
QUOTAS = ("running_jobs", "queued_jobs", "gpu_hours", "stored_bytes", "requests_per_minute", "priority")
ProjectId = Annotated[str, typer.Argument(metavar="PROJECT", help="Id of the project, proj_…")]
QuotaOption = Annotated[
    list[str] | None,
    typer.Option(
        "--quota",
        metavar="NAME=NUMBER",
        help=f"A quota: {', '.join(QUOTAS)}. Instead of a number, unlimited or default; may be repeated.",
    ),
]
COLUMNS: list[Column] = [
    ("ID", lambda project: project["id"]),
    ("NAME", lambda project: project["name"]),
    ("STATUS", lambda project: project["status"]),
    ("CREATED", lambda project: when(project["created_at"])),
]


def _quota(name: str) -> Column:
    return name.replace("_", " "), lambda project: _used(project, name)


def _used(project: Row, name: str) -> str:
    """E.g. `1 of 4`, `12.5 MB of unlimited`; without what is used where that was not asked for."""
    used, limit = part(project, "tunesmith", "usage").get(name), _number(name, project["tunesmith"]["limits"][name])
    return limit if used is None else f"{_number(name, used)} of {limit}"


def _number(name: str, value: float | str) -> str:
    if isinstance(value, str):
        return value
    return size(value) if name == "stored_bytes" else f"{value:g}"


FIELDS: list[Column] = [
    ("id", lambda project: project["id"]),
    ("name", lambda project: project["name"]),
    ("status", lambda project: project["status"]),
    ("organization", lambda project: project["tunesmith"]["organization_id"]),
    ("created", lambda project: when(project["created_at"])),
    ("archived", lambda project: when(project["archived_at"])),
    *(_quota(name) for name in QUOTAS),
]


@app.command(epilog=epilog("tunesmith projects create search", "tunesmith projects create search --quota running_jobs=2"))
def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the project, for people.")],
    quota: QuotaOption = None,
    output: Output = Format.TABLE,
    base_url: BaseUrl = None,
    data_dir: DataDir = None,
) -> None:
    """Create a project. Make a key for it with `keys create`."""
    quotas = quotas_of(quota)
    with connected(base_url, data_dir) as service:
        made = service.post(PATH, {"name": name, "tunesmith": {"quotas": quotas}})
        say(f"Make a key for it: tunesmith keys create {made['id']} --name NAME{service.target.flags}")
        show_one(made, FIELDS, output)


@app.command("list", epilog=epilog("tunesmith projects list", "tunesmith projects list --archived -o json"))
def list_projects(
    archived: Annotated[bool, typer.Option("--archived", help="Archived projects too.")] = False,
    limit: Limit = 100,
    output: Output = Format.TABLE,
    base_url: BaseUrl = None,
    data_dir: DataDir = None,
) -> None:
    """List the organization's projects, newest first."""
    with connected(base_url, data_dir) as service:
        found = service.client.admin.organization.projects.list(limit=min(limit, 100), include_archived=archived)
        show_rows([project.to_dict() for project in islice(found, limit)], COLUMNS, output)


@app.command(epilog=epilog("tunesmith projects get proj_abc123"))
def get(project: ProjectId, output: Output = Format.TABLE, base_url: BaseUrl = None, data_dir: DataDir = None) -> None:
    """Show one project, its quotas and what it uses of them."""
    with connected(base_url, data_dir) as service:
        show_one(service.client.admin.organization.projects.retrieve(project).to_dict(), FIELDS, output)


@app.command(
    epilog=epilog(
        "tunesmith projects update proj_abc123 --name search",
        "tunesmith projects update proj_abc123 --quota gpu_hours=200 --quota running_jobs=default",
    )
)
def update(
    project: ProjectId,
    name: Annotated[str | None, typer.Option(help="Another name.")] = None,
    quota: QuotaOption = None,
    output: Output = Format.TABLE,
    base_url: BaseUrl = None,
    data_dir: DataDir = None,
) -> None:
    """Change a project's name and quotas; what is not named stays as it is."""
    quotas = quotas_of(quota)
    if name is None and not quotas:
        raise Ended(ExitCode.USAGE, "nothing to change", "Give --name or --quota.")
    with connected(base_url, data_dir) as service:
        show_one(service.post(_path(project), {"name": name, "tunesmith": {"quotas": quotas}}), FIELDS, output)


@app.command(epilog=epilog("tunesmith projects archive proj_abc123"))
def archive(project: ProjectId, output: Output = Format.TABLE, base_url: BaseUrl = None, data_dir: DataDir = None) -> None:
    """Archive a project whose jobs have ended. Its keys are refused from then on; there is no way back."""
    with connected(base_url, data_dir) as service:
        show_one(service.client.admin.organization.projects.archive(project).to_dict(), FIELDS, output)


def _path(project: str) -> str:
    return f"{PATH}/{quote(project, safe='')}"


def quotas_of(given: list[str] | None) -> dict[str, float | str | None]:
    """`NAME=NUMBER` words as the service takes them; None takes its default again. Raises Ended."""
    return {name: _amount(name, text) for name, text in pairs(given or [], "--quota").items()}


def _amount(name: str, text: str) -> float | str | None:
    if name not in QUOTAS:
        raise Ended(ExitCode.USAGE, f"there is no quota '{name}'", f"There are: {', '.join(QUOTAS)}.")
    if text in ("default", "unlimited"):
        return None if text == "default" else text
    try:
        return float(text) if name == "gpu_hours" else int(text)
    except ValueError:
        raise Ended(ExitCode.USAGE, f"'{text}' is no number for the quota '{name}'", "Write a number, unlimited or default.") from None
