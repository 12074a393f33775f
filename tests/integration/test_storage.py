"""What a Storage promises, once for the local directory and once for S3 on a real server."""

from __future__ import annotations

import hashlib
import pickle
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import httpx
import pytest

from service import objects
from trainers import manifest
from trainers import storage as module
from trainers.storage import NoSuchObject, ObjectExists, Storage, StorageError, open_storage

BAD_KEYS = [
    "",
    "/",
    "/etc/passwd",
    "../up",
    "a/../../up",
    "a/./b",
    "a//b",
    "a/",
    "..",
    ".",
    "nul\0",
    "line\n",
    "\ud800",
    "x" * 256,
    "a/" * 500 + "a",
]


@pytest.fixture(params=["local", "s3"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return (tmp_path / "objects").as_uri() if request.param == "local" else request.getfixturevalue("s3_url")


@pytest.fixture
def storage(url: str) -> Storage:
    return open_storage(url)


def together(count: int, action: Callable[[int], object]) -> list[object]:
    """What `action` of each number gave or raised, all started at once."""
    start = threading.Barrier(count)

    def run(number: int) -> object:
        start.wait(30)
        try:
            return action(number)
        except StorageError as error:
            return error

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(run, range(count)))


def test_what_was_put_is_got(storage: Storage) -> None:
    before = time.time()
    for data in (b"", b"x", bytes(range(256)) * 5000):
        storage.put("runs/a/spec.json", data)
        assert storage.get("runs/a/spec.json") == data
        info = storage.head("runs/a/spec.json")
        assert info is not None
        assert (info.key, info.bytes) == ("runs/a/spec.json", len(data))
        assert before - 60 < info.modified < time.time() + 60


def test_ranges(storage: Storage) -> None:
    data = random.Random(1).randbytes(2_500_000)
    storage.put("o", data)
    for start, end in [
        (0, None),
        (0, 1),
        (1, 5),
        (7, 7),
        (0, 0),
        (1_048_575, 1_048_577),
        (2_499_999, None),
        (100, 9_999_999),
        (2_500_000, None),
        (3_000_000, 4_000_000),
    ]:
        pieces = list(storage.read("o", start, end))
        assert b"".join(pieces) == data[start:end]
        assert all(0 < len(piece) <= 2**20 for piece in pieces)
    with pytest.raises(ValueError, match="range"):
        list(storage.read("o", -1))


def test_an_empty_object_has_no_pieces(storage: Storage) -> None:
    storage.put("empty", b"")
    assert list(storage.read("empty")) == []
    assert list(storage.read("empty", 0, 10)) == []


def test_what_is_not_there(storage: Storage, tmp_path: Path) -> None:
    storage.put("dir/object", b"1")
    for key in ("nothing", "dir", "dir/object/below", "dir/nothing"):
        with pytest.raises(NoSuchObject, match=key):
            storage.get(key)
        for span in ((0, None), (0, 5), (3, 3)):
            with pytest.raises(NoSuchObject):
                list(storage.read(key, *span))
        with pytest.raises(NoSuchObject):
            storage.get_file(key, tmp_path / "copy")
        assert storage.head(key) is None
        storage.delete(key)
    assert storage.get("dir/object") == b"1"
    assert not (tmp_path / "copy").exists()
    assert list(storage.list("nothing/")) == []


@pytest.mark.parametrize("key", [*BAD_KEYS, f"{module.INCOMING}/x"])
def test_keys_that_lead_out_are_refused(storage: Storage, tmp_path: Path, key: str) -> None:
    def refused(action: Callable[[], object]) -> None:
        with pytest.raises(ValueError, match=r"not a key|surrogates"):
            action()

    refused(lambda: storage.put(key, b"x"))
    refused(lambda: storage.put(key, b"x", if_absent=True))
    refused(lambda: storage.put_file(key, Path(__file__)))
    refused(lambda: storage.get(key))
    refused(lambda: next(storage.read(key)))
    refused(lambda: storage.get_file(key, tmp_path / "copy"))
    refused(lambda: storage.head(key))
    refused(lambda: storage.delete(key))
    assert {entry.name for entry in tmp_path.iterdir()} <= {"objects"}
    assert list(storage.list("")) == []


@pytest.mark.parametrize("prefix", ["/", "../", "a/../", "/etc", ".incoming/"])
def test_prefixes_that_lead_out_are_refused(storage: Storage, prefix: str) -> None:
    with pytest.raises(ValueError, match="not a key"):
        list(storage.list(prefix))


def test_listing_is_in_the_order_of_keys(storage: Storage) -> None:
    keys = ["a-b", "a.b", "a/b", "a/c/d", "a b", "a%20b", "a+b", "ab/c", "Z", "é/ü", "日本/語", "a0"]
    for key in keys:
        storage.put(key, key.encode())
    assert [info.key for info in storage.list("")] == sorted(keys)
    assert [info.key for info in storage.list("a/")] == ["a/b", "a/c/d"]
    assert [info.key for info in storage.list("a")] == sorted(key for key in keys if key.startswith("a"))
    assert [info.key for info in storage.list("a/c")] == ["a/c/d"]
    assert [(info.key, info.bytes) for info in storage.list("日")] == [("日本/語", len("日本/語".encode()))]


def test_a_listing_of_1200_objects_is_whole(storage: Storage) -> None:
    keys = [f"many/{number % 7}/{number:04}" for number in range(1200)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda key: storage.put(key, b"x"), keys))
    assert [info.key for info in storage.list("many/")] == sorted(keys)
    manifest.remove(storage, "many")
    assert list(storage.list("")) == []


