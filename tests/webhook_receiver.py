"""An https endpoint on loopback that keeps what it is sent, and that this process trusts meanwhile."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from tests.https_server import https_server

PATH = "/hook"


@dataclass
class Receiver:
    """What came, and what is answered: `answers` in turn, 200 when they are used up."""

    url: str
    answers: list[int] = field(default_factory=list)
    received: list[tuple[dict[str, str], str]] = field(default_factory=list)
    """Headers in lower case, and the body, of each request."""

    def take(self, request: BaseHTTPRequestHandler) -> None:
        """Keep the request and answer it."""
        body = request.rfile.read(int(request.headers["content-length"])).decode()
        self.received.append(({name.lower(): value for name, value in request.headers.items()}, body))
        status = self.answers.pop(0) if self.answers else 200
        request.send_response(status)
        if status == 307:
            request.send_header("location", self.url)
        request.send_header("content-length", "0")
        request.end_headers()


@contextmanager
def receiving(directory: Path) -> Iterator[Receiver]:
    """A receiver on a free port, whose certificate is the one authority that is trusted while the block lasts."""
    with https_server(directory) as server, pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSL_CERT_FILE", str(server.certificate))
        receiver = Receiver(server.url(PATH))
        server.answers[PATH] = receiver.take
        yield receiver
