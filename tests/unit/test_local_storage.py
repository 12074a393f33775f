"""What only the local directory has: a disk, other processes on it, and a power button."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.small_disk import small_disk_at
from trainers.local_storage import LocalStorage
from trainers.storage import INCOMING, NoSuchObject, ObjectExists, StorageDenied, StorageFull, StorageUnavailable, open_storage


@pytest.fixture
def storage(tmp_path: Path) -> LocalStorage:
    return LocalStorage(tmp_path / "objects")


# Directories begin with d and objects with f, so that no key is both.
directories = st.lists(st.text("ab-./é %", max_size=3).map(lambda text: "d" + text.replace("/", "")), max_size=2)
keys = st.tuples(directories, st.text("ab-. é%", max_size=3)).map(lambda key: "/".join([*key[0], "f" + key[1]]))
contents = st.binary(max_size=20)
acts = st.one_of(
    st.tuples(st.just("put"), keys, contents),
    st.tuples(st.just("first"), keys, contents),
    st.tuples(st.just("delete"), keys, st.just(b"")),
    st.tuples(st.just("get"), keys, st.just(b"")),
    st.tuples(st.just("list"), st.one_of(keys, st.sampled_from(["", "d", "da/", "d-"])), st.just(b"")),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(acts, max_size=25))
def test_it_behaves_as_a_dictionary(history: list[tuple[str, str, bytes]]) -> None:
    model: dict[str, bytes] = {}
    with tempfile.TemporaryDirectory() as directory:
        storage = LocalStorage(Path(directory) / "objects")
        for act, key, data in history:
            _do(storage, model, act, key, data)
        assert [(info.key, info.bytes) for info in storage.list("")] == [(key, len(model[key])) for key in sorted(model)]
        for key in model:
            storage.delete(key)
        assert {path.name for path in (Path(directory) / "objects").iterdir()} == {INCOMING}
        assert list((Path(directory) / "objects" / INCOMING).iterdir()) == []


def _do(storage: LocalStorage, model: dict[str, bytes], act: str, key: str, data: bytes) -> None:
    if act == "list":
        assert [info.key for info in storage.list(key)] == sorted(other for other in model if other.startswith(key))
    elif act == "delete":
        storage.delete(key)
        model.pop(key, None)
    elif act == "first" and model.get(key, data) != data:
        with pytest.raises(ObjectExists):
            storage.put(key, data, if_absent=True)
    elif act in ("put", "first"):
        storage.put(key, data, if_absent=act == "first")
        model[key] = data
    elif key in model:
        assert storage.get(key) == b"".join(storage.read(key)) == model[key]
        assert b"".join(storage.read(key, 1, 3)) == model[key][1:3]
    else:
        assert storage.head(key) is None
        with pytest.raises(NoSuchObject):
            storage.get(key)


def test_only_the_owner_can_read(storage: LocalStorage, tmp_path: Path) -> None:
    previous = os.umask(0)
    try:
        LocalStorage(tmp_path / "other").put("runs/a/token", b"secret")
    finally:
        os.umask(previous)
    for path in (tmp_path / "other", *(tmp_path / "other").rglob("*")):
        assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600), path


def test_a_key_is_no_object_and_directory_at_once(storage: LocalStorage) -> None:
    storage.put("a/b", b"1")
    for act in (
        lambda: storage.put("a", b"x"),
        lambda: storage.put("a", b"x", if_absent=True),
        lambda: storage.put("a/b/c", b"x"),
        lambda: storage.put("a/b/c/d", b"x", if_absent=True),
        lambda: storage.put_file("a/b/c", Path(__file__)),
    ):
        with pytest.raises(ValueError, match="at once"):
            act()
    assert [info.key for info in storage.list("")] == ["a/b"]


def test_deleting_removes_emptied_directories_only(storage: LocalStorage, tmp_path: Path) -> None:
    storage.put("a/b/c/d", b"1")
    storage.put("a/x", b"1")
    storage.delete("a/b/c/d")
    assert not (tmp_path / "objects/a/b").exists()
    storage.delete("a/x")
    storage.delete("a/x")
    assert [path.name for path in (tmp_path / "objects").iterdir()] == [INCOMING]


def test_a_root_that_is_gone_is_no_empty_store(storage: LocalStorage, tmp_path: Path) -> None:
    storage.put("a/b", b"1")
    (tmp_path / "objects").rename(tmp_path / "unmounted")
    for act in (
        lambda: storage.get("a/b"),
        lambda: next(storage.read("a/b")),
        lambda: storage.head("a/b"),
        lambda: list(storage.list("")),
        lambda: storage.put("a/c", b"1"),
        lambda: storage.delete("a/b"),
    ):
        with pytest.raises(StorageUnavailable):
            act()
    assert not (tmp_path / "objects").exists()


def test_spaces_and_accents_in_the_address(tmp_path: Path) -> None:
    directory = tmp_path / "ein Ordner für 100%"
    open_storage(directory.as_uri()).put("a", b"1")
    assert (directory / "a").read_bytes() == b"1"


WRITER = """
import sys, pathlib
from trainers.local_storage import LocalStorage
storage = LocalStorage(pathlib.Path(sys.argv[1]))
print("ready", flush=True)
number = 0
while True:
    number += 1
    storage.put(f"o/{number % 3}", bytes([number % 256]) * 3_000_000)
    storage.put(f"first/{number}", b"x" * 100_000, if_absent=True)