def test_of_many_first_writers_one_wins(storage: Storage) -> None:
    for attempt in range(3):
        outcomes = together(16, lambda number, key=f"manifest-{attempt}": storage.put(key, b"writer %d" % number, if_absent=True))
        winners = [number for number, outcome in enumerate(outcomes) if outcome is None]
        assert len(winners) == 1
        assert all(isinstance(outcome, ObjectExists) for number, outcome in enumerate(outcomes) if number not in winners)
        assert storage.get(f"manifest-{attempt}") == b"writer %d" % winners[0]


def test_a_first_write_of_what_is_there_already_succeeds(storage: Storage) -> None:
    storage.put("m", b"same", if_absent=True)
    assert together(8, lambda _: storage.put("m", b"same", if_absent=True)) == [None] * 8
    with pytest.raises(ObjectExists, match="m"):
        storage.put("m", b"other", if_absent=True)
    assert storage.get("m") == b"same"
    storage.put("m", b"replaced")
    assert storage.get("m") == b"replaced"


def test_readers_see_one_write_or_the_other(storage: Storage) -> None:
    contents = [bytes([number]) * 200_000 for number in range(4)]
    storage.put("o", contents[0])

    def act(number: int) -> object:
        if number % 2:
            for _ in range(5):
                storage.put("o", contents[number % 4])
            return None
        return [storage.get("o") for _ in range(5)]

    for outcome in together(8, act):
        assert outcome is None or (isinstance(outcome, list) and all(data in contents for data in outcome)), outcome


