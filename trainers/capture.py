"""Takes down what a process of a run writes to its standard streams, and keeps it in storage while the run goes on.

Reads behind the writer's back: on Ray the streams are files already, and are read from there; any other stream is led
into a file first and handed on from it. Nothing that writes ever waits, native libraries included, and what goes wrong
here never fails the run. Used by `worker`.
"""

from __future__ import annotations

import logging
import os
import re
import stat
import sys
import tempfile
import threading
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager, suppress

from trainers.redact import Redact, redactor
from trainers.run_log import RunLog
from trainers.spec import RunSpec, logs_prefix
from trainers.storage import Storage

BEAT_SECONDS = 2.0
"""Between two looks at the streams; what was written then is stored."""
CLOSE_SECONDS = 15.0
"""How long the end of a run waits for its last lines to be stored."""
CHUNK = 2**16
LONGEST_LINE = 2**14
"""Bytes of a line that are kept; four times as many are looked at, so that no secret is cut in two before it is seen."""
FORMAT = "%(asctime)s %(levelname)s %(name)s %(message)s"
log = logging.getLogger("trainers.capture")
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|\x1b.|[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""What steers terminals, and has no place in a text that is shown on them later."""


@contextmanager
def captured(storage: Storage, spec: RunSpec, writer: str, secrets: Iterable[str] = ()) -> Generator[None]:
    """Keep what this process writes meanwhile as the log of `writer`; `secrets` are never written. Fails nothing."""
    capture: Capture | None = None
    try:
        kept = RunLog(storage, logs_prefix(spec.job_id, spec.epoch), writer, spec.log_bytes)
        capture = Capture(kept, redactor(secrets=secrets))
    except Exception as error:
        log.warning("the log of %s is not kept: %s", writer, error)
    try:
        yield
    finally:
        if capture is not None:
            with suppress(Exception):
                capture.close()


def speak() -> None:
    """Let this package's own lines reach standard error with time and origin; Ray's handler of all logging shows neither."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter(FORMAT))
    ours = logging.getLogger("trainers")
    ours.handlers, ours.propagate = [handler], False
    ours.setLevel(logging.INFO)


class Capture:
    """A thread that reads the standard streams and stores their lines."""

    def __init__(self, kept: RunLog, redact: Redact, descriptors: tuple[int, ...] = (1, 2)) -> None:
        self._kept, self._redact = kept, redact
        self._streams = list(_streams(descriptors))
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="capture", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Store the last lines and give the streams back; waits at most CLOSE_SECONDS for the store."""
        for stream in (sys.stdout, sys.stderr):
            with suppress(Exception):
                stream.flush()
        self._ending.set()
        self._thread.join(CLOSE_SECONDS)

    def _run(self) -> None:
        while not self._ending.wait(BEAT_SECONDS):
            self._beat(last=False)
        for stream in self._streams:
            stream.release()
        self._beat(last=True)
        for stream in self._streams:
            stream.close()

    def _beat(self, *, last: bool) -> None:
        # Storage that is away is asked again at the next beat, and nothing here may disturb the run.
        with suppress(Exception):
            for stream in self._streams:
                for line in stream.lines(last=last):
                    self._kept.add(_clean(line, self._redact))
            self._kept.save()


class _Stream:
    """What is written to one file descriptor, line by line."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor, self._before = descriptor, -1
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            self._source = os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY)
            self._at = os.fstat(descriptor).st_size
        else:
            self._before, self._at = os.dup(descriptor), 0
            with tempfile.TemporaryFile() as file:
                self._source = os.dup(file.fileno())
            os.dup2(self._source, descriptor)
        self._rest = b""

    def lines(self, *, last: bool) -> Iterator[bytes]:
        """Those that were finished since the last call; at the `last` one also what has no end yet."""
        while chunk := os.pread(self._source, CHUNK, self._at):
            self._at += len(chunk)
            if self._before >= 0:
                os.write(self._before, chunk)
            *whole, rest = (self._rest + chunk).split(b"\n")
            self._rest = _last_state(rest)[: 4 * LONGEST_LINE]
            yield from whole
        if last and self._rest:
            yield self._rest

    def release(self) -> None:
        """Write where it was written before."""
        if self._before >= 0:
            os.dup2(self._before, self._descriptor)

    def close(self) -> None:
        os.close(self._source)
        if self._before >= 0:
            os.close(self._before)


def _streams(descriptors: Iterable[int]) -> Iterator[_Stream]:
    """One for each file: standard output and error may be the same."""
    seen: set[tuple[int, int]] = set()
    for descriptor in descriptors:
        facts = os.fstat(descriptor)
        if (facts.st_dev, facts.st_ino) not in seen or not stat.S_ISREG(facts.st_mode):
            yield _Stream(descriptor)
        seen.add((facts.st_dev, facts.st_ino))


def _last_state(line: bytes) -> bytes:
    """A progress bar writes over itself: what would be seen of it."""
    shown = line.rstrip(b"\r")
    return shown.rpartition(b"\r")[2] + line[len(shown) :][:1]


def _clean(line: bytes, redact: Redact) -> str:
    """The line as it is kept: without secrets and what steers terminals, and not too long."""
    text = _last_state(line)[: 4 * LONGEST_LINE].decode("utf-8", "replace")
    text = redact(_CONTROL.sub("", text))
    return text if len(text) <= LONGEST_LINE else f"{text[:LONGEST_LINE]} [… cut]"
