"""An S3-compatible bucket, or a prefix of it, as a Storage.

Objects carry their sha256 as metadata of ours, and whatever is fetched whole is checked against it: not every store
keeps S3's own checksums. Files go in parts over several connections. Made by `storage.open_storage`; how long it waits and
what the store's answers mean stands in `s3_client`.
"""

from __future__ import annotations

import hashlib
import os
import random
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from datetime import timedelta
from io import BufferedRandom
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

from botocore.exceptions import ClientError
from s3transfer.manager import TransferManager
from s3transfer.subscribers import BaseSubscriber

from trainers.local_files import disk_errors, replacing
from trainers.s3_client import Patience, answered, connect, s3_errors
from trainers.storage import NoSuchObject, ObjectExists, ObjectInfo, StorageDenied, StorageUnavailable, check_key, check_prefix

PIECE, STEP = 2**18, 2**14
"""Bytes handed on at once, and read at once: only after a step is it known how slow the store is."""
PART, CONNECTIONS = 16 * 2**20, 8
"""Bytes of a file that are fetched by one request, and requests at a time: one stream of S3 is slow."""
TRIES = 4
"""How often a body that came damaged or cut off is asked for again, and a write that met another one is repeated."""
LONGEST_URL_LIFE = timedelta(days=7)
"""What version 4 signatures allow."""
T = TypeVar("T")
_BUCKET = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9._-]{1,254}")


