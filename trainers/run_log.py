"""The log of one process of a run in storage: pieces that grow, of which the middle goes when there are too many.

`runs/<job>/<epoch>/logs/<writer>-<k>.log`, where the writer is `driver` or `rank-<n>`; joined in the order of k they are
the log. Written by `capture`; read by the service. Knows no process and no secret: lines come to it redacted.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from trainers.storage import Storage

PIECE = 2**18
"""Bytes of a piece that is full. The last one is stored anew each time it has grown."""
HEAD = 0.25
"""Share of the limit that the first lines may keep; they tell how the run was started."""
DRIVER = "driver"
_NAME = re.compile(r"(?P<writer>driver|rank-[0-9]{1,6})-(?P<number>[0-9]{6})\.log")


@dataclass(frozen=True, slots=True)
class PieceName:
    """What the key of a piece says."""

    writer: str
    number: int


def rank_writer(rank: int) -> str:
    """Name under which a worker writes."""
    return f"rank-{rank}"


def piece_key(prefix: str, writer: str, number: int) -> str:
    """Key of a piece; keys sort as their numbers do."""
    return f"{prefix}/{writer}-{number:06}.log"


def piece_name(key: str) -> PieceName | None:
    """The other way round, None for what is no piece."""
    match = _NAME.fullmatch(key.rpartition("/")[2])
    return PieceName(match["writer"], int(match["number"])) if match else None


class RunLog:
    """The lines of one process on their way to storage. One thread may use it."""

    def __init__(self, storage: Storage, prefix: str, writer: str, limit: int) -> None:
        """`limit` counts bytes, of all pieces together."""
        self._storage, self._prefix, self._writer, self._limit = storage, prefix, writer, limit
        self._piece = min(PIECE, limit // 8)
        self._head = max(1, int(limit * HEAD) // self._piece)
        self._current, self._number = bytearray(), 0
        self._sizes: dict[int, int] = {}
        self._unsaved: dict[int, bytes] = {}
        self._unwanted: set[int] = set()
        self._dropped = 0

    def add(self, line: str) -> None:
        """One more line, without its end."""
        data = line.encode("utf-8", "replace") + b"\n"
        if self._current and len(self._current) + len(data) > self._piece:
            self._turn()
        self._current += data
        self._unsaved.pop(self._number, None)

    def save(self) -> None:
        """Store what is new. Raises what a Storage raises; what is not stored then waits for the next call."""
        if self._current and self._sizes.get(self._number) != len(self._current):
            self._unsaved[self._number] = bytes(self._current)
        for number in sorted(self._unsaved):
            data = self._unsaved[number]
            self._storage.put(piece_key(self._prefix, self._writer, number), data)
            self._sizes[number] = len(data)
            del self._unsaved[number]
        for number in sorted(self._unwanted):
            self._storage.delete(piece_key(self._prefix, self._writer, number))
            self._unwanted.discard(number)

    def _turn(self) -> None:
        """The piece is full: begin the next, and let the oldest beyond the head go while there are too many."""
        self._unsaved[self._number] = bytes(self._current)
        self._sizes[self._number] = len(self._current)
        self._number += 1
        self._current.clear()
        while sum(self._sizes.values()) > self._limit - self._piece:
            self._drop(min(number for number in self._sizes if number >= self._head + bool(self._dropped)))

    def _drop(self, number: int) -> None:
        self._dropped += self._sizes.pop(number)
        self._unsaved.pop(number, None)
        if number != self._head:
            self._unwanted.add(number)
        marker = f"[… {self._dropped} bytes of this log were dropped here: it is longer than {self._limit} bytes]\n".encode()
        self._unsaved[self._head], self._sizes[self._head] = marker, len(marker)
