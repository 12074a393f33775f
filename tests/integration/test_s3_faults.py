"""S3 refuses, stalls, cuts, flips, loses answers, dies: every fault ends in bounded time in the right error, and no harm is kept."""

from __future__ import annotations

import logging
import random
import socket
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from service import objects
from tests.fault_proxy import (
    Answer,
    FaultProxy,
    Passage,
    answer_lost,
    answering,
    cut_after,
    fault_proxy,
    flipped,
    flipped_upload,
    refused,
    slow,
    stalled,
)
from tests.seaweed import BUCKET, SeaweedFS, running_seaweed
from trainers.s3_client import Patience
from trainers.s3_storage import PART, S3Storage
from trainers.storage import (
    NoSuchObject,
    ObjectExists,
    StorageDenied,
    StorageError,
    StorageFull,
    StorageUnavailable,
    open_storage,
)

SHORT = Patience(connect=1, silence=0.5, attempts=2, grace=1.5)
DATA = random.Random(5).randbytes(300_000)


@pytest.fixture
def proxy(seaweed: SeaweedFS, s3_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    with fault_proxy(seaweed.endpoint) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.endpoint)
        yield proxy


@pytest.fixture
def storage(proxy: FaultProxy, s3_url: str) -> S3Storage:
    return S3Storage(BUCKET, s3_url.rpartition("/")[2], patience=SHORT)


def test_31_a_lost_answer_to_a_first_write_is_no_conflict(storage: S3Storage, proxy: FaultProxy) -> None:
    proxy.harm("PUT", answer_lost)
    storage.put("manifest.json", b"ours", if_absent=True)
    assert proxy.seen == ["PUT", "PUT", "GET"]
    assert storage.get("manifest.json") == b"ours"
    with pytest.raises(ObjectExists):
        storage.put("manifest.json", b"theirs", if_absent=True)


def test_writes_that_meet_are_tried_again(storage: S3Storage, proxy: FaultProxy) -> None:
    proxy.harm("PUT", answering(409, "ConditionalRequestConflict"))
    storage.put("manifest.json", b"ours", if_absent=True)
    assert storage.get("manifest.json") == b"ours"
    proxy.harm("PUT", answering(409, "ConditionalRequestConflict"), times=9)
    with pytest.raises(StorageUnavailable, match="other writes"):
        storage.put("other.json", b"ours", if_absent=True)


@pytest.mark.parametrize("fault", [refused, answering(503, "SlowDown"), answering(500, "InternalError")])
def test_one_failure_goes_unnoticed(storage: S3Storage, proxy: FaultProxy, tmp_path: Path, fault) -> None:
    (tmp_path / "in").write_bytes(DATA)
    for method in ("PUT", "GET", "HEAD", "DELETE"):
        proxy.harm(method, fault)
    storage.put("a", DATA)
    assert storage.get("a") == DATA
    storage.put_file("b", tmp_path / "in")
    assert storage.head("b") is not None
    assert [info.key for info in storage.list("")] == ["a", "b"]
    storage.delete("a")
    assert storage.head("a") is None


