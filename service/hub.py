"""Downloads a model from the Hugging Face Hub, or a mirror of it, at one commit. Plain HTTP: needs no package of the Hub's.

HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE are the Hub's own settings, which its users have set already, and are read
here for that reason. Knows no storage. Called by `model_sources`.
"""

from __future__ import annotations

import hashlib
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import httpx
from pydantic import BaseModel, Field, SecretStr, ValidationError

from service.catalogue import HubSource
from service.pull_errors import OnProgress, PullFailed, SourceAway, require_room
from trainers import manifest
from trainers.model_files import files_to_take

TIMEOUT = httpx.Timeout(30, connect=5)
TRIES = 5
"""How often a download that broke off is taken up again; each try starts where the last one ended."""
PARTIAL = 206
"""The status of an answer that begins where it was asked to."""
PAUSE = 1.0
"""Seconds before the second try; doubles with each further one."""


class _Lfs(BaseModel):
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _File(BaseModel):
    """One file of the repository: large ones have an LFS hash, all others git's."""

    rfilename: str
    size: Annotated[int, Field(ge=0)]
    blobId: Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")]
    lfs: _Lfs | None = None

    def fits(self, path: Path) -> bool:
        """The content is that of the commit."""
        if self.lfs is not None:
            return manifest.sha256_file(path) == self.lfs.sha256
        data = path.read_bytes()
        return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest() == self.blobId


class _Listing(BaseModel):
    sha: str
    siblings: list[_File]


@dataclass(frozen=True)
class Hub:
    """A Hub and who asks it."""

    endpoint: str
    token: SecretStr | None

    @classmethod
    def of_environment(cls) -> Hub:
        """Raises SourceAway when the environment forbids to ask."""
        for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
            if os.environ.get(name, "").lower() in ("1", "true", "yes", "on"):
                raise SourceAway(f"{name} is set")
        token = os.environ.get("HF_TOKEN")
        return cls(os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/"), SecretStr(token) if token else None)

    def fetch(self, source: HubSource, into: Path, on_progress: OnProgress) -> None:
        """The model's files below `into`, each with the hash that the commit gives it.

        Raises SourceAway when the Hub can't be had, PullFailed when what it gives is not what was asked for,
        and model_files.Unusable.
        """
        headers = {"authorization": f"Bearer {self.token.get_secret_value()}"} if self.token else {}
        try:
            with httpx.Client(base_url=self.endpoint, headers=headers, timeout=TIMEOUT, follow_redirects=True) as client:
                files = _listing(client, source)
                require_room(into, sum(file.size for file in files))
                for file in files:
                    _download(client, source, file, into / file.rfilename, on_progress)
        except httpx.HTTPStatusError as error:
            raise SourceAway(_refusal(error.response.status_code)) from error
        except httpx.HTTPError as error:
            raise SourceAway(f"{self.endpoint} can't be reached ({str(error) or type(error).__name__})") from error


def _refusal(status: int) -> str:
    if status in (401, 403):
        return "it refuses access; HF_TOKEN must be a token that may read this repository"
    if status == 404:
        return "it has no such repository or revision"
    return f"it answers with status {status}"


def _listing(client: httpx.Client, source: HubSource) -> list[_File]:
    """The files to take."""
    answer = client.get(f"/api/models/{source.hub}/revision/{source.revision}", params={"blobs": "true"})
    answer.raise_for_status()
    try:
        listing = _Listing.model_validate_json(answer.content)
    except ValidationError as error:
        raise SourceAway("its answer is not that of a Hub") from error
    if listing.sha != source.revision:
        raise PullFailed(f"{source}: asked for the commit {source.revision}, it has {listing.sha[:40]!r}")
    names = files_to_take(file.rfilename for file in listing.siblings)
    if absent := sorted(source.sha256.keys() - set(names)):
        raise PullFailed(f"{source}: the catalogue gives a hash for {absent[0]}, which is not among its files")
    return [file for file in listing.siblings if file.rfilename in names]


def _download(client: httpx.Client, source: HubSource, file: _File, path: Path, on_progress: OnProgress) -> None:
    url = f"/{source.hub}/resolve/{source.revision}/{file.rfilename}"
    for attempt in range(1, TRIES + 1):
        try:
            _continue(client, url, file, path, on_progress)
            break
        except httpx.TransportError:
            if attempt == TRIES:
                raise
            time.sleep(PAUSE * 2 ** (attempt - 1))
    pinned = source.sha256.get(file.rfilename)
    if path.stat().st_size != file.size or not file.fits(path) or (pinned and manifest.sha256_file(path) != pinned):
        raise PullFailed(f"{source}: {file.rfilename} is not the file of the pinned revision, and nothing was stored; try another mirror")


def _continue(client: httpx.Client, url: str, file: _File, path: Path, on_progress: OnProgress) -> None:
    """Get the bytes that are still missing. Stops at the size that was announced, whatever comes."""
    have = path.stat().st_size if path.exists() else 0
    headers = {"accept-encoding": "identity"} | ({"range": f"bytes={have}-"} if have else {})
    with client.stream("GET", url, headers=headers) as answer:
        answer.raise_for_status()
        have = have if answer.status_code == PARTIAL else 0
        with path.open("ab" if have else "wb") as out:
            for piece in answer.iter_bytes():
                have += out.write(piece)
                on_progress(f"downloading {file.rfilename}", have, file.size)
                if have > file.size:
                    return
    if have < file.size:
        raise httpx.ReadError(f"{file.rfilename} broke off at {have:,} of {file.size:,} bytes")