class S3Storage:
    """Objects of one bucket below a prefix; see Storage for what each method promises. Threads share one."""

    def __init__(self, bucket: str, prefix: str = "", *, checksums: str = "when_supported", patience: Patience | None = None) -> None:
        """Asks the store nothing yet. Raises ValueError for names that can't be, StorageDenied for an unusable environment."""
        if not _BUCKET.fullmatch(bucket):
            raise ValueError("an S3 address begins with a bucket: s3://bucket/prefix")
        self._bucket, self._prefix = bucket, f"{check_key(prefix)}/" if prefix else ""
        self._patience = patience or Patience()
        self._client = connect(checksums, self._patience)
        self._uploads = TransferManager(self._client)

    def put(self, key: str, data: bytes, *, if_absent: bool = False) -> None:
        asked = {**self._at(key), "Body": data, "Metadata": {"sha256": hashlib.sha256(data).hexdigest()}}
        with s3_errors(key):
            if if_absent:
                self._put_first(key, data, asked)
            else:
                self._client.put_object(**asked)

    def put_file(self, key: str, path: Path) -> None:
        at = self._at(key)
        with path.open("rb") as file:
            size, sha256 = path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest()
        ending = _Ending()
        with s3_errors(key):
            future = self._uploads.upload(str(path), at["Bucket"], at["Key"], {"Metadata": {"sha256": sha256}}, [ending])
            ending.await_within(self._patience.seconds_for(size), future, key)

    def get(self, key: str) -> bytes:
        def whole(answer: dict[str, Any]) -> bytes:
            data = b"".join(self._pieces(key, answer))
            _require_intact(key, hashlib.sha256(data).hexdigest(), answer)
            return data

        return self._taken(key, whole)

    def read(self, key: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        answer = self._ask_range(key, start, end)
        if answer is not None:
            with s3_errors(key):
                yield from self._pieces(key, answer)

    def get_file(self, key: str, path: Path) -> None:
        with disk_errors(str(path)), replacing(path) as file:
            with s3_errors(key):
                facts = self._client.head_object(**self._at(key))
            size = facts["ContentLength"]
            file.truncate(size)
            self._fetch_parts(key, facts, [(start, min(start + PART, size)) for start in range(0, size, PART)], file.fileno())
            _require_intact(key, _sha256(file), facts)

    def head(self, key: str) -> ObjectInfo | None:
        try:
            with s3_errors(key):
                facts = self._client.head_object(**self._at(key))
        except NoSuchObject:
            return None
        return ObjectInfo(key, facts["ContentLength"], facts["LastModified"].timestamp())

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        at = {"Bucket": self._bucket, "Prefix": self._prefix + check_prefix(prefix)}
        with s3_errors(prefix):
            pages = self._client.get_paginator("list_objects_v2").paginate(**at)
            entries = [entry for page in pages for entry in page.get("Contents", [])]
        # Not every store answers in the order of S3. Keys with a last "/" are folders that a console has made.
        for entry in sorted(entries, key=lambda entry: entry["Key"]):
            if not entry["Key"].endswith("/"):
                yield ObjectInfo(entry["Key"][len(self._prefix) :], entry["Size"], entry["LastModified"].timestamp())

    def delete(self, key: str) -> None:
        with suppress(NoSuchObject), s3_errors(key):
            self._client.delete_object(**self._at(key))

    def local_path(self, key: str) -> Path | None:
        return None

    def presigned_url(self, key: str, *, expires: timedelta, filename: str) -> str | None:
        if not timedelta(0) < expires <= LONGEST_URL_LIFE:
            raise ValueError(f"an address may serve for up to {LONGEST_URL_LIFE}, not {expires}")
        disposition = f"attachment; filename*=UTF-8''{quote(filename, safe='', errors='replace')}"
        asked = {**self._at(key), "ResponseContentDisposition": disposition}
        with s3_errors(key):
            return self._client.generate_presigned_url("get_object", Params=asked, ExpiresIn=int(expires.total_seconds()))

    def _at(self, key: str) -> dict[str, Any]:
        return {"Bucket": self._bucket, "Key": self._prefix + check_key(key)}

    def _ask(self, key: str, **options: Any) -> dict[str, Any]:
        with s3_errors(key):
            return self._client.get_object(**self._at(key), **options)

    def _ask_range(self, key: str, start: int, end: int | None) -> dict[str, Any] | None:
        """The answer that holds the bytes [start, end), None when there are none."""
        if start < 0:
            raise ValueError("a range starts at 0 or behind it")
        if end is not None and end <= start:  # S3 knows no empty range
            if self.head(key) is None:
                raise NoSuchObject(key)
            return None
        if start == 0 and end is None:
            return self._ask(key)
        try:
            return self._ask(key, Range=f"bytes={start}-{'' if end is None else end - 1}")
        except StorageDenied as error:
            if isinstance(error.__cause__, ClientError) and answered(error.__cause__) == 416:  # starts behind the last byte
                return None
            raise

    def _put_first(self, key: str, data: bytes, asked: dict[str, Any]) -> None:
        """412 is also what our own write is told when it is repeated because its answer was lost: then the bytes are ours."""
        for pause in _pauses():
            try:
                self._client.put_object(**asked, IfNoneMatch="*")
                return
            except ClientError as error:
                if answered(error) not in (409, 412):
                    raise
            with suppress(NoSuchObject):  # none: 409, two writes have met; or deleted since
                if self.get(key) == data:
                    return
                raise ObjectExists(key)
            time.sleep(pause)
        raise StorageUnavailable(f"{key}: other writes came between all the time")

    def _fetch_parts(self, key: str, facts: dict[str, Any], spans: Sequence[tuple[int, int]], descriptor: int) -> None:
        """Of one state of the object: writing it anew meanwhile is an error."""
        options = {"IfMatch": facts["ETag"]}

        def fetch(span: tuple[int, int]) -> None:
            start, end = span
            in_parts = {"Range": f"bytes={start}-{end - 1}"} if len(spans) > 1 else {}
            self._taken(key, lambda answer: self._write(key, answer, descriptor, start, end), **options, **in_parts)

        pool = ThreadPoolExecutor(CONNECTIONS, thread_name_prefix="s3-get")
        try:
            for done in [pool.submit(fetch, span) for span in spans]:
                done.result()
        finally:
            pool.shutdown(cancel_futures=True)

    def _write(self, key: str, answer: dict[str, Any], descriptor: int, at: int, end: int) -> None:
        if answer["ContentLength"] != end - at:
            raise StorageUnavailable(f"{key}: the store sent another part than it was asked for")
        for piece in self._pieces(key, answer):
            at += os.pwrite(descriptor, piece, at)

    def _taken(self, key: str, take: Callable[[dict[str, Any]], T], **options: Any) -> T:
        """What `take` makes of an answer. One that comes cut or damaged is asked for again, see TRIES."""
        for pause in _pauses():
            answer = self._ask(key, **options)
            with suppress(StorageUnavailable), s3_errors(key):
                return take(answer)
            time.sleep(pause)
        answer = self._ask(key, **options)
        with s3_errors(key):
            return take(answer)

    def _pieces(self, key: str, answer: dict[str, Any]) -> Iterator[bytes]:
        gathered = bytearray()
        for step in self._steps(key, answer):
            gathered += step
            if len(gathered) >= PIECE:
                yield bytes(gathered)
                gathered.clear()
        if gathered:
            yield bytes(gathered)

    def _steps(self, key: str, answer: dict[str, Any]) -> Iterator[bytes]:
        """The body, as long as it comes fast enough; what the taker does with a step meanwhile does not count."""
        waited, limit = 0.0, self._patience.seconds_for(answer.get("ContentLength", 0))
        with closing(answer["Body"]) as body:
            while waited <= limit:
                began = time.monotonic()
                step = body.read(STEP)
                waited += time.monotonic() - began
                if not step:
                    return
                yield step
        raise _too_slow(key, limit)


class _Ending(BaseSubscriber):
    """Waits for the end of a transfer, but not for ever."""

    def __init__(self) -> None:
        self._done = threading.Event()

    def on_done(self, future: Any, **_: Any) -> None:
        self._done.set()

    def await_within(self, limit: float, future: Any, key: str) -> None:
        """Raises what the transfer raised, StorageUnavailable when it is not done within `limit` seconds."""
        try:
            if not self._done.wait(limit):
                raise _too_slow(key, limit)
        except BaseException:
            future.cancel()
            raise
        future.result()


def _pauses() -> Iterator[float]:
    """Seconds to wait after each try but the last, growing and jittered."""
    for number in range(TRIES - 1):
        yield random.uniform(0.5, 1.0) * 0.2 * 2**number


def _sha256(file: BufferedRandom) -> str:
    file.flush()
    file.seek(0)
    return hashlib.file_digest(file, "sha256").hexdigest()


def _require_intact(key: str, sha256: str, facts: dict[str, Any]) -> None:
    if facts.get("Metadata", {}).get("sha256", sha256) != sha256:
        raise StorageUnavailable(f"{key}: what the store sent does not have the sha256 it was stored with")


def _too_slow(key: str, limit: float) -> StorageUnavailable:
    return StorageUnavailable(f"{key}: the transfer was given up after {limit:.0f} s")