@pytest.mark.parametrize("fault", [refused, stalled, answering(503, "SlowDown"), answering(429, "TooManyRequests")])
def test_a_store_that_stays_away_is_unavailable(storage: S3Storage, proxy: FaultProxy, tmp_path: Path, fault) -> None:
    (tmp_path / "in").write_bytes(DATA)
    for method in ("PUT", "GET", "HEAD", "DELETE"):
        proxy.harm(method, fault, times=100)
    for action in (
        lambda: storage.put("a", DATA),
        lambda: storage.put("a", DATA, if_absent=True),
        lambda: storage.put_file("a", tmp_path / "in"),
        lambda: storage.get("a"),
        lambda: list(storage.read("a")),
        lambda: storage.get_file("a", tmp_path / "out"),
        lambda: storage.head("a"),
        lambda: list(storage.list("")),
        lambda: storage.delete("a"),
    ):
        before = len(proxy.seen)
        with pytest.raises(StorageUnavailable):
            action()
        assert len(proxy.seen) - before <= SHORT.attempts
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_nobody_listens(storage: S3Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: connections are refused
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{taken.getsockname()[1]}")
        gone = open_storage(f"s3://{BUCKET}/p")
        for action in (lambda: gone.get("a"), lambda: gone.put("a", b""), lambda: list(gone.list(""))):
            with pytest.raises(StorageUnavailable, match="did not answer"):
                action()
        with pytest.raises(StorageUnavailable, match=r"^the object store can't be used: a conditional write does not hold"):
            objects.probe(gone)


def test_a_get_that_is_cut_once_comes_whole(storage: S3Storage, proxy: FaultProxy, tmp_path: Path) -> None:
    storage.put("a", DATA)
    proxy.harm("GET", cut_after(100_000))
    assert storage.get("a") == DATA
    proxy.harm("GET", cut_after(100_000))
    storage.get_file("a", tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == DATA


@pytest.mark.parametrize("checksums", ["when_supported", "when_required"])
@pytest.mark.parametrize("fault", [cut_after(100_000), flipped(200_000), slow(0.02)])
def test_a_get_that_stays_harmed_gives_nothing(proxy: FaultProxy, s3_url: str, tmp_path: Path, fault, checksums: str) -> None:
    storage = S3Storage(BUCKET, s3_url.rpartition("/")[2], checksums=checksums, patience=Patience(1, 5, 2, 0.3, 1e9))
    storage.put("a", DATA)
    proxy.harm("GET", fault, times=100)
    with pytest.raises(StorageUnavailable):
        storage.get("a")
    (tmp_path / "out").write_bytes(b"before")
    with pytest.raises(StorageUnavailable):
        storage.get_file("a", tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == b"before"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_parts_of_a_file_that_are_harmed_are_fetched_again(storage: S3Storage, proxy: FaultProxy, tmp_path: Path) -> None:
    data = random.Random(7).randbytes(2 * PART + 5)
    (tmp_path / "in").write_bytes(data)
    roomy = S3Storage(BUCKET, "parts", patience=Patience())
    roomy.put_file("a", tmp_path / "in")
    for fault in (cut_after(100_000), refused, answering(503, "SlowDown")):
        proxy.harm("GET", fault)
    roomy.get_file("a", tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == data
    proxy.harm("GET", flipped(100_000))
    with pytest.raises(StorageUnavailable, match="sha256"):
        roomy.get_file("a", tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_an_object_that_changes_under_a_reader_is_no_mixture(storage: S3Storage, proxy: FaultProxy, tmp_path: Path) -> None:
    storage.put("a", DATA)

    def replaced_first(passage: Passage) -> Answer | None:
        storage.put("a", DATA[::-1])
        return passage.forward(passage.body)

    proxy.harm("GET", replaced_first)
    with pytest.raises(StorageUnavailable, match="412"):
        storage.get_file("a", tmp_path / "out")
    storage.get_file("a", tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == DATA[::-1]


def test_a_stream_that_is_cut_is_not_taken_for_the_end(storage: S3Storage, proxy: FaultProxy) -> None:
    storage.put("a", DATA)
    for span in ((0, None), (5, None), (5, 250_000)):
        proxy.harm("GET", cut_after(150_000))
        with pytest.raises(StorageUnavailable):
            list(storage.read("a", *span))


def test_an_upload_that_is_harmed_on_its_way_is_not_kept(storage: S3Storage, proxy: FaultProxy, tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(DATA)
    proxy.harm("PUT", flipped_upload(1000), times=9)
    with pytest.raises(StorageUnavailable):
        objects.keep_file(storage, "files/p/f", tmp_path / "in")
    assert list(storage.list("")) == []


def test_a_download_that_is_too_slow_is_given_up(proxy: FaultProxy, tmp_path: Path) -> None:
    storage = S3Storage(BUCKET, "p", patience=Patience(1, 20, 2, grace=0.3, bytes_per_second=1e9))
    storage.put("a", DATA)
    proxy.harm("GET", slow(0.02), times=9)
    with pytest.raises(StorageUnavailable, match="given up after"):
        storage.get_file("a", tmp_path / "out")
    with pytest.raises(StorageUnavailable, match="given up after"):
        list(storage.read("a"))


def test_an_upload_that_is_too_slow_is_given_up(proxy: FaultProxy, s3_url: str, tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(DATA)
    storage = S3Storage(BUCKET, "p", patience=Patience(1, 20, 4, grace=0.5, bytes_per_second=1e9))
    proxy.harm("PUT", stalled)
    with pytest.raises(StorageUnavailable, match="given up after"):
        storage.put_file("a", tmp_path / "in")


@pytest.mark.parametrize(("status", "code"), [(403, "AccessDenied"), (400, "InvalidToken"), (501, "NotImplemented"), (404, "NoSuchBucket")])
def test_a_refusal_is_asked_for_once(storage: S3Storage, proxy: FaultProxy, tmp_path: Path, status: int, code: str) -> None:
    (tmp_path / "in").write_bytes(DATA)
    for method in ("PUT", "GET"):
        proxy.harm(method, answering(status, code), times=20)
    for number, action in enumerate(
        (
            lambda: storage.put("a", DATA),
            lambda: storage.put("a", DATA, if_absent=True),
            lambda: storage.put_file("a", tmp_path / "in"),
            lambda: storage.get("a"),
            lambda: list(storage.read("a", 1)),
            lambda: list(storage.list("")),
        )
    ):
        with pytest.raises(StorageDenied, match=code if code != "NoSuchBucket" else "bucket does not exist"):
            action()
        assert len(proxy.seen) == number + 1


@pytest.mark.parametrize(("status", "code"), [(507, "InsufficientStorage"), (403, "QuotaExceeded")])
def test_a_full_store_says_so(storage: S3Storage, proxy: FaultProxy, tmp_path: Path, status: int, code: str) -> None:
    (tmp_path / "in").write_bytes(DATA)
    proxy.harm("PUT", answering(status, code), times=20)
    with pytest.raises(StorageFull, match=code):
        storage.put("a", DATA)
    with pytest.raises(StorageFull, match=code):
        storage.put_file("a", tmp_path / "in")
    with pytest.raises(StorageFull, match="a conditional write"):
        objects.probe(storage)


@pytest.mark.parametrize("wrong", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"])
def test_wrong_credentials(proxy: FaultProxy, s3_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, wrong: str) -> None:
    open_storage(s3_url).put("a", b"1")
    monkeypatch.setenv(wrong, "wrong")
    storage, asked = open_storage(s3_url), len(proxy.seen)
    (tmp_path / "in").write_bytes(DATA)
    for number, action in enumerate(
        (
            lambda: storage.get("a"),
            lambda: storage.put("a", b"2"),
            lambda: storage.head("a"),
            lambda: storage.put_file("a", tmp_path / "in"),
            lambda: storage.get_file("a", tmp_path / "out"),
            lambda: list(storage.list("")),
            lambda: storage.delete("a"),
        )
    ):
        with pytest.raises(StorageDenied) as refusal:
            action()
        assert len(proxy.seen) == asked + number + 1
        assert "wrong" not in str(refusal.value)
    with pytest.raises(StorageDenied, match=r"^the object store can't be used"):
        objects.probe(storage)


def test_no_credentials(s3_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    storage = open_storage(s3_url)
    with pytest.raises(StorageDenied, match="NoCredentialsError"):
        storage.get("a")
    with pytest.raises(StorageDenied):
        storage.presigned_url("a", expires=timedelta(1), filename="a")
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(StorageDenied, match="ProfileNotFound"):
        open_storage(s3_url)


def test_no_log_holds_credentials(
    s3_url: str, seaweed: SeaweedFS, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("AWS_SESSION_TOKEN", "a-session-token")
    caplog.set_level(logging.DEBUG)
    storage = open_storage(s3_url)
    for action in (lambda: storage.put("a", b"1"), lambda: storage.get("a"), lambda: list(storage.list(""))):
        try:
            action()
        except StorageError as error:
            logging.getLogger("test").error("%s", error, exc_info=error)
    storage.presigned_url("a", expires=timedelta(minutes=1), filename="a")
    for secret in (seaweed.secret_key, "a-session-token", "Signature="):
        assert secret not in caplog.text


def test_a_killed_server_keeps_every_object(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with running_seaweed() as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        storage = S3Storage(BUCKET, "p", patience=Patience(attempts=2))
        big = random.Random(6).randbytes(17 * 2**20)
        (tmp_path / "in").write_bytes(big)
        for number in range(50):
            storage.put(f"o/{number:02}", b"%d" % number)
        storage.put_file("big", tmp_path / "in")
        storage.put("manifest.json", b"m", if_absent=True)
        server.kill()
        with pytest.raises(StorageUnavailable):
            storage.get("o/00")
        server.start()
        storage = S3Storage(BUCKET, "p")  # as patient as a run: the server's parts find each other one after the other
        assert [info.key for info in storage.list("o/")] == [f"o/{number:02}" for number in range(50)]
        assert all(storage.get(f"o/{number:02}") == b"%d" % number for number in range(50))
        storage.get_file("big", tmp_path / "out")
        assert (tmp_path / "out").read_bytes() == big
        with pytest.raises(ObjectExists):
            storage.put("manifest.json", b"other", if_absent=True)
        with pytest.raises(NoSuchObject):
            storage.get("o/50")
