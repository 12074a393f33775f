"""Bytes on their way from a file: counted and hashed, and unpacked where gzip or zstd has packed them.

A stream of several members is one content. What unpacks to more than its limit is a bomb, told before its bytes are held.
Knows nothing of rows. Used by `formats.source`, and by data_process.py to bound what a file may become.
"""

from __future__ import annotations

import hashlib
import io
import zlib
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any, Literal, Protocol

import zstandard

from service.formats.rows import Unreadable
from trainers.registry import Fault

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

Packing = Literal["gzip", "zstd"]
BUFFER = 2**20
FREE_BYTES = 16 * 2**20
"""Below this no ratio is too high: a small file may be as repetitive as it likes."""
PARQUET = b"PAR1"
_STEP: dict[Packing, int] = {"gzip": 2**14, "zstd": 2**9}
"""Bytes unpacked at once. At the highest ratio of each (1,032 and 32,768) they become 16 MiB."""
_MAX_WINDOW = 2**27
"""What `zstd` itself takes without being told to."""


def packing_of(head: bytes) -> Packing | None:
    """By what the file that begins with `head` is packed."""
    if head.startswith(b"\x1f\x8b"):
        return "gzip"
    skippable = head[1:4] == b"\x2a\x4d\x18" and head[0] >> 4 == 5
    return "zstd" if head.startswith(b"\x28\xb5\x2f\xfd") or skippable else None


def grows(head: bytes) -> bool:
    """Whether the file that begins with `head` may hold more than its own size: packed, or Parquet."""
    return head.startswith(PARQUET) or packing_of(head) is not None


@dataclass(frozen=True, slots=True)
class Growth:
    """What a file may become: `ratio` times its size, and `most` bytes at all."""

    ratio: int
    most: int

    def limit(self, size: int) -> int:
        """Bytes that a file of `size` bytes may become."""
        return min(self.most, max(FREE_BYTES, self.ratio * size))

    def bomb(self, size: int) -> Unreadable:
        """What is raised when it becomes more."""
        message = f"its {size:,} bytes become more than {self.limit(size):,} when they are unpacked"
        return Unreadable(Fault("", "compression_bomb", message, "Split the file, or upload it unpacked."))


class Hashed(io.RawIOBase):
    """A file read from its start, and the hash of all its bytes."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file: Any = file
        self._digest = hashlib.sha256()
        self.bytes_read = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        count: int = self._file.readinto(buffer)
        self._digest.update(memoryview(buffer)[:count])
        self.bytes_read += count
        return count

    def sha256(self) -> str:
        """Hash of the whole file; reads what no one has read yet."""
        piece = bytearray(BUFFER)
        while self.readinto(piece):
            pass
        return self._digest.hexdigest()


class _Member(Protocol):
    """What zlib and zstandard give for one member of a stream."""

    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, /) -> bytes: ...


class Unpacked(io.RawIOBase):
    """The content of a packed stream. Reading raises Unreadable when it is broken, cut, a bomb, or followed by something else."""

    def __init__(self, packed: io.BufferedReader, packing: Packing, growth: Growth, size: int) -> None:
        self._packed, self._growth, self._size = packed, growth, size
        self._packing: Packing = packing
        self._limit, self._count = growth.limit(size), 0
        self._member: _Member | None = None
        self._input = self._output = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        """Fills the whole buffer, except at the end."""
        target, at = memoryview(buffer).cast("B"), 0
        while at < len(target):
            if not self._output and not self._unpack():
                break
            count = min(len(self._output), len(target) - at)
            target[at : at + count] = self._output[:count]
            self._output = self._output[count:]
            at += count
        return at

    def _unpack(self) -> bool:
        """Have some output, False at the end."""
        while not self._output:
            if not self._input:
                self._input = memoryview(self._packed.read(BUFFER))
            if not self._input:
                if self._member is not None:
                    raise self._broken("it ends in the middle")
                return False
            self._output = memoryview(self._step())
            self._count += len(self._output)
            if self._count > self._limit:
                raise self._growth.bomb(self._size)
        return True

    def _step(self) -> bytes:
        """What the next few bytes become."""
        if self._member is None:
            self._member = self._next_member()
        before, taken = self._input, self._input[: _STEP[self._packing]]
        self._input = before[len(taken) :]
        try:
            output = self._member.decompress(bytes(taken))
        except (zlib.error, zstandard.ZstdError) as error:
            raise self._broken(str(error)) from None
        if self._member.eof:
            rest = len(self._member.unused_data)
            self._input = before[len(taken) - rest :]
            self._member = None
        return output

    def _next_member(self) -> _Member:
        if len(self._input) < 4:  # a magic number may be cut by the end of the buffer
            self._input = memoryview(bytes(self._input) + self._packed.read(BUFFER))
        if packing_of(bytes(self._input[:4])) != self._packing:
            raise self._broken(f"something that is not {self._packing} follows its end")
        if self._packing == "gzip":
            return zlib.decompressobj(wbits=31)
        return zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW).decompressobj()

    def _broken(self, how: str) -> Unreadable:
        message = f"the {self._packing} stream is broken: {how}"
        return Unreadable(Fault("", "compressed_data_broken", message, "Pack the file again, and compare its size with what was uploaded."))
