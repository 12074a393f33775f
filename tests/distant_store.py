"""A local store that behaves as one far away: nothing can be read in place, and what it is asked for is counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

from trainers.storage import ObjectInfo, Storage, open_storage


class DistantStore(Storage):
    """A store on disk behind the protocol, without `local_path`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._inner = open_storage(directory.as_uri())
        self.calls: Counter[str] = Counter()
        self.on_get_file: Callable[[str, Path], None] = lambda key, path: None
        """Called when a file has arrived; may damage it."""

    def put(self, key: str, data: bytes, *, if_absent: bool = False) -> None:
        self.calls["put"] += 1
        self._inner.put(key, data, if_absent=if_absent)

    def put_file(self, key: str, path: Path) -> None:
        self.calls["put_file"] += 1
        self._inner.put_file(key, path)

    def get(self, key: str) -> bytes:
        self.calls["get"] += 1
        return self._inner.get(key)

    def read(self, key: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        self.calls["read"] += 1
        return self._inner.read(key, start, end)

    def get_file(self, key: str, path: Path) -> None:
        self.calls["get_file"] += 1
        self._inner.get_file(key, path)
        self.on_get_file(key, path)

    def head(self, key: str) -> ObjectInfo | None:
        return self._inner.head(key)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        return self._inner.list(prefix)

    def delete(self, key: str) -> None:
        self._inner.delete(key)

    def local_path(self, key: str) -> Path | None:
        return None

    def presigned_url(self, key: str, *, expires: timedelta, filename: str) -> str | None:
        return None
