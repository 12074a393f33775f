"""A TCP proxy on loopback: before gateways it takes whichever answers, before PostgreSQL it loses the answer to a COMMIT.

`tests.fault_proxy` is the one that speaks HTTP.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

Address = tuple[str, int]


@dataclass
class TcpProxy:
    """Stands before `targets`; a connection goes to the first of them that takes it."""

    targets: list[Address]
    port: int = 0
    lost: int = 0
    """Answers to a COMMIT that nobody heard of."""
    _doomed: bytes | None = None
    _open: list[socket.socket] = field(default_factory=list[socket.socket])

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def lose_commit_of(self, statement: str) -> None:
        """Forward the COMMIT of the next transaction that holds the statement, and break the connection instead of answering."""
        self._doomed = statement.encode()

    def serve(self, listening: socket.socket) -> None:
        with suppress(OSError):  # the listening socket is closed: the end
            while True:
                client, _ = listening.accept()
                threading.Thread(target=self._carry, args=(client,), daemon=True).start()

    def close(self) -> None:
        """Break every connection."""
        for end in self._open:
            _break(end)

    def _carry(self, client: socket.socket) -> None:
        server = self._connected()
        if server is None:
            client.close()
            return
        self._open += [client, server]
        connection = _Connection(self, client, server)
        back = threading.Thread(target=connection.answers, daemon=True)
        back.start()
        connection.requests()
        back.join()

    def _connected(self) -> socket.socket | None:
        for target in self.targets:
            with suppress(OSError):
                return socket.create_connection(target, timeout=5)
        return None

    def takes_doom(self, data: bytes) -> bool:
        """Whether this connection is the one whose COMMIT is lost; only one is."""
        if self._doomed is None or self._doomed not in data:
            return False
        self._doomed = None
        return True


class _Connection:
    def __init__(self, proxy: TcpProxy, client: socket.socket, server: socket.socket) -> None:
        self._proxy, self._client, self._server = proxy, client, server
        self._server.settimeout(None)
        self._doomed = self._committed = False

    def requests(self) -> None:
        with suppress(OSError):
            while data := self._client.recv(65536):
                self._doomed = self._doomed or self._proxy.takes_doom(data)
                self._committed = self._doomed and b"COMMIT" in data
                self._server.sendall(data)
        _break(self._server)

    def answers(self) -> None:
        with suppress(OSError):
            while data := self._server.recv(65536):
                if self._committed:
                    self._proxy.lost += 1
                    break
                self._client.sendall(data)
        _break(self._client)
        _break(self._server)


def _break(end: socket.socket) -> None:
    with suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
    end.close()


@contextmanager
def tcp_proxy(*targets: str) -> Iterator[TcpProxy]:
    """A proxy before these `host:port`, which ends with the block."""
    proxy = TcpProxy([(host, int(port)) for host, _, port in (target.rpartition(":") for target in targets)])
    with socket.create_server(("127.0.0.1", 0)) as listening:
        proxy.port = listening.getsockname()[1]
        thread = threading.Thread(target=proxy.serve, args=(listening,), daemon=True)
        thread.start()
        try:
            yield proxy
        finally:
            with suppress(OSError):
                listening.shutdown(socket.SHUT_RDWR)
            listening.close()
            thread.join(5)
            proxy.close()
