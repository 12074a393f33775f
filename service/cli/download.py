"""Files from the service to a directory: resumable, verified, and never outside of it.

A file is written beside its place as `….partial`, goes on from there after a cut, and gets its name
once its SHA-256 is right. Knows nothing of jobs; artifacts.py calls it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from service.cli.connection import Service, answer_of, away, refused
from service.cli.output import Ended, ExitCode, plain
from service.cli.screen import Bar

if TYPE_CHECKING:
    import httpx

PIECE = 1 << 20
MAX_CUTS = 5
"""How often in a row a file may be cut off without a new byte before the download gives up."""


@dataclass(frozen=True)
class Wanted:
    """One file: where it is asked for, and what it must be."""

    name: str
    url: str
    bytes: int
    sha256: str


class _Cut(Exception):
    """The connection ended before the file did."""


class _Restart(Exception):
    """The partial file can't be gone on with."""


def place(directory: Path, name: str) -> Path:
    """Where a file of this name lies below `directory`. Raises Ended for a name that leaves it."""
    pure = PurePosixPath(name)
    strange = not pure.parts or pure.is_absolute() or ".." in pure.parts or "\\" in name or not name.isprintable() or name.endswith("/")
    path = directory.joinpath(*pure.parts)
    if strange or not path.resolve().is_relative_to(directory.resolve()):
        raise Ended(ExitCode.FAILED, f"the service names a file outside of the directory: '{plain(name)}'", "Nothing was written there.")
    return path


def download(service: Service, client: httpx.Client, wanted: Wanted, path: Path, shown: Bar) -> str:
    """Bring one file to `path`; "kept" when it was there already, else "downloaded".

    Raises Ended: away when the service stays away (calling again goes on), failed when the bytes are wrong.
    """
    if path.is_file() and path.stat().st_size == wanted.bytes and _digest(path) == wanted.sha256:
        shown.advance(wanted.bytes)
        return "kept"
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    resumed = partial.is_file() and partial.stat().st_size > 0
    _complete(service, client, wanted, partial, shown)
    if _digest(partial) != wanted.sha256 and resumed:
        # The part that was there may have been of something else: once more, whole.
        _discard(partial, shown)
        _complete(service, client, wanted, partial, shown)
    if _digest(partial) != wanted.sha256:
        _discard(partial, shown)
        raise Ended(ExitCode.FAILED, f"{plain(wanted.name)} came with the wrong SHA-256; it was thrown away", "Download it again.")
    partial.replace(path)
    return "downloaded"


def _complete(service: Service, client: httpx.Client, wanted: Wanted, partial: Path, shown: Bar) -> None:
    """Add to the partial file until it has its size."""
    import httpx

    partial.touch()
    if partial.stat().st_size > wanted.bytes:
        partial.write_bytes(b"")
    shown.advance(partial.stat().st_size)
    cuts = 0
    while (before := partial.stat().st_size) < wanted.bytes:
        try:
            _add(service, client, wanted, partial, shown)
            cut: Exception = _Cut("the connection ended early")
        except _Restart:
            _discard(partial, shown)
            partial.touch()
            continue
        except httpx.TransportError as error:
            cut = error
        cuts = 0 if partial.stat().st_size > before else cuts + 1
        if cuts >= MAX_CUTS:
            ended = away(cut, service.target)
            raise Ended(ended.code, ended.message, "The same command goes on where it stopped.") from cut


def _add(service: Service, client: httpx.Client, wanted: Wanted, partial: Path, shown: Bar) -> None:
    """One request for what is missing. Raises httpx.TransportError for a cut, Ended for a refusal."""
    have = partial.stat().st_size
    headers = {"range": f"bytes={have}-", "accept-encoding": "identity"} if have else {"accept-encoding": "identity"}
    with client.stream("GET", wanted.url, headers=headers) as response:
        if response.status_code == 416:
            raise _Restart
        if response.status_code not in (200, 206):
            raise _refusal(service, response)
        whole = response.status_code == 200
        if whole and have:
            shown.advance(-have)
        with partial.open("wb" if whole else "ab") as file:
            for piece in response.iter_bytes(PIECE):
                if file.tell() + len(piece) > wanted.bytes:
                    raise Ended(ExitCode.FAILED, f"{plain(wanted.name)} is longer than the service said; the download was stopped")
                file.write(piece)
                shown.advance(len(piece))


def _refusal(service: Service, response: httpx.Response) -> Ended:
    body = answer_of(response)
    if response.request.url.host != service.client.base_url.host:
        return Ended(
            ExitCode.AWAY,
            f"the store at {response.request.url.host} answers with HTTP status {response.status_code}",
            "Try again in a while.",
        )
    return refused(response.status_code, body, response.headers.get("x-request-id"), service.target)


def _discard(partial: Path, shown: Bar) -> None:
    shown.advance(-partial.stat().st_size)
    partial.unlink()


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