"""


def test_kill_9_leaves_whole_objects_and_what_was_arriving_is_swept(tmp_path: Path) -> None:
    root, swept = tmp_path / "objects", 0
    for turn in range(8):
        with subprocess.Popen([sys.executable, "-c", WRITER, str(root / str(turn))], stdout=subprocess.PIPE) as writer:
            assert writer.stdout is not None
            writer.stdout.readline()
            threading.Event().wait(0.03 * turn)
            writer.send_signal(signal.SIGKILL)
        swept += len(list((root / str(turn) / INCOMING).iterdir()))
        storage = LocalStorage(root / str(turn))
        assert list((root / str(turn) / INCOMING).iterdir()) == []
        for info in storage.list(""):
            data = storage.get(info.key)
            assert len(data) == (3_000_000 if info.key.startswith("o/") else 100_000)
            assert data == data[:1] * len(data)
    assert swept > 0, "no kill met a write, so nothing was tested"


def test_opening_a_store_leaves_the_writes_of_others_alone(storage: LocalStorage, tmp_path: Path) -> None:
    """Sweepers and writers at once: every write succeeds, nothing is left over."""
    stop = threading.Event()

    def sweep() -> None:
        while not stop.is_set():
            LocalStorage(tmp_path / "objects")

    sweeper = threading.Thread(target=sweep)
    sweeper.start()
    try:
        for number in range(200):
            storage.put("o", b"%d" % number)
            assert storage.get("o") == b"%d" % number
    finally:
        stop.set()
        sweeper.join()
    assert list((tmp_path / "objects" / INCOMING).iterdir()) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk_at(tmp_path / "disk", megabytes=1) as disk:
        yield disk


def test_a_full_disk(small_disk: Path, tmp_path: Path) -> None:
    storage = LocalStorage(small_disk / "objects")
    (tmp_path / "big").write_bytes(b"x" * 2**21)
    storage.put("kept", b"k" * 400_000)
    for act in (
        lambda: storage.put("a/b", b"x" * 2**21),
        lambda: storage.put("a/b", b"x" * 2**21, if_absent=True),
        lambda: storage.put("kept", b"x" * 2**21),
        lambda: storage.put_file("a/b", tmp_path / "big"),
    ):
        with pytest.raises(StorageFull, match="No space"):
            act()
    assert list((small_disk / "objects" / INCOMING).iterdir()) == []
    assert [info.key for info in storage.list("")] == ["kept"]
    assert storage.get("kept") == b"k" * 400_000
    storage.put("a/b", b"still room for this")


def test_a_full_disk_under_a_fetched_file(small_disk: Path, tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path / "objects")
    storage.put("big", b"x" * 2**21)
    with pytest.raises(StorageFull, match="No space"):
        storage.get_file("big", small_disk / "copy")
    assert list(small_disk.iterdir()) == []


def test_a_disk_that_may_only_be_read(small_disk: Path) -> None:
    storage = LocalStorage(small_disk / "objects")
    storage.put("a", b"1")
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with pytest.raises(StorageDenied, match="Read-only"):
        storage.put("b", b"1")
    with pytest.raises(StorageDenied, match="Read-only"):
        storage.delete("a")
    assert storage.get("a") == b"1"


def test_a_directory_of_somebody_else(tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir(mode=0o700 if os.geteuid() == 0 else 0o000)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)  # root may do everything
    try:
        with pytest.raises(StorageDenied, match="Permission"):
            LocalStorage(tmp_path / "theirs" / "objects")
    finally:
        os.seteuid(user)
