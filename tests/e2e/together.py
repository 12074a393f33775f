"""Two gateways beside each other as a deployment has them, and those who look at them from outside.

Each gateway is what `tunesmith up` starts on a data directory of its own, its scheduler in it. `Doors` is the official client at
whichever of them answers; a `Follower` hears a job's stream, and goes to the next gateway where a stream is cut.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import httpx
from openai import APIConnectionError, APIStatusError, OpenAI

from service.embedded import Lock, StackState
from tests.e2e.stack import Stack, until
from tests.followers import messages

T = TypeVar("T")
AWAY_SECONDS = 120
"""How long both gateways may be away for a client."""


@dataclass
class Doors:
    """The official client at each gateway in turn; where one is away, the next is asked."""

    stacks: list[Stack]
    clients: list[OpenAI] = field(default_factory=list[OpenAI])
    asked: int = 0

    def open(self) -> None:
        """Once both have started: their addresses stay."""
        for stack in self.stacks:
            state = state_of(stack)
            key = Path(state.api_key_file).read_text().strip()
            self.clients.append(OpenAI(base_url=state.base_url, api_key=key, max_retries=0, _strict_response_validation=True))

    def ask(self, call: Callable[[OpenAI], T]) -> T:
        """What `call` gives at a gateway that answers; no gateway may answer anything else than that it is not available."""
        deadline = time.monotonic() + AWAY_SECONDS
        while True:
            self.asked += 1
            try:
                return call(self.clients[self.asked % len(self.clients)])
            except (APIConnectionError, APIStatusError) as error:
                away = isinstance(error, APIConnectionError) or error.status_code == 503
                if not away or time.monotonic() > deadline:
                    raise
                time.sleep(0.1)


class Follower:
    """Hears a job's stream in a thread, from the first event to the end, however often it has to connect anew."""

    def __init__(self, doors: Doors, job_id: str) -> None:
        self.heard: list[int] = []
        self.connected = 0
        self.answers: set[int] = set()
        self.status = ""
        self._doors, self._job_id = doors, job_id
        self._leaving = threading.Event()
        self._thread = threading.Thread(target=self._follow, name=f"follower of {job_id}", daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Wait until it has heard the end of the job."""
        self._thread.join(AWAY_SECONDS)
        assert self.status, "the stream has not ended"

    def leave(self) -> None:
        """Listen no more."""
        self._leaving.set()

    def _follow(self) -> None:
        while not self.status and not self._leaving.is_set():
            with suppress(httpx.TransportError):  # the gateway is away, or has just gone
                self._listen(self._doors.clients[self.connected % len(self._doors.clients)])
            self.connected += 1
            self._leaving.wait(0.2)

    def _listen(self, client: OpenAI) -> None:
        headers = {"authorization": f"Bearer {client.api_key}", "last-event-id": str(self.heard[-1] if self.heard else 0)}
        url = f"{client.base_url}fine_tuning/jobs/{self._job_id}/stream"
        with httpx.stream("GET", url, headers=headers, timeout=60, trust_env=False) as response:
            self.answers.add(response.status_code)
            for message in messages(response):
                if message.event == "event":
                    self.heard.append(int(message.id))
                elif message.event == "done":
                    self.status = message.data["status"]


def state_of(stack: Stack) -> StackState:
    """Where its gateway answers, or answered last."""
    state = StackState.read(stack.data_dir)
    assert state is not None
    return state


def end_gateway(stack: Stack, number: signal.Signals) -> None:
    """Send its gateway the signal, and wait until it is gone."""
    os.kill(state_of(stack).pid, number)
    until("the end of the gateway", lambda: Lock.holder(stack.data_dir) is None, 60, pause=0.05)
