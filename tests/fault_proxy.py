"""An HTTP proxy on loopback that does harm on demand: refuse, stall, cut, flip, answer for the server, lose an answer.

Each fault is given to one request, the next of its HTTP method; everything else passes untouched.
"""

from __future__ import annotations

import http.client
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit


@dataclass
class Answer:
    """What the server said. `cut`: bytes of the body after which the connection breaks; `pause`: seconds before each KiB."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes
    cut: int | None = None
    pause: float = 0.0


Fault = Callable[["Passage"], Answer | None]
"""Makes the answer that the client gets; None breaks the connection without one."""


@dataclass
class Passage:
    """One request on its way."""

    method: str
    body: bytes
    forward: Callable[[bytes], Answer]
    ended: threading.Event


@dataclass
class FaultProxy:
    """Stands before `upstream` (http://host:port)."""

    upstream: str
    endpoint: str = ""
    seen: list[str] = field(default_factory=list[str])
    ended: threading.Event = field(default_factory=threading.Event)
    _faults: dict[str, list[Fault]] = field(default_factory=dict[str, list[Fault]])

    def harm(self, method: str, fault: Fault, times: int = 1) -> None:
        """Give `fault` to the next requests of this method."""
        self._faults.setdefault(method, []).extend([fault] * times)

    def heal(self) -> None:
        """No more harm."""
        self._faults.clear()

    def take(self, method: str) -> Fault:
        """The fault of this request."""
        self.seen.append(method)
        waiting = self._faults.get(method)
        return waiting.pop(0) if waiting else passed


def passed(passage: Passage) -> Answer | None:
    """No harm."""
    return passage.forward(passage.body)


def refused(passage: Passage) -> Answer | None:
    """The connection breaks before the server has seen anything."""
    return None


def stalled(passage: Passage) -> Answer | None:
    """Silence."""
    passage.ended.wait(60)
    return None


def answer_lost(passage: Passage) -> Answer | None:
    """The server does what it is asked, and nobody hears of it."""
    passage.forward(passage.body)
    return None


def answering(status: int, code: str) -> Fault:
    """The proxy answers for the server."""
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>no</Message></Error>".encode()
    return lambda passage: Answer(status, [("Content-Type", "application/xml")], b"" if passage.method == "HEAD" else body)


def cut_after(size: int) -> Fault:
    """The answer breaks off."""
    return lambda passage: _changed(passage, lambda answer: setattr(answer, "cut", size))


def slow(pause: float) -> Fault:
    """A KiB now and then."""
    return lambda passage: _changed(passage, lambda answer: setattr(answer, "pause", pause))


def flipped(at: int) -> Fault:
    """One bit of the answer is another."""
    return lambda passage: _changed(passage, lambda answer: setattr(answer, "body", _flip(answer.body, at)))


def flipped_upload(at: int) -> Fault:
    """One bit of what the client sends is another."""
    return lambda passage: passage.forward(_flip(passage.body, at))


def _changed(passage: Passage, change: Callable[[Answer], None]) -> Answer:
    answer = passage.forward(passage.body)
    change(answer)
    return answer


def _flip(body: bytes, at: int) -> bytes:
    return body[:at] + bytes([body[at] ^ 1]) + body[at + 1 :]


@contextmanager
def fault_proxy(upstream: str) -> Iterator[FaultProxy]:
    """A proxy that ends with the block."""
    proxy = FaultProxy(upstream)
    handler = type("Handler", (_Handler,), {"proxy": proxy})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        proxy.endpoint = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield proxy
        finally:
            proxy.ended.set()
            server.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 30
    proxy: FaultProxy

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        answer = self.proxy.take(self.command)(Passage(self.command, body, self._forward, self.proxy.ended))
        if answer is None:
            self.close_connection = True
            return
        self.send_response_only(answer.status)
        own = {"transfer-encoding", "connection"} | (set() if self.command == "HEAD" else {"content-length"})
        for name, value in answer.headers:
            if name.lower() not in own:
                self.send_header(name, value)
        if self.command != "HEAD":
            self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        self._send(answer)

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = _serve

    def _send(self, answer: Answer) -> None:
        if answer.cut is not None:
            self.wfile.write(answer.body[: answer.cut])
            self.close_connection = True
        elif answer.pause:
            self._drip(answer)
        else:
            self.wfile.write(answer.body)

    def _drip(self, answer: Answer) -> None:
        self.close_connection = True
        with suppress(OSError):  # the client has had enough
            for start in range(0, len(answer.body), 1024):
                if self.proxy.ended.wait(answer.pause):
                    return
                self.wfile.write(answer.body[start : start + 1024])

    def _forward(self, body: bytes) -> Answer:
        connection = http.client.HTTPConnection(urlsplit(self.proxy.upstream).netloc, timeout=30)
        try:
            connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in ("expect", "connection"):
                    connection.putheader(name, value)
            connection.endheaders(body or None)
            answer = connection.getresponse()
            return Answer(answer.status, answer.getheaders(), answer.read())
        finally:
            connection.close()
