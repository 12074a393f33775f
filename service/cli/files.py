"""`tunesmith files …`: upload, import, check, list, get, content, delete."""

from __future__ import annotations

import io
from collections.abc import Callable
from datetime import timedelta
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer

from service.cli import check as checking
from service.cli import chunked as in_parts
from service.cli.connection import Service, connected
from service.cli.options import BaseUrl, DataDir, Limit, Output
from service.cli.output import Column, Ended, ExitCode, Format, Row, epilog, plain, say, show_one, show_rows, size
from service.cli.screen import bar
from service.cli.times import seconds_of, when

app = typer.Typer(help="Training and validation files.", no_args_is_help=True)
FileId = Annotated[str, typer.Argument(metavar="FILE_ID", help="Id of the file, file-…")]
COLUMNS: list[Column] = [
    ("ID", lambda file: file["id"]),
    ("NAME", lambda file: file["filename"]),
    ("SIZE", lambda file: size(file["bytes"])),
    ("PURPOSE", lambda file: file["purpose"]),
    ("CREATED", lambda file: when(file["created_at"])),
]
EXPIRES: Column = ("EXPIRES", lambda file: when(file.get("expires_at")))
"""Shown of a single file; few have it."""


@app.command(
    epilog=epilog(
        "tunesmith files upload train.jsonl",
        "tunesmith files upload train.jsonl --expires-after 7d",
        "tunesmith files upload train.jsonl -o json | jq -r '.[0].id'",
    )
)
def upload(
    paths: Annotated[
        list[Path], typer.Argument(metavar="PATH...", help="JSON Lines, JSON arrays, CSV or Parquet; also packed by gzip or zstd.")
    ],
    expires_after: Annotated[str | None, typer.Option(metavar="SPAN", help="The files go by themselves after 1h to 30d.")] = None,
    chunked: Annotated[bool, typer.Option("--chunked", help="In parts, as files of more than 64 MB always are.")] = False,
    output: Output = Format.TABLE,
    base_url: BaseUrl = None,
    data_dir: DataDir = None,
) -> None:
    """Upload files for training or validation.

    Large files go in parts. When such an upload is interrupted, the same command goes on with it, for an hour.
    """
    for path in paths:
        readable(path)
    after = None if expires_after is None else _life(expires_after)
    with connected(base_url, data_dir) as service:
        rows = [upload_file(service, path, chunked=chunked, expires_after=after) for path in paths]
        show_rows(rows, [*COLUMNS, EXPIRES] if after else COLUMNS, output)


def _life(text: str) -> timedelta:
    after = timedelta(seconds=seconds_of(text, "--expires-after"))
    if not timedelta(hours=1) <= after <= timedelta(days=30):
        raise Ended(ExitCode.USAGE, f"a file can't expire after {plain(text)}", "--expires-after is from 1h to 30d.")
    return after


@app.command("import", epilog=epilog("tunesmith files import https://datasets.example.com/train.jsonl.gz"))
def import_file(
    source: Annotated[str, typer.Argument(metavar="URL", help="https://… or s3://bucket/key, of those that the service may ask.")],
    name: Annotated[str | None, typer.Option(help="Name of the file; the last part of the URL unless given.")] = None,
    sha256: Annotated[str | None, typer.Option(metavar="HEX", help="What the bytes must hash to.")] = None,
    output: Output = Format.TABLE,
    base_url: BaseUrl = None,
    data_dir: DataDir = None,
) -> None:
    """Have the service fetch a file by itself, so that its bytes do not come through here."""
    asked = {"source": source, "purpose": "fine-tune", "filename": name, "sha256": sha256}
    with connected(base_url, data_dir) as service:
        imported = service.post_once("/files/import", {key: value for key, value in asked.items() if value is not None})
        say(f"imported {plain(source)} ({size(imported['bytes'])}) as {imported['id']}")
        show_one(imported, COLUMNS, output)


