"""A job's stream for those who follow it on the command line: every message once, across cuts.

Server-Sent Events are read here; what they tell is shown by `watch` and `jobs`. A service that is away for a while is
asked again, from the last event that came.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from service.cli.connection import CONNECT_TIMEOUT, Service, answer_of, away, refused
from service.cli.output import Ended, ExitCode

PATIENCE = 300.0
"""Seconds a service may be away before a watch gives up."""
PAUSE = 1.0
"""Seconds before connecting again."""
SILENCE = 45.0
"""Seconds without a byte after which the connection is dead: the service fills every silence of 15."""
FURTHEST = 10**6
"""How far back a stream may begin."""


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a stream: event, progress, done or error."""

    event: str
    id: str
    data: Any


@dataclass
class Feed:
    """The stream of one job, from `after` on; a negative number counts from the last event."""

    service: Service
    job_id: str
    after: int = 0
    patience: float = PATIENCE
    note: Callable[[str], None] = lambda text: None
    """Told when the service is away."""
    _last: str = field(default="", init=False)
    """Id of the last event that came."""
    _answered: float = field(default=0.0, init=False)

    def messages(self) -> Generator[Message]:
        """To the end of the job. Raises Ended when the service refuses, or stays away."""
        self._answered = time.monotonic()
        while True:
            try:
                for message in self._connected():
                    yield message
                    if message.event == "done":
                        return
            except Ended as ended:
                if ended.code is not ExitCode.AWAY or time.monotonic() - self._answered > self.patience:
                    raise
                self.note("the service does not answer; the job goes on without it, and this watch tries again")
            time.sleep(PAUSE)

    def _connected(self) -> Generator[Message]:
        """What one connection brings; ends when it is cut."""
        import httpx

        timeout = httpx.Timeout(SILENCE, connect=CONNECT_TIMEOUT)
        url = f"fine_tuning/jobs/{quote(self.job_id, safe='')}/stream"
        headers, params = ({"last-event-id": self._last}, None) if self._last else (None, {"after": self.after})
        try:
            with (
                self.service.bytes_client() as client,
                client.stream("GET", url, params=params, headers=headers, timeout=timeout) as response,
            ):
                if not response.is_success:
                    raise refused(response.status_code, answer_of(response), response.headers.get("x-request-id"), self.service.target)
                for message in decoded(self._alive(response.iter_bytes())):
                    if message.event == "error":
                        raise refused(401, message.data, None, self.service.target)
                    self._last = message.id or self._last
                    yield message
        except httpx.TransportError as error:
            raise away(error, self.service.target) from error

    def _alive(self, pieces: Iterable[bytes]) -> Iterator[bytes]:
        for piece in pieces:
            self._answered = time.monotonic()
            yield piece


def decoded(pieces: Iterable[bytes]) -> Iterator[Message]:
    """The messages in a stream of bytes; comments and the time to wait are passed over."""
    fields: dict[str, str] = {}
    for line in _lines(pieces):
        name, _, value = line.partition(":")
        if line and name in ("event", "id", "data"):
            fields[name] = value.removeprefix(" ")
        elif not line:
            if "data" in fields:
                yield Message(fields.get("event", ""), fields.get("id", ""), json.loads(fields["data"]))
            fields = {}


def _lines(pieces: Iterable[bytes]) -> Iterator[str]:
    """Split at line feeds alone: text in JSON may hold what Unicode calls the end of a line."""
    rest = b""
    for piece in pieces:
        *whole, rest = (rest + piece).split(b"\n")
        for line in whole:
            yield line.rstrip(b"\r").decode("utf-8", "replace")
