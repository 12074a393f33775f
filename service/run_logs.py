"""Reads what runs wrote to their logs: whole, from the end, or as it grows. See trainers.run_log for how it lies there.

Everything blocks: call it off the event loop. Called by `app.streams` and `driver`; knows no job.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

from trainers.run_log import DRIVER, piece_key, piece_name, rank_writer
from trainers.spec import logs_prefix
from trainers.storage import NoSuchObject, Storage


def writers(storage: Storage, job_id: str, epoch: int) -> list[str]:
    """Who wrote a log in this run: the driver, then the workers by rank."""
    names = (piece_name(info.key) for info in storage.list(f"{logs_prefix(job_id, epoch)}/"))
    return sorted({name.writer for name in names if name is not None}, key=lambda writer: (writer != DRIVER, len(writer), writer))


def last_lines(storage: Storage, job_id: str, epoch: int, rank: int | None, count: int) -> list[str]:
    """The last lines of a worker's log, of the driver's without a rank; empty when there is none."""
    log = LogReader(storage, job_id, epoch, DRIVER if rank is None else rank_writer(rank))
    return b"".join(log.tail(count)).decode("utf-8", "replace").splitlines()


@dataclass
class LogReader:
    """A log and how far it has been read. The last piece grows, pieces in the middle may go: neither disturbs the reader."""

    storage: Storage
    job_id: str
    epoch: int
    writer: str
    number: int = 0
    offset: int = 0

    def fresh(self) -> Iterator[bytes]:
        """What was not read yet, in pieces."""
        for number, _ in self._pieces():
            if number > self.number:
                self.number, self.offset = number, 0
            with suppress(NoSuchObject):  # dropped since it was listed
                for data in self.storage.read(self._key(number), self.offset):
                    self.offset += len(data)
                    yield data

    def tail(self, count: int) -> Iterator[bytes]:
        """The last `count` lines; goes on behind them."""
        kept: deque[bytes] = deque()
        lines = 0
        for number, _ in reversed(list(self._pieces())):
            data = b""
            with suppress(NoSuchObject):
                data = self.storage.get(self._key(number))
            if not kept:
                self.number, self.offset = number, len(data)
            kept.appendleft(data)
            lines += data.count(b"\n")
            if lines > count:
                break
        yield b"".join(b"".join(kept).splitlines(keepends=True)[-count:])

    def _pieces(self) -> Iterator[tuple[int, int]]:
        """Number and bytes of the pieces from where the reader is."""
        prefix = logs_prefix(self.job_id, self.epoch)
        for info in self.storage.list(f"{prefix}/{self.writer}-"):
            name = piece_name(info.key)
            if name is not None and name.writer == self.writer and name.number >= self.number:
                yield name.number, info.bytes

    def _key(self, number: int) -> str:
        return piece_key(logs_prefix(self.job_id, self.epoch), self.writer, number)
