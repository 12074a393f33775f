"""The local directory as a Storage: an object is a file, its key the path below the root.

Files are written in the root's `.incoming`, synced, then moved: any number of processes may share a root. A file there is
locked by who writes it, so one that can be locked belongs to nobody and is swept when a store is opened.
A key can't be an object and the start of other keys at once, which S3 allows. Made by `storage.open_storage`.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from io import BufferedRandom, BufferedReader
from pathlib import Path

from trainers.local_files import create, disk_errors, replacing, sync, sync_directory
from trainers.storage import INCOMING, NoSuchObject, ObjectExists, ObjectInfo, StorageUnavailable, check_key, check_prefix

PIECE = 2**20
TRIES = 100
"""How often a write is placed again when deleting removed its directory in between."""


class LocalStorage:
    """Objects below one directory; see Storage for what each method promises."""

    def __init__(self, root: Path) -> None:
        """Makes the directory when there is none, and removes what processes that died were writing."""
        self._root, self._incoming = root, root / INCOMING
        with disk_errors(str(root)):
            root.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._incoming.mkdir(exist_ok=True, mode=0o700)
            _sweep(self._incoming)

    def put(self, key: str, data: bytes, *, if_absent: bool = False) -> None:
        target = self._path(key)
        with disk_errors(key), self._arriving() as (file, arrived):
            file.write(data)
            sync(file)
            if if_absent:
                self._place_first(key, arrived, target, data)
            else:
                self._place(key, arrived, target, os.replace)

    def put_file(self, key: str, path: Path) -> None:
        target = self._path(key)
        with path.open("rb") as source, disk_errors(key), self._arriving() as (file, arrived):
            shutil.copyfileobj(source, file, PIECE)
            sync(file)
            self._place(key, arrived, target, os.replace)

    def get(self, key: str) -> bytes:
        with disk_errors(key), self._opened(key) as file:
            return file.read()

    def read(self, key: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        if start < 0:
            raise ValueError("a range starts at 0 or behind it")
        with disk_errors(key), self._opened(key) as file:
            file.seek(start)
            left = None if end is None else max(0, end - start)
            while piece := file.read(PIECE if left is None else min(PIECE, left)):
                left = None if left is None else left - len(piece)
                yield piece

    def get_file(self, key: str, path: Path) -> None:
        with disk_errors(key), self._opened(key) as source, disk_errors(str(path)), replacing(path) as file:
            shutil.copyfileobj(source, file, PIECE)

    def head(self, key: str) -> ObjectInfo | None:
        path = self._path(key)
        with disk_errors(key):
            return _info(key, path) or self._require_root()

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        directory = check_prefix(prefix).rpartition("/")[0]
        with disk_errors(prefix):
            self._require_root()
            yield from _walk(self._root / directory, f"{directory}/" if directory else "", prefix)

    def delete(self, key: str) -> None:
        path = self._path(key)
        with disk_errors(key):
            self._require_root()
            with suppress(FileNotFoundError, NotADirectoryError, IsADirectoryError):
                path.unlink()
            self._remove_emptied(path.parent)

    def local_path(self, key: str) -> Path | None:
        return self._path(key.removesuffix("/"))

    def presigned_url(self, key: str, *, expires: timedelta, filename: str) -> str | None:
        return None

    def _path(self, key: str) -> Path:
        return self._root / check_key(key)

    def _require_root(self) -> None:
        """A root that is gone is a disk that is not mounted; its objects must not look deleted."""
        if not self._root.is_dir():
            raise StorageUnavailable(f"{self._root} is not there")

    @contextmanager
    def _opened(self, key: str) -> Generator[BufferedReader]:
        try:
            file = self._path(key).open("rb")
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
            self._require_root()
            raise NoSuchObject(key) from error
        with file:
            yield file

    @contextmanager
    def _arriving(self) -> Generator[tuple[BufferedRandom, Path]]:
        """A new file in `.incoming`, locked; gone at the end unless it was moved away."""
        while True:
            path = self._incoming / secrets.token_hex(16)
            with create(path) as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                if os.fstat(file.fileno()).st_nlink == 0:
                    continue  # swept before it could be locked
                try:
                    yield file, path
                finally:
                    path.unlink(missing_ok=True)
                return

    def _place(self, key: str, arrived: Path, target: Path, move: Callable[[Path, Path], None]) -> None:
        for _ in range(TRIES):
            try:
                self._make_directories(target.parent)
                move(arrived, target)
            except FileNotFoundError:
                continue
            except (NotADirectoryError, IsADirectoryError) as error:
                raise _both(key) from error
            return sync_directory(target.parent)
        raise StorageUnavailable(f"{key}: its directory does not stay; is {self._root} there?")

    def _place_first(self, key: str, arrived: Path, target: Path, data: bytes) -> None:
        """A link, unlike a rename, fails when the name is taken: of all that try, one succeeds."""
        for _ in range(TRIES):
            try:
                return self._place(key, arrived, target, os.link)
            except FileExistsError:
                if target.is_dir():
                    raise _both(key) from None
                with suppress(NoSuchObject):  # deleted since: try again
                    if self.get(key) == data:
                        return sync_directory(target.parent)
                    raise ObjectExists(key) from None
        raise StorageUnavailable(f"{key}: made and deleted all the time")

    def _make_directories(self, directory: Path) -> None:
        """Those below the root that are missing; never the root, see _require_root."""
        if directory == self._root or directory.exists():
            return
        self._make_directories(directory.parent)
        with suppress(FileExistsError):
            directory.mkdir(mode=0o700)
            sync_directory(directory.parent)

    def _remove_emptied(self, directory: Path) -> None:
        while directory != self._root:
            try:
                directory.rmdir()
            except FileNotFoundError:
                pass
            except OSError:
                return  # not empty, or filled again since
            directory = directory.parent


def _both(key: str) -> ValueError:
    return ValueError(f"{key!r} can't be an object and the start of other keys at once in a local directory")


def _sweep(incoming: Path) -> None:
    for path in incoming.iterdir():
        with suppress(OSError), path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()


def _info(key: str, path: Path) -> ObjectInfo | None:
    try:
        facts = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return ObjectInfo(key, facts.st_size, facts.st_mtime) if path.is_file() else None


def _walk(directory: Path, at: str, prefix: str) -> Iterator[ObjectInfo]:
    """Objects below `directory`, whose keys start with `at`. Directories sort with their `/`, as S3 sorts whole keys."""
    try:
        with os.scandir(directory) as found:
            names = sorted(at + entry.name + ("/" if entry.is_dir(follow_symlinks=False) else "") for entry in found)
    except (FileNotFoundError, NotADirectoryError):
        return
    for name in names:
        if name.endswith("/"):
            inside = directory / name[len(at) : -1]
            if (name.startswith(prefix) or prefix.startswith(name)) and name != f"{INCOMING}/":
                yield from _walk(inside, name, prefix)
        elif name.startswith(prefix) and (info := _info(name, directory / name[len(at) :])) is not None:
            yield info
