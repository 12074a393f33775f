"""Parts become one object: in bounded memory, each checked on its way."""

from __future__ import annotations

import hashlib
import os
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.assembly import PartDamaged, keep_parts
from service.records import UploadPart
from trainers.local_storage import LocalStorage

SIZE = 8 << 20


class Flipping(LocalStorage):
    """Spoils the next reads of a key."""

    flips = 0

    def read(self, key: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        spoil, self.flips = self.flips > 0, self.flips - 1
        for piece in super().read(key, start, end):
            yield bytes([piece[0] ^ 1]) + piece[1:] if spoil else piece


@pytest.fixture
def storage(tmp_path: Path) -> Flipping:
    return Flipping(tmp_path / "objects")


def stored(storage: LocalStorage, *pieces: bytes) -> list[UploadPart]:
    parts = [UploadPart(f"part_{n}", "up", len(data), hashlib.sha256(data).hexdigest(), f"up/{n}", 0) for n, data in enumerate(pieces)]
    for part, data in zip(parts, pieces, strict=True):
        storage.put(part.key, data)
    return parts


def test_memory_does_not_grow_with_the_parts(storage: Flipping, tmp_path: Path) -> None:
    data = os.urandom(SIZE)
    parts = stored(storage, *[data] * 4)
    tracemalloc.start()
    kept = keep_parts(storage, "file", parts, md5=None, spool=tmp_path / "spool")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (kept.bytes, kept.sha256) == (4 * SIZE, hashlib.sha256(data * 4).hexdigest())
    assert peak < SIZE
    assert list((tmp_path / "spool").iterdir()) == []


def test_a_part_that_comes_damaged_once_is_read_again(storage: Flipping, tmp_path: Path) -> None:
    parts = stored(storage, b"abc", b"defgh", b"i")
    storage.flips = 1
    keep_parts(storage, "file", parts, md5=hashlib.md5(b"abcdefghi").hexdigest(), spool=tmp_path / "spool")
    assert storage.get("file") == b"abcdefghi"


def test_a_part_that_is_damaged_is_named_and_nothing_is_stored(storage: Flipping, tmp_path: Path) -> None:
    parts = stored(storage, b"abc", b"def")
    storage.flips = 2
    with pytest.raises(PartDamaged) as damaged:
        keep_parts(storage, "file", parts, md5=None, spool=tmp_path / "spool")
    assert damaged.value.part == parts[0]
    assert storage.head("file") is None
