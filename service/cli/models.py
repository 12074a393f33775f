"""`tunesmith models …`: what jobs can start from, and what they made."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from service.cli.connection import connected
from service.cli.local import Local
from service.cli.options import BaseUrl, DataDir, Output
from service.cli.output import Column, Ended, ExitCode, Format, epilog, say, show_one, show_rows
from service.cli.screen import bar
from service.cli.times import when

if TYPE_CHECKING:
    from collections.abc import Callable

app = typer.Typer(help="Base models and tuned models.", no_args_is_help=True)
ModelId = Annotated[str, typer.Argument(metavar="MODEL", help="Id of the model.")]


def _ours(name: str) -> Callable[[Any], object]:
    return lambda model: model.get("tunesmith", {}).get(name)


COLUMNS: list[Column] = [
    ("ID", lambda model: model["id"]),
    ("KIND", lambda model: "tuned" if _ours("job_id")(model) else "base"),
    ("FROM", lambda model: _ours("job_id")(model) or "-"),
    ("BASE MODEL", _ours("base_model")),
    ("LICENCE", _ours("licence")),
    ("CREATED", lambda model: when(model["created"] or None)),
]
CATALOGUE: list[Column] = [
    ("ID", lambda entry: entry["id"]),
    ("PULLED", lambda entry: "yes" if entry["pulled"] else "no"),
    ("REVISION", lambda entry: entry["revision"]),
    ("LICENCE", lambda entry: entry["licence"]),
    ("FROM", lambda entry: ", else ".join(entry["sources"])),
]


@app.command("list", epilog=epilog("tunesmith models list", "tunesmith models list --catalogue"))
def list_models(
    catalogue: Annotated[bool, typer.Option("--catalogue", help="What can be pulled into the data directory; asks no service.")] = False,
    output: Output = Format.TABLE,
    base_url: BaseUrl = None,
    data_dir: DataDir = None,
) -> None:
    """List base models that jobs can start from, and the project's tuned models."""
    if catalogue:
        show_rows(_catalogue(Local.of(data_dir)), CATALOGUE, output)
        return
    with connected(base_url, data_dir) as service:
        show_rows([model.to_dict() for model in service.client.models.list()], COLUMNS, output)


@app.command(epilog=epilog("tunesmith models get smollm2-135m-instruct"))
def get(model: ModelId, output: Output = Format.TABLE, base_url: BaseUrl = None, data_dir: DataDir = None) -> None:
    """Show one model."""
    with connected(base_url, data_dir) as service:
        show_one(service.client.models.retrieve(model).to_dict(), COLUMNS, output)


@app.command(epilog=epilog("tunesmith models pull smollm2-135m-instruct"))
def pull(model: ModelId, output: Output = Format.TABLE, data_dir: DataDir = None) -> None:
    """Get a base model of the catalogue into the data directory's storage.

    From the first of its sources that can be reached; converted to safetensors once, every hash checked.
    """
    from service.pull import PullFailed
    from service.pull import pull as store_model

    local = Local.of(data_dir)
    entry = local.entry(model)
    try:
        with bar(f"pulling {model}", None) as shown:
            ref = store_model(
                local.storage, entry, lambda what, done, total: shown.at(done, total or None, what), say, scratch=local.scratch()
            )
    except PullFailed as error:
        raise Ended(ExitCode.FAILED, str(error)) from None
    say(f"{ref.id} is ready, revision {ref.revision}")
    show_one(ref.model_dump(), [(name, _field(name)) for name in ("id", "revision", "licence", "prefix")], output)


def _catalogue(local: Local) -> list[dict[str, Any]]:
    pulled = local.installed()
    return [
        {
            "id": entry.id,
            "pulled": entry.id in pulled,
            "revision": pulled[entry.id].revision if entry.id in pulled else entry.revision,
            "licence": entry.licence,
            "sources": [str(source) for source in entry.source],
        }
        for entry in local.catalogue.entries()
    ]


def _field(name: str) -> Callable[[Any], object]:
    return lambda row: row[name]
