"""Stores a base model: from the first source that can be had, checked, in the one form that workers read.

Files first, read back and hashed, the manifest last; whatever kills a pull, what is there without a manifest
counts for nothing and is overwritten by the next. Called by `tunesmith models pull`; blocks.
"""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import tempfile
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from service.catalogue import DirectorySource, Entry, GgufSource, Source
from service.model_sources import fetch
from service.pull_errors import OnProgress, PullFailed, SourceAway
from trainers import manifest, registry
from trainers.manifest import Manifest
from trainers.model_files import TEMPLATE, Unusable, inspect
from trainers.spec import BaseModelRef
from trainers.storage import NoSuchObject, ObjectExists, Storage

__all__ = ["OnProgress", "PullFailed", "pull"]
SCRATCH, LOCK = "tunesmith-pull-", "lock"


def _quiet(_: object, *__: object) -> None:
    """Says nothing."""


def pull(
    storage: Storage,
    entry: Entry,
    on_progress: OnProgress = _quiet,
    say: Callable[[str], None] = _quiet,
    *,
    scratch: Path | None = None,
) -> BaseModelRef:
    """Where the model lies in `storage`, once it does.

    A model that is there is read and hashed, and kept when it is whole, stored again when it is not. `say` hears in
    one line why a source was passed over. `scratch` is where files lie meanwhile (the system's place unless given).
    Raises PullFailed, and what `storage` raises.
    """
    for source in entry.source:
        ref = entry.ref(source)
        if _is_whole(storage, ref, on_progress, say):
            _require_unchanged(storage, ref, source)
            return ref
    reasons: list[str] = []
    for source in entry.source:
        try:
            with _directory_in(scratch) as directory:
                return _pull_from(source, entry, storage, directory, on_progress)
        except SourceAway as away:
            reasons.append(f"{source}: {away}")
            if source is not entry.source[-1]:
                say(f"{reasons[-1]}; trying the next source")
        except Unusable as error:
            raise PullFailed(f"{entry.id} from {source} can't be used: {error}") from error
    raise PullFailed(f"{entry.id} could not be had. {'. '.join(reasons)}")


@contextmanager
def _directory_in(place: Path | None) -> Generator[Path]:
    """A new directory that ends with the `with`; those of killed pulls beside it, gigabytes perhaps, end now."""
    with tempfile.TemporaryDirectory(prefix=SCRATCH, dir=place) as name:
        directory = Path(name)
        with (directory / LOCK).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            for other in directory.parent.glob(f"{SCRATCH}*"):
                _remove_if_dead(other)
            yield directory


def _remove_if_dead(directory: Path) -> None:
    """A lock outlives nobody; whose directory can't be locked lives, or is another user's."""
    try:
        with (directory / LOCK).open("r+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(directory, ignore_errors=True)
    except OSError:
        return


def _is_whole(storage: Storage, ref: BaseModelRef, on_progress: OnProgress, say: Callable[[str], None]) -> bool:
    """Whether the model is stored as its manifest says; what is not is taken off the list of installed models."""
    if storage.head(f"{ref.prefix}/{manifest.MANIFEST}") is None:
        return False
    try:
        _read_back(storage, ref.prefix, manifest.read(storage, ref.prefix), on_progress)
        return True
    except manifest.ManifestBroken as error:
        say(f"{error}; storing {ref.id} again")
        manifest.remove(storage, ref.prefix)
        return False


def _require_unchanged(storage: Storage, ref: BaseModelRef, source: Source) -> None:
    """A changed file of this machine under an old revision would be passed over without a word."""
    if not isinstance(source, DirectorySource | GgufSource):
        return
    known = manifest.read(storage, ref.prefix).facts.get("source", {}).get("sha256", {})
    place = Path(source.path) if isinstance(source, DirectorySource) else Path(source.gguf).parent
    for name, sha256 in known.items():
        path = place / name
        if path.is_file() and manifest.sha256_file(path) != sha256:
            raise PullFailed(
                f"{path} has changed since revision '{source.revision}' of {ref.id} was stored; give it a new revision in the catalogue"
            )


def _pull_from(source: Source, entry: Entry, storage: Storage, scratch: Path, on_progress: OnProgress) -> BaseModelRef:
    directory = fetch(source, scratch, on_progress)
    origin = _origin(source, directory)
    if entry.chat_template is not None:
        (directory / TEMPLATE).unlink(missing_ok=True)
        (directory / TEMPLATE).write_text(entry.chat_template, encoding="utf-8")
    on_progress("checking", 0, 0)
    facts = inspect(directory)
    try:
        registry.open_tokenizer(directory)
    except ValueError as error:
        raise Unusable(f"{error}; a template can be given in the catalogue (chat_template)") from error
    ref = entry.ref(source)
    about = {"id": ref.id, "revision": ref.revision, "licence": ref.licence, "source": origin}
    _store(storage, ref, directory, about | facts, on_progress)
    return ref


def _origin(source: Source, directory: Path) -> dict[str, Any]:
    """Where the model came from, with the hashes of files of this machine."""
    origin: dict[str, Any] = source.model_dump(mode="json", exclude={"sha256"})
    if isinstance(source, DirectorySource):
        origin["sha256"] = {entry.name: entry.sha256 for entry in manifest.describe(directory)}
    if isinstance(source, GgufSource):
        origin["sha256"] = {Path(source.gguf).name: manifest.sha256_file(Path(source.gguf))}
    return origin


def _store(storage: Storage, ref: BaseModelRef, directory: Path, facts: dict[str, Any], on_progress: OnProgress) -> None:
    listed = Manifest(manifest.describe(directory), facts)
    done = 0
    for entry in listed.files:
        on_progress(f"storing {entry.name}", done, listed.total_bytes)
        storage.put_file(f"{ref.prefix}/{entry.name}", directory / entry.name)
        done += entry.bytes
    _remove_others(storage, ref.prefix, {entry.name for entry in listed.files})
    try:
        _read_back(storage, ref.prefix, listed, on_progress)
        storage.put(f"{ref.prefix}/{manifest.MANIFEST}", listed.encode(), if_absent=True)
    except manifest.ManifestBroken as error:
        raise PullFailed(f"{error}: its bytes changed while they were stored; pull again") from error
    except ObjectExists as error:
        raise PullFailed(f"{ref.id} was stored by another process meanwhile, with other settings; pull again to check it") from error


def _remove_others(storage: Storage, prefix: str, names: Iterable[str]) -> None:
    """What a pull that was killed left under other names; a model's directory holds listed files only."""
    ours = {f"{prefix}/{name}" for name in names} | {f"{prefix}/{manifest.MANIFEST}"}
    for info in list(storage.list(f"{prefix}/")):
        if info.key not in ours:
            storage.delete(info.key)


def _read_back(storage: Storage, prefix: str, listed: Manifest, on_progress: OnProgress) -> None:
    """Raise ManifestBroken naming the file unless what is stored is what is listed."""
    done = 0
    for entry in listed.files:
        digest, size = hashlib.sha256(), 0
        try:
            for piece in storage.read(f"{prefix}/{entry.name}"):
                digest.update(piece)
                size += len(piece)
                on_progress(f"checking {entry.name}", done + size, listed.total_bytes)
        except NoSuchObject as error:
            raise manifest.ManifestBroken(f"{prefix}/{entry.name} is missing") from error
        done += size
        if (size, digest.hexdigest()) != (entry.bytes, entry.sha256):
            raise manifest.ManifestBroken(f"{prefix}/{entry.name} is not what the manifest says")
