"""`tunesmith keys …`: create, list, revoke, rotate the API keys of a project. Needs an admin key."""

from __future__ import annotations

from itertools import islice
from typing import Annotated, Any
from urllib.parse import quote

import typer

from service.cli.connection import Service, connected
from service.cli.options import BaseUrl, DataDir, Limit, Output
from service.cli.output import Column, Format, epilog, say, show_one, show_rows
from service.cli.projects import PATH, ProjectId
from service.cli.times import seconds_of, when

app = typer.Typer(help="API keys of a project. Needs an admin key.", no_args_is_help=True)
KeyId = Annotated[str, typer.Argument(metavar="KEY", help="Id of the key: the part of it after ts_.")]
COLUMNS: list[Column] = [
    ("ID", lambda key: key["id"]),
    ("NAME", lambda key: key["name"]),
    ("SCOPES", lambda key: ",".join(key["tunesmith"]["scopes"])),
    ("CREATED", lambda key: when(key["created_at"])),
    ("LAST USED", lambda key: when(key["last_used_at"]) or "never"),
    ("EXPIRES", lambda key: when(key["expires_at"]) or "never"),
]
MADE: list[Column] = [
    ("id", lambda key: key["id"]),
    ("name", lambda key: key["name"]),
    ("project", lambda key: key["tunesmith"]["project_id"]),
    ("scopes", lambda key: ",".join(key["tunesmith"]["scopes"])),
    ("expires", lambda key: when(key["expires_at"]) or "never"),
    ("key", lambda key: key["value"]),
]


@app.command(
    epilog=epilog(
        "tunesmith keys create proj_abc123 --name ci",
        "tunesmith keys create proj_abc123 --name dashboard --scope read --expires-in 90d",
        "tunesmith keys create proj_abc123 --name ci -o json | jq -r .value > key",
    )
)
def create(
    project: ProjectId,
    name: Annotated[str, typer.Option(help="What the key is for.")],
    scope: Annotated[
        list[str] | None, typer.Option(help="read, write or admin; may be repeated.  [default: read, write]", show_default=False)
    ] = None,
    expires_in: Annotated[
        str | None, typer.Option(metavar="DURATION", help="After how long it expires, e.g. 90d or 12h; never unless given.")
    ] = None,
    output: Output = Format.TABLE,
    base_url: BaseUrl = None,
    data_dir: DataDir = None,
) -> None:
    """Create an API key. The whole key is shown this once."""
    body: dict[str, Any] = {"name": name, "scopes": scope or ["read", "write"]}
    if expires_in is not None:
        body["expires_in_seconds"] = seconds_of(expires_in, "--expires-in")
    with connected(base_url, data_dir) as service:
        made = service.post(_path(project), body)
    say("The key is shown this once.")
    show_one(made, MADE, output)


@app.command("list", epilog=epilog("tunesmith keys list proj_abc123"))
def list_keys(
    project: ProjectId, limit: Limit = 100, output: Output = Format.TABLE, base_url: BaseUrl = None, data_dir: DataDir = None
) -> None:
    """List a project's API keys, newest first."""
    with connected(base_url, data_dir) as service:
        found = service.client.admin.organization.projects.api_keys.list(project, limit=min(limit, 100))
        show_rows([key.to_dict() for key in islice(found, limit)], COLUMNS, output)


@app.command(epilog=epilog("tunesmith keys revoke proj_abc123 0123456789ab"))
def revoke(project: ProjectId, key: KeyId, output: Output = Format.TABLE, base_url: BaseUrl = None, data_dir: DataDir = None) -> None:
    """Revoke an API key. The next request with it is refused."""
    columns: list[Column] = [("ID", lambda row: row["id"]), ("REVOKED", lambda row: "yes" if row["deleted"] else "no")]
    with connected(base_url, data_dir) as service:
        show_rows([service.client.admin.organization.projects.api_keys.delete(key, project_id=project).to_dict()], columns, output)


@app.command(epilog=epilog("tunesmith keys rotate proj_abc123 0123456789ab --grace 1d"))
def rotate(
    project: ProjectId,
    key: KeyId,
    grace: Annotated[str, typer.Option(metavar="DURATION", help="How long the old secret stays good, e.g. 1d or 30m.")] = "0s",
    output: Output = Format.TABLE,
    base_url: BaseUrl = None,
    data_dir: DataDir = None,
) -> None:
    """Give an API key another secret under the same id. The whole new key is shown this once."""
    seconds = seconds_of(grace, "--grace")
    with connected(base_url, data_dir) as service:
        made = service.post(f"{_path(project)}/{quote(key, safe='')}/rotate", {"grace_seconds": seconds})
        say("The key is shown this once.")
        _own_key(service, key)
    show_one(made, MADE, output)


def _own_key(service: Service, key: str) -> None:
    if service.target.key.startswith(f"ts_{key}_"):
        say(f"This command used it too: put the new key where it was read, {service.target.key_origin}.")


def _path(project: str) -> str:
    return f"{PATH}/{quote(project, safe='')}/api_keys"