app.command("check", epilog=checking.EPILOG)(checking.check)


@app.command("list", epilog=epilog("tunesmith files list", "tunesmith files list --purpose fine-tune-results -o json"))
def list_files(
    purpose: Annotated[str | None, typer.Option(help="Only files of this purpose: fine-tune or fine-tune-results.")] = None,
    limit: Limit = 100,
    output: Output = Format.TABLE,
    base_url: BaseUrl = None,
    data_dir: DataDir = None,
) -> None:
    """List the project's files, newest first."""
    with connected(base_url, data_dir) as service:
        wanted: dict[str, Any] = {"limit": min(limit, 1000)} | ({"purpose": purpose} if purpose else {})
        found = islice(service.client.files.list(**wanted), limit)
        show_rows([file.to_dict() for file in found], COLUMNS, output)


@app.command(epilog=epilog("tunesmith files get file-abc123"))
def get(file_id: FileId, output: Output = Format.TABLE, base_url: BaseUrl = None, data_dir: DataDir = None) -> None:
    """Show one file's facts."""
    with connected(base_url, data_dir) as service:
        show_one(service.client.files.retrieve(file_id).to_dict(), [*COLUMNS, EXPIRES], output)


@app.command(epilog=epilog("tunesmith files content file-abc123 > metrics.csv"))
def content(file_id: FileId, base_url: BaseUrl = None, data_dir: DataDir = None) -> None:
    """Write a file's bytes to standard output."""
    out = typer.get_binary_stream("stdout")
    with connected(base_url, data_dir) as service, service.client.files.with_streaming_response.content(file_id) as response:
        for piece in response.iter_bytes(1 << 20):
            out.write(piece)
    out.flush()


@app.command(epilog=epilog("tunesmith files delete file-abc123"))
def delete(
    file_ids: Annotated[list[str], typer.Argument(metavar="FILE_ID...", help="Ids of the files.")],
    output: Output = Format.TABLE,
    base_url: BaseUrl = None,
    data_dir: DataDir = None,
) -> None:
    """Delete files. Jobs that were made from them stay."""
    columns: list[Column] = [("ID", lambda file: file["id"]), ("DELETED", lambda file: "yes" if file["deleted"] else "no")]
    with connected(base_url, data_dir) as service:
        show_rows([service.client.files.delete(file_id).to_dict() for file_id in file_ids], columns, output)


def readable(path: Path) -> int:
    """Size of a file in bytes. Raises Ended unless it is a file that can be read and is not empty."""
    try:
        with path.open("rb") as file:
            count = path.stat().st_size if file.read(1) else 0
    except OSError as error:
        raise Ended(ExitCode.USAGE, f"{path} can't be read: {error.strerror}") from None
    if count == 0:
        raise Ended(ExitCode.USAGE, f"{path} is empty", "A training file has at least 10 rows.")
    return count


def upload_file(service: Service, path: Path, *, chunked: bool = False, expires_after: timedelta | None = None) -> Row:
    """Upload one file, with a bar; it is read piece by piece, so its size does not matter."""
    count = readable(path)
    whole = in_parts.upload if chunked or count > in_parts.LARGE else _upload_whole
    uploaded = whole(service, path, count, expires_after)
    say(f"uploaded {plain(path)} ({size(count)}) as {uploaded['id']}")
    return uploaded


def _upload_whole(service: Service, path: Path, count: int, expires_after: timedelta | None) -> Row:
    with bar(f"uploading {plain(path.name)}", count) as shown, _Read(path, lambda done: shown.at(done, count)) as file:
        return service.client.files.create(file=(path.name, file), purpose="fine-tune", **in_parts.expiry(expires_after)).to_dict()


class _Read(io.FileIO):
    """A file that tells how far it has been read."""

    def __init__(self, path: Path, at: Callable[[int], object]) -> None:
        super().__init__(path, "rb")
        self._at = at

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(-1 if size is None else size)
        self._at(self.tell())
        return data or b""
