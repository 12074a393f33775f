"""Where a base model lies in storage, and how a process that needs its files gets at them.

`base/<id>/<revision>/` is written once by the service's `pull`, its manifest last. Knows nothing of where models
come from. Called by the data check and by every worker before it loads a model. Free of torch.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from trainers import manifest
from trainers.manifest import Manifest, ManifestBroken
from trainers.spec import BaseModelRef
from trainers.storage import Storage


def base_prefix(model_id: str, revision: str) -> str:
    """Storage prefix of a base model; `manifest.json` there means complete."""
    return f"base/{model_id}/{revision}"


def fetch_base(ref: BaseModelRef, storage: Storage, cache_dir: Path) -> Path:
    """A directory with the model's files and nothing else: the store's own where it can be read in place, else a copy below `cache_dir`.

    Size and sha256 of each file are those of the manifest; a file that has not changed since it was hashed is not hashed
    again. Any number of processes may call it at once: one copies, the others wait. Raises ManifestBroken naming the
    file that is missing, damaged or not listed, and what `storage` raises.
    """
    listed = manifest.read(storage, ref.prefix)
    seen = cache_dir / f"{ref.prefix}.verified"
    in_place = storage.local_path(ref.prefix)
    if in_place is not None:
        _verify(in_place, listed, ref, seen)
        return in_place
    directory = cache_dir / ref.prefix
    with _alone(cache_dir / f"{ref.prefix}.lock"):
        try:
            _verify(directory, listed, ref, seen)
        except ManifestBroken:
            _copy(storage, ref, listed, directory)
            _verify(directory, listed, ref, seen)
    return directory


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """One process at a time; the lock of one that was killed is free."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _copy(storage: Storage, ref: BaseModelRef, listed: Manifest, directory: Path) -> None:
    """The whole model or nothing. What killed copies left beside it goes."""
    for left in directory.parent.glob(f".{directory.name}-*"):
        shutil.rmtree(left, ignore_errors=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
    try:
        for entry in listed.files:
            try:
                manifest.fetch(storage, ref.prefix, [entry], partial)
            except ManifestBroken:  # bytes can be damaged on their way; stored ones are damaged the second time too
                manifest.fetch(storage, ref.prefix, [entry], partial)
        shutil.rmtree(directory, ignore_errors=True)
        partial.rename(directory)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _verify(directory: Path, listed: Manifest, ref: BaseModelRef, seen: Path) -> None:
    """Raise ManifestBroken unless `directory` holds the listed files and no other.

    `seen` keeps size, time and inode of the files that were hashed; as long as they are the same, so is the content.
    """
    stats = _stats(directory)
    names = {entry.name for entry in listed.files}
    if missing := names - stats.keys():
        raise _broken(ref, min(missing), "is missing")
    if unlisted := stats.keys() - names - {manifest.MANIFEST}:
        raise _broken(ref, min(unlisted), "is not listed in the manifest; remove it")
    marks = {name: stats[name] for name in sorted(names)}
    now = json.dumps({"manifest": manifest.sha256_bytes(listed.encode()), "files": marks})
    with suppress(OSError):
        if seen.read_text() == now:
            return
    for entry in listed.files:
        if stats[entry.name][0] != entry.bytes or manifest.sha256_file(directory / entry.name) != entry.sha256:
            raise _broken(ref, entry.name, "is not what the manifest says")
    with suppress(OSError):  # without the note the files are hashed again next time, which is slow and right
        _replace(seen, now)


def _stats(directory: Path) -> dict[str, tuple[int, int, int]]:
    """Size, time of change and inode of every file; the store's own hidden files are not the model's."""
    paths = {path.relative_to(directory).as_posix(): path for path in directory.rglob("*") if path.is_file()}
    stats = {name: path.stat() for name, path in paths.items() if not any(part.startswith(".") for part in name.split("/"))}
    return {name: (stat.st_size, stat.st_mtime_ns, stat.st_ino) for name, stat in stats.items()}


def _broken(ref: BaseModelRef, name: str, what: str) -> ManifestBroken:
    return ManifestBroken(f"{ref.prefix}/{name} {what}. `tunesmith models pull {ref.id}` stores the model again.")


def _replace(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    with os.fdopen(handle, "w") as file:
        file.write(text)
    os.replace(name, path)