@pytest.mark.parametrize("size", [0, 1, 17 * 2**20 + 5])
def test_files_come_back_as_they_went(storage: Storage, tmp_path: Path, size: int) -> None:
    data = random.Random(size).randbytes(size)
    (tmp_path / "in").write_bytes(data)
    kept = objects.keep_file(storage, "files/p/f", tmp_path / "in")
    assert (kept.bytes, kept.sha256) == (size, hashlib.sha256(data).hexdigest())
    (tmp_path / "out").write_bytes(b"what was there before")
    storage.get_file("files/p/f", tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == data
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o600
    assert {path.name for path in tmp_path.iterdir()} <= {"in", "out", "objects"}


def test_a_file_that_is_not_there_is_no_fault_of_the_store(storage: Storage, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        storage.put_file("k", tmp_path / "nothing")
    assert storage.head("k") is None


def test_writing_while_the_neighbours_are_deleted(storage: Storage) -> None:
    def act(number: int) -> object:
        for turn in range(20):
            storage.put(f"d/e/{number}", b"%d" % turn)
            assert storage.get(f"d/e/{number}") == b"%d" % turn
            storage.delete(f"d/e/{number}")
        return None

    assert together(6, act) == [None] * 6
    assert list(storage.list("")) == []


def test_one_store_holds_what_another_process_would_see(storage: Storage, url: str) -> None:
    storage.put("a/b", b"1")
    assert open_storage(url).get("a/b") == b"1"
    assert [info.key for info in open_storage(url).list("")] == ["a/b"]


def test_local_path_or_presigned_address(storage: Storage) -> None:
    storage.put("datasets/d/rows", b"1")
    path = storage.local_path("datasets/d/")
    presigned = storage.presigned_url("datasets/d/rows", expires=timedelta(minutes=1), filename="rows")
    assert (path is None) is (presigned is not None)
    if path is not None:
        assert (path / "rows").read_bytes() == b"1"


def test_a_presigned_address_serves_without_a_key(s3_url: str) -> None:
    storage = open_storage(s3_url)
    storage.put("files/p/f", b"0123456789")
    storage.put("files/q/secret", b"s")
    address = storage.presigned_url("files/p/f", expires=timedelta(minutes=1), filename='naïve "name".jsonl\r\nx: y')
    assert address is not None
    answer = httpx.get(address, headers={"range": "bytes=2-4"})
    assert (answer.status_code, answer.content) == (206, b"234")
    assert answer.headers["content-disposition"] == "attachment; filename*=UTF-8''na%C3%AFve%20%22name%22.jsonl%0D%0Ax%3A%20y"
    for tampered in (
        address.replace("files/p/f", "files/q/secret"),
        address.replace("Expires=60", "Expires=6000"),
        address.partition("?")[0],
    ):
        assert tampered != address
        assert httpx.get(tampered).status_code == 403
    assert httpx.delete(address).status_code == 403
    for key in BAD_KEYS:
        with pytest.raises(ValueError, match=r"not a key|surrogates"):
            storage.presigned_url(key, expires=timedelta(1), filename="f")
    for life in (timedelta(0), timedelta(days=8)):
        with pytest.raises(ValueError, match="may serve"):
            storage.presigned_url("f", expires=life, filename="f")


def test_a_presigned_address_ends(s3_url: str) -> None:
    storage = open_storage(s3_url)
    storage.put("f", b"1")
    address = storage.presigned_url("f", expires=timedelta(seconds=1), filename="f")
    assert address is not None
    for _ in range(100):
        if httpx.get(address).status_code == 403:
            return
        time.sleep(0.1)
    raise AssertionError("it still serves")


def test_the_probe_passes_and_leaves_nothing(storage: Storage) -> None:
    objects.probe(storage)
    assert list(storage.list("")) == []


def test_both_checksum_modes_work(s3_url: str, tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(b"x" * 9_000_000)
    for mode in ("when_supported", "when_required"):
        storage = open_storage(f"{s3_url}/{mode}?checksums={mode}")
        objects.probe(storage)
        objects.keep_file(storage, "f", tmp_path / "in")
        storage.get_file("f", tmp_path / "out")
        assert (tmp_path / "out").read_bytes() == (tmp_path / "in").read_bytes()


NO_FILES = ["", "data", "/data", "file://host/data", "file:data", "file:///data?x=1", "https://b/p"]
NO_BUCKETS = ["s3://", "s3:///prefix", "s3://b/p?cheksums=x", "s3://b/p?checksums=no", "s3://b/../p", "s3://key:secret@b/p"]


@pytest.mark.parametrize("url", NO_FILES + NO_BUCKETS)
def test_an_address_that_is_none_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(ValueError) as refusal:  # noqa: PT011 the texts differ, what they must not hold is checked
        open_storage(url)
    assert "secret" not in str(refusal.value)


def test_errors_survive_being_pickled() -> None:
    names = ("NoSuchObject", "ObjectExists", "StorageDenied", "StorageFull", "StorageUnavailable")
    for kind in (getattr(module, name) for name in names):
        error = pickle.loads(pickle.dumps(kind("files/p/f: what happened")))
        assert type(error) is kind
        assert str(error) == "files/p/f: what happened"
        assert isinstance(error, StorageError)
