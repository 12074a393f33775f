"""An OpenAI-compatible endpoint on a free port, small enough to say in a test what it answers."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "endpoint-key"
Answer = tuple[int, bytes]


def chat(content: str | None, *, tokens: int = 30, **choice: Any) -> Answer:
    """A chat completion whose message is `content`."""
    message = {"role": "assistant", "content": content, "refusal": choice.pop("refusal", None)}
    body = {"model": "judge-2026", "choices": [{"index": 0, "message": message, "finish_reason": "stop", **choice}]}
    return 200, json.dumps(body | {"usage": {"total_tokens": tokens}}).encode()


def result(value: Any) -> Answer:
    """A chat completion in the form that graders ask for."""
    return chat(json.dumps({"steps": [], "result": value}))


@dataclass
class ChatEndpoint:
    """The running endpoint: what it was asked, and what it answers next."""

    answer: Callable[[str, dict[str, Any]], Answer] = lambda path, body: result(1)
    asked: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    url: str = ""

    def says(self, status: int, body: bytes) -> None:
        """From now on the answer is this."""
        self.answer = lambda path, asked: (status, body)

    def is_silent(self, seconds: float) -> None:
        """From now on the answer takes this long."""

        def late(path: str, body: dict[str, Any]) -> Answer:
            time.sleep(seconds)
            return result(1)

        self.answer = late


@contextmanager
def chat_endpoint() -> Iterator[ChatEndpoint]:
    """An endpoint that asks for KEY."""
    endpoint = ChatEndpoint()

    class Exchange(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            endpoint.asked.append((self.path, body))
            if self.headers["authorization"] != f"Bearer {KEY}":
                status, answer = 401, b'{"error": {"message": "Incorrect API key: hush"}}'
            else:
                status, answer = endpoint.answer(self.path, body)
            self.send_response(status)
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Exchange) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        endpoint.url = f"http://127.0.0.1:{server.server_address[1]}/v1/"
        try:
            yield endpoint
        finally:
            server.shutdown()
