"""`tunesmith organizations …`: for the operator, on the data directory's database. Needs no running service and no key."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from service.cli.local import Local
from service.cli.options import DataDir, Output
from service.cli.output import Column, Ended, ExitCode, Format, epilog, say, show_one, show_rows
from service.cli.times import when

if TYPE_CHECKING:
    from service.store import Store

T = TypeVar("T")
app = typer.Typer(help="Organizations: for the operator, on the data directory's database.", no_args_is_help=True)
COLUMNS: list[Column] = [
    ("ID", lambda organization: organization["id"]),
    ("NAME", lambda organization: organization["name"]),
    ("CREATED", lambda organization: when(organization["created_at"])),
]
MADE: list[Column] = [
    ("organization", lambda made: made["organization_id"]),
    ("project", lambda made: made["project_id"]),
    ("key id", lambda made: made["id"]),
    ("key", lambda made: made["value"]),
]


@app.command(epilog=epilog("tunesmith organizations create research", "tunesmith organizations create research -o json | jq -r .value"))
def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the organization, for people.")],
    output: Output = Format.TABLE,
    data_dir: DataDir = None,
) -> None:
    """Create an organization with its first project and an admin key, which is shown this once."""
    from service.tenancy import create_organization

    if not 1 <= len(name) <= 128 or not name.isprintable():
        raise Ended(ExitCode.USAGE, "a name has 1 to 128 printable characters")
    made = _in_database(data_dir, lambda store: create_organization(store, name))
    say("The key is shown this once.")
    show_one(asdict(made), MADE, output)


@app.command("list", epilog=epilog("tunesmith organizations list"))
def list_organizations(output: Output = Format.TABLE, data_dir: DataDir = None) -> None:
    """List the organizations, oldest first."""
    from service.records import Organization

    async def found(store: Store) -> list[Organization]:
        async with store.read() as tx:
            return await tx.organizations()

    show_rows([asdict(organization) for organization in _in_database(data_dir, found)], COLUMNS, output)


@app.command(epilog=epilog("tunesmith organizations key org-abc123"))
def key(
    organization: Annotated[str, typer.Argument(metavar="ORGANIZATION", help="Id of the organization, org-…")],
    output: Output = Format.TABLE,
    data_dir: DataDir = None,
) -> None:
    """Make another admin key for an organization whose own are lost. It is shown this once."""
    from service.tenancy import new_admin_key

    made = _in_database(data_dir, lambda store: new_admin_key(store, organization))
    say("The key is shown this once.")
    show_one(asdict(made), MADE, output)


def _in_database(data_dir: Path | None, work: Callable[[Store], Awaitable[T]]) -> T:
    """What `work` gives on the database that the settings name. Raises Ended when it does not answer, or has never been used."""
    from service.store import Store, StoreUnavailable

    settings = Local.of(data_dir).settings
    if settings.database_url is None and not (settings.data_dir / "tunesmith.db").exists():
        raise Ended(ExitCode.AWAY, f"no stack has been started on {settings.data_dir}", "Start one with `tunesmith up --detach`.")

    async def worked() -> T:
        store = Store(settings.database)
        try:
            return await work(store)
        finally:
            await store.close()

    try:
        return asyncio.run(worked())
    except StoreUnavailable as error:
        raise Ended(ExitCode.AWAY, f"the database does not answer: {error}") from None
