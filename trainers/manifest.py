"""A manifest lists every file under a prefix with size and sha256; it is written last, so it means completeness.

`checkpoint` and `publish` write them; a reader trusts nothing below a prefix that its manifest does not bear out.
Bytes of a manifest depend on the files and the RunSpec alone: writing it again is the same write.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainers.storage import NoSuchObject, Storage

MANIFEST = "manifest.json"
FORMAT = 1


class ManifestBroken(Exception):
    """The prefix is incomplete or not what its manifest says."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One file: its name below the prefix, size and content hash."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """The files below a prefix, and facts such as the step and the RunSpec."""

    files: tuple[Entry, ...]
    facts: dict[str, Any]

    @property
    def total_bytes(self) -> int:
        """Size of all files."""
        return sum(entry.bytes for entry in self.files)

    def sha256_of(self, name: str) -> str:
        """Hash of one file; KeyError when it is not listed."""
        return {entry.name: entry.sha256 for entry in self.files}[name]

    def encode(self) -> bytes:
        """As stored: sorted JSON."""
        files = [{"name": e.name, "bytes": e.bytes, "sha256": e.sha256} for e in sorted(self.files, key=lambda e: e.name)]
        return json.dumps({"format": FORMAT, **self.facts, "files": files}, indent=1, sort_keys=True).encode()


def describe(directory: Path) -> tuple[Entry, ...]:
    """An entry for each file below a local directory."""
    paths = sorted(path for path in directory.rglob("*") if path.is_file())
    return tuple(Entry(path.relative_to(directory).as_posix(), path.stat().st_size, sha256_file(path)) for path in paths)


def read(storage: Storage, prefix: str) -> Manifest:
    """The manifest under `prefix`. Raises ManifestBroken when there is none or it can't be understood."""
    try:
        raw = storage.get(f"{prefix}/{MANIFEST}")
        facts = json.loads(raw)
        files = tuple(Entry(e["name"], e["bytes"], e["sha256"]) for e in facts.pop("files"))
        version = facts.pop("format")
    except NoSuchObject as error:
        raise ManifestBroken(f"{prefix} has no manifest") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ManifestBroken(f"the manifest of {prefix} is damaged: {error!r}") from error
    if version != FORMAT:
        raise ManifestBroken(f"the manifest of {prefix} has format {version}, not {FORMAT}")
    return Manifest(files, facts)


def fetch(storage: Storage, prefix: str, entries: Iterable[Entry], into: Path) -> None:
    """Copy the listed files below `into`, checking each one's size and sha256. Raises ManifestBroken naming the file."""
    for entry in entries:
        path = _inside(into, entry.name)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            storage.get_file(f"{prefix}/{entry.name}", path)
        except NoSuchObject as error:
            raise ManifestBroken(f"{prefix}/{entry.name} is missing") from error
        if path.stat().st_size != entry.bytes or sha256_file(path) != entry.sha256:
            raise ManifestBroken(f"{prefix}/{entry.name} is not what the manifest says")


def write(storage: Storage, prefix: str, directory: Path, facts: dict[str, Any]) -> tuple[str, int]:
    """Store every file below `directory` under `prefix`, then the manifest; its sha256 and the size of the files.

    Raises storage.ObjectExists when another manifest is there already.
    """
    manifest = Manifest(describe(directory), facts)
    for entry in manifest.files:
        storage.put_file(f"{prefix}/{entry.name}", directory / entry.name)
    encoded = manifest.encode()
    storage.put(f"{prefix}/{MANIFEST}", encoded, if_absent=True)
    return sha256_bytes(encoded), manifest.total_bytes


def remove(storage: Storage, prefix: str, *, keep: Iterable[str] = (), spare: Callable[[str], bool] = lambda key: False) -> None:
    """Delete all below `prefix` but for the prefixes in `keep` and what is to `spare`.

    Every manifest first: what is half deleted must not look complete.
    """
    kept = tuple(f"{other}/" for other in keep)
    keys = [info.key for info in storage.list(f"{prefix.rstrip('/')}/") if not info.key.startswith(kept) and not spare(info.key)]
    for key in sorted(keys, key=lambda key: key.rpartition("/")[2] != MANIFEST):
        storage.delete(key)


def _inside(directory: Path, name: str) -> Path:
    path = (directory / name).resolve()
    if not path.is_relative_to(directory.resolve()):
        raise ManifestBroken(f"the manifest names a file outside its prefix: {name!r}")
    return path


def sha256_file(path: Path) -> str:
    """Hash of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_bytes(data: bytes) -> str:
    """Hash of bytes."""
    return hashlib.sha256(data).hexdigest()
