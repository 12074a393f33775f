"""Bytes from where a client says that they lie: https hosts and S3 buckets, as far as the operator has allowed them.

Knows no files and no projects. What is on its way lands in a file that the caller opened. Called by `app.imports`.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import threading
from collections.abc import Iterable
from typing import BinaryIO, NoReturn
from urllib.parse import urlsplit

from service import outbound
from service.errors import ErrorCode, TunesmithError, invalid
from service.settings import Settings
from trainers.storage import NoSuchObject, StorageError, check_key, open_storage

PIECE = 2**18


async def fetch(source: str, file: BinaryIO, settings: Settings) -> str:
    """Write what lies at `source` into `file`; its sha256 (hex).

    Raises INVALID_REQUEST when it is not allowed, or does not come whole within `import_timeout`; TOO_LARGE above `max_import_bytes`.
    """
    arrival = _Arrival(file, settings.max_import_bytes)
    if source.startswith("https://"):
        await _fetch_https(source, arrival, settings)
    elif source.startswith("s3://"):
        await _fetch_s3(source, arrival, settings)
    else:
        raise invalid("A source begins with https:// or s3://.", "source")
    await asyncio.to_thread(file.flush)
    return arrival.sha256()


class _Arrival:
    """A file that bytes arrive in, up to a limit."""

    def __init__(self, file: BinaryIO, most: int) -> None:
        self._file, self._most = file, most
        self._digest = hashlib.sha256()
        self._count = 0
        self.given_up = threading.Event()
        """Set when nobody waits for the bytes any longer."""

    def announce(self, size: int) -> None:
        """Raises TOO_LARGE when `size` bytes are too many, STORAGE_FULL when the disk has no room for them."""
        self._bound(size)
        disk = os.fstatvfs(self._file.fileno())
        if size > disk.f_bavail * disk.f_frsize:
            raise TunesmithError(ErrorCode.STORAGE_FULL, "There is not enough disk space for this import.")

    def _bound(self, size: int) -> None:
        if size > self._most:
            raise TunesmithError(ErrorCode.TOO_LARGE, f"The source is larger than {self._most} bytes.", param="source")

    def take(self, piece: bytes) -> None:
        """Write the next bytes."""
        self._count += len(piece)
        self._bound(self._count)
        self._digest.update(piece)
        self._file.write(piece)

    def take_all(self, pieces: Iterable[bytes]) -> None:
        """Write them all, unless the import is given up meanwhile."""
        for piece in pieces:
            if self.given_up.is_set():
                return
            self.take(piece)

    def sha256(self) -> str:
        """Hash of all that arrived."""
        return self._digest.hexdigest()


async def _fetch_https(source: str, arrival: _Arrival, settings: Settings) -> None:
    if not settings.import_https_hosts:
        _off("https", "TUNESMITH_IMPORT_HTTPS_HOSTS")
    try:
        url = outbound.parse_url(source)
        if not any(_is_host(url, allowed) for allowed in settings.import_https_hosts):
            _not_allowed(f"The host '{url.authority}'", settings.import_https_hosts)
        request = outbound.guarded_request(
            "GET",
            source,
            headers={"Accept-Encoding": "identity"},
            timeout=settings.import_timeout,
            allow_private=settings.import_allow_private,
        )
        async with request as response:
            _check_answer(url.host, response.status_code, response.headers.get("location"))
            arrival.announce(_length(response.headers.get("content-length")))
            async for piece in response.aiter_raw(PIECE):
                await asyncio.to_thread(arrival.take, piece)
    except outbound.AddressRefused as refused:
        raise invalid(f"This source is not asked: {refused}.", "source", "import_not_allowed") from None
    except outbound.RequestFailed as failed:
        raise _failed(str(failed)) from failed


def _is_host(url: outbound.Url, allowed: str) -> bool:
    """Whether the URL's host and port are those of an entry of the allow-list."""
    name, _, port = allowed.lower().rpartition(":") if _has_port(allowed) else (allowed.lower(), "", "443")
    if url.port != int(port):
        return False
    return url.host.endswith(name[1:]) if name.startswith("*.") else url.host == name.strip("[]")


def _has_port(allowed: str) -> bool:
    return allowed.rpartition(":")[2].isdecimal() and not allowed.endswith("]") and (allowed.count(":") == 1 or "]:" in allowed)


def _check_answer(host: str, status: int, location: str | None) -> None:
    if 300 <= status < 400:
        other = urlsplit(location or "").netloc.rpartition("@")[2] or host
        message = f"'{host}' answers {status} and points to '{other}'; redirects are not followed. Import from where the bytes lie."
        raise invalid(message, "source", "import_not_allowed")
    if status != 200:
        raise _failed(f"'{host}' answers {status}")


def _length(header: str | None) -> int:
    return int(header[:20]) if header and header.isascii() and header.isdigit() else 0


async def _fetch_s3(source: str, arrival: _Arrival, settings: Settings) -> None:
    if not settings.import_s3_buckets:
        _off("S3", "TUNESMITH_IMPORT_S3_BUCKETS")
    bucket, _, key = source.removeprefix("s3://").partition("/")
    try:
        check_key(key)
    except ValueError:
        raise invalid("An S3 source is s3://bucket/key, and its key has no empty part and no '.' or '..'.", "source") from None
    if not any(_lies_in(f"{bucket}/{key}", allowed) for allowed in settings.import_s3_buckets):
        _not_allowed(f"'{bucket}/{key}'", settings.import_s3_buckets)
    own = urlsplit(settings.storage)
    if own.scheme == "s3" and _lies_in(f"{bucket}/{key}", own.netloc + own.path):
        raise invalid("The service's own objects can't be imported.", "source", "import_not_allowed")
    try:
        async with asyncio.timeout(settings.import_timeout.total_seconds()):
            await asyncio.to_thread(_copy_object, bucket, key, arrival)
    except NoSuchObject:
        raise _failed(f"there is no object '{bucket}/{key}'") from None
    except (StorageError, ValueError) as error:
        raise _failed(f"the object store does not give '{bucket}/{key}' ({type(error).__name__})") from error
    except TimeoutError:
        raise _failed(f"it took longer than {settings.import_timeout.total_seconds():g} s") from None
    finally:
        arrival.given_up.set()


def _lies_in(path: str, allowed: str) -> bool:
    """Whether bucket and key are those of an entry (bucket, or bucket/prefix) or lie below it."""
    return f"{path}/".startswith(f"{allowed.rstrip('/')}/")


def _copy_object(bucket: str, key: str, arrival: _Arrival) -> None:
    storage = open_storage(f"s3://{bucket}")
    info = storage.head(key)
    if info is None:
        raise NoSuchObject(key)
    arrival.announce(info.bytes)
    arrival.take_all(storage.read(key))


def _off(kind: str, setting: str) -> NoReturn:
    message = f"Importing from {kind} is off here. Upload the file, or have the service's operator set {setting}."
    raise invalid(message, "source", "import_off")


def _not_allowed(what: str, allowed: tuple[str, ...]) -> NoReturn:
    raise invalid(f"{what} is not among those to import from: {', '.join(allowed)}.", "source", "import_not_allowed")


def _failed(why: str) -> TunesmithError:
    return invalid(f"The source could not be fetched: {why}.", "source", "import_failed")
