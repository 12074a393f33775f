"""`tunesmith artifacts …`: the published files of a succeeded job."""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import typer

from service.cli.connection import Service, connected
from service.cli.download import Wanted, download, place
from service.cli.options import BaseUrl, DataDir, JobId, Output
from service.cli.output import Column, Ended, ExitCode, Format, epilog, plain, say, show_rows, size
from service.cli.screen import bar

app = typer.Typer(help="Published files of a succeeded job: adapter, metrics, model card.", no_args_is_help=True)
COLUMNS: list[Column] = [
    ("NAME", lambda item: item["name"]),
    ("SIZE", lambda item: size(item["bytes"])),
    ("SHA256", lambda item: item["sha256"]),
]
DOWNLOADED: list[Column] = [
    ("NAME", lambda item: item["name"]),
    ("SIZE", lambda item: size(item["bytes"])),
    ("STATE", lambda item: item["state"]),
    ("PATH", lambda item: item["path"]),
]


@app.command("list", epilog=epilog("tunesmith artifacts list ftjob-abc123"))
def list_artifacts(job: JobId, output: Output = Format.TABLE, base_url: BaseUrl = None, data_dir: DataDir = None) -> None:
    """List the files that a job published, with their SHA-256."""
    with connected(base_url, data_dir) as service:
        show_rows(published(service, job), COLUMNS, output)


@app.command(
    "download",
    epilog=epilog("tunesmith artifacts download ftjob-abc123 --to adapter", "tunesmith artifacts download ftjob-abc123 --name 'adapter/*'"),
)
def download_artifacts(
    job: JobId,
    to: Annotated[Path | None, typer.Option("--to", metavar="DIR", help="Directory, made if needed; the job's id unless given.")] = None,
    name: Annotated[str | None, typer.Option(help="Only files whose name fits this pattern, e.g. 'adapter/*'.")] = None,
    output: Output = Format.TABLE,
    base_url: BaseUrl = None,
    data_dir: DataDir = None,
) -> None:
    """Download a job's files and verify each one's SHA-256.

    Interrupted downloads go on where they stopped when the command is run again; files that are
    there already are kept.
    """
    directory = to or Path(job)
    with connected(base_url, data_dir) as service:
        items = [item for item in published(service, job) if name is None or fnmatchcase(item["name"], name)]
        if not items:
            _nothing(service, job, name)
        places = [place(directory, item["name"]) for item in items]
        with bar("downloading", sum(item["bytes"] for item in items)) as shown, service.bytes_client() as client:
            for item, path in zip(items, places, strict=True):
                shown.at_work(plain(item["name"]))
                item["state"], item["path"] = download(service, client, _wanted(job, item), path, shown), str(path)
        say(f"{len(items)} file(s) in {directory}, verified")
        show_rows(items, DOWNLOADED, output)


def published(service: Service, job_id: str) -> list[dict[str, Any]]:
    """What the job published: name, bytes, sha256 of each file."""
    return service.get(f"/fine_tuning/jobs/{quote(job_id, safe='')}/artifacts")["data"]


def _wanted(job_id: str, item: dict[str, Any]) -> Wanted:
    url = f"fine_tuning/jobs/{quote(job_id, safe='')}/artifacts/{quote(item['name'])}"
    return Wanted(item["name"], url, item["bytes"], item["sha256"])


def _nothing(service: Service, job_id: str, name: str | None) -> None:
    """Say why there is nothing to download."""
    if name is not None and (names := [item["name"] for item in published(service, job_id)]):
        raise Ended(ExitCode.NOT_FOUND, f"no artifact fits '{name}'", f"There are: {', '.join(names)}.")
    status = service.client.fine_tuning.jobs.retrieve(job_id).status
    next_step = "They are published when it has succeeded." if status not in ("failed", "cancelled") else ""
    raise Ended(ExitCode.NOT_FOUND, f"{job_id} has no artifacts; its status is {status}", next_step)
