"""The service's view of storage: uploads are read back, the probe sees through stores that pretend."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from service import objects
from trainers import manifest
from trainers.local_storage import LocalStorage
from trainers.storage import ObjectInfo, Storage, StorageError, StorageUnavailable


@pytest.fixture
def storage(tmp_path: Path) -> LocalStorage:
    return LocalStorage(tmp_path / "objects")


def put_all(storage: Storage, *keys: str) -> None:
    for key in keys:
        storage.put(key, b"x")


def all_keys(storage: Storage) -> list[str]:
    return [info.key for info in storage.list("")]


def test_keys() -> None:
    assert objects.file_key("proj_1", "file-2") == "files/proj_1/file-2"
    assert objects.dataset_prefix("0f") == "datasets/0f"


def test_keeping_a_file_measures_it(storage: LocalStorage, tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(b"rows\n" * 500_000)
    kept = objects.keep_file(storage, "files/p/f", tmp_path / "in")
    assert kept == objects.Kept(2_500_000, hashlib.sha256(b"rows\n" * 500_000).hexdigest())
    assert storage.get("files/p/f") == b"rows\n" * 500_000


class FlipsBytes(LocalStorage):
    def put_file(self, key: str, path: Path) -> None:
        self.put(key, b"#" + path.read_bytes()[1:])


class ForgetsFiles(LocalStorage):
    def put_file(self, key: str, path: Path) -> None:
        pass


class BreaksAfterwards(LocalStorage):
    def put_file(self, key: str, path: Path) -> None:
        super().put_file(key, path)
        raise StorageUnavailable("the answer is lost")


@pytest.mark.parametrize("kind", [FlipsBytes, ForgetsFiles, BreaksAfterwards])
def test_a_file_that_was_not_kept_leaves_nothing(kind: type[LocalStorage], tmp_path: Path) -> None:
    storage = kind(tmp_path / "objects")
    (tmp_path / "in").write_bytes(b"rows")
    with pytest.raises(StorageUnavailable):
        objects.keep_file(storage, "files/p/f", tmp_path / "in")
    assert all_keys(storage) == []


class DiesAfterOne(LocalStorage):
    deleted = 0

    def delete(self, key: str) -> None:
        if self.deleted:
            raise StorageUnavailable("died")
        super().delete(key)
        self.deleted += 1


def test_half_deleted_is_no_longer_complete(tmp_path: Path) -> None:
    storage = DiesAfterOne(tmp_path / "objects")
    put_all(storage, "models/j/1/adapter/a", "models/j/1/manifest.json", "models/j/1/README.md")
    with pytest.raises(StorageUnavailable):
        manifest.remove(storage, "models/j/1/")
    assert all_keys(storage) == ["models/j/1/README.md", "models/j/1/adapter/a"]


@pytest.mark.parametrize("slash", ["", "/"])
def test_a_prefix_ends_where_its_name_ends(storage: LocalStorage, slash: str) -> None:
    put_all(storage, "runs/j/1/a", "runs/j/1/b/c", "runs/j/10/a", "runs/j2/1/a")
    manifest.remove(storage, f"runs/j/1{slash}")
    assert all_keys(storage) == ["runs/j/10/a", "runs/j2/1/a"]
    manifest.remove(storage, f"runs/j/1{slash}")


@pytest.mark.parametrize("prefix", ["", "/", "//", "../"])
def test_everything_is_no_prefix(storage: LocalStorage, prefix: str) -> None:
    put_all(storage, "a", "b/c")
    with pytest.raises(ValueError, match="not a key"):
        manifest.remove(storage, prefix)
    assert all_keys(storage) == ["a", "b/c"]


def test_checkpoints_of_earlier_runs_newest_first(storage: LocalStorage) -> None:
    complete = [
        "1/checkpoints/step-20",
        "1/checkpoints/step-100",
        "2/checkpoints/step-100",
        "2/checkpoints/step-40",
        "10/checkpoints/step-60",
    ]
    put_all(storage, *(f"runs/j.b/{prefix}/manifest.json" for prefix in [*complete, "11/checkpoints/step-500"]))
    put_all(storage, *(f"runs/j.b/{prefix}/adapter/adapter_model.safetensors" for prefix in [*complete, "2/checkpoints/step-900"]))
    put_all(storage, "runs/jxb/1/checkpoints/step-7/manifest.json", "runs/j.b/1/spec.json", "runs/j.b/1/checkpoints/step-x/manifest.json")
    put_all(storage, "runs/j.b/1/checkpoints/step-9/state/manifest.json")
    assert objects.checkpoint_prefixes(storage, "j.b", 11) == [
        "runs/j.b/2/checkpoints/step-100",
        "runs/j.b/1/checkpoints/step-100",
        "runs/j.b/10/checkpoints/step-60",
        "runs/j.b/2/checkpoints/step-40",
        "runs/j.b/1/checkpoints/step-20",
    ]
    assert objects.checkpoint_prefixes(storage, "j.b", 1) == []
    assert objects.checkpoint_prefixes(storage, "unknown", 3) == []


class IgnoresConditions(LocalStorage):
    def put(self, key: str, data: bytes, *, if_absent: bool = False) -> None:
        super().put(key, data)


class ListsNothing(LocalStorage):
    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        yield from ()


class KeepsEverything(LocalStorage):
    def delete(self, key: str) -> None:
        pass


class Reverses(LocalStorage):
    def get(self, key: str) -> bytes:
        return super().get(key)[::-1]


class IgnoresRanges(LocalStorage):
    def read(self, key: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        return super().read(key)


@pytest.mark.parametrize(
    ("kind", "step"),
    [
        (IgnoresConditions, "refusing a conditional write"),
        (ListsNothing, "listing"),
        (KeepsEverything, "deleting"),
        (Reverses, "reading back"),
        (IgnoresRanges, "reading back"),
    ],
)
def test_the_probe_names_what_does_not_hold(kind: type[LocalStorage], step: str, tmp_path: Path) -> None:
    storage = kind(tmp_path / "objects")
    with pytest.raises(StorageUnavailable, match=f"^the object store can't be used: {step}") as failure:
        objects.probe(storage)
    assert "\n" not in str(failure.value)
    if kind is not KeepsEverything:
        assert not list((tmp_path / "objects").glob("probe/*"))


def test_the_probe_passes_a_store_that_keeps_its_word(storage: LocalStorage) -> None:
    objects.probe(storage)
    assert all_keys(storage) == []
    assert issubclass(StorageUnavailable, StorageError)
