"""When a run leaves its nodes before its end: what a rank wishes at a step, and the ways in which it hears that its node goes away.

A node that is about to go tells its processes by SIGTERM, by Ray's drain, or by a file that the operator's own hook makes
(TUNESMITH_DRAIN_FILE), whichever there is. Knows neither the loop nor Ray; `worker` puts the parts together.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from enum import IntEnum
from pathlib import Path
from types import FrameType

from protos.tunesmith.v1 import runs_pb2 as pb

DRAIN_FILE = "TUNESMITH_DRAIN_FILE"
"""Variable on a node with the path of a file that, once it is there, means that the node goes away."""


class Wish(IntEnum):
    """What a rank wants done at the end of a step. The most urgent wish of any rank is done by all of them."""

    GO_ON = 0
    SAVE = 1
    SAVE_AND_LEAVE = 2
    """The job is paused."""
    YIELD = 3
    """As SAVE_AND_LEAVE, because a node goes away: the job is to go on elsewhere."""
    LEAVE = 4
    """Write nothing more."""


DIRECTIVES = {
    pb.DIRECTIVE_CHECKPOINT: Wish.SAVE,
    pb.DIRECTIVE_CHECKPOINT_AND_STOP: Wish.SAVE_AND_LEAVE,
    pb.DIRECTIVE_STOP: Wish.LEAVE,
}


class Leaving:
    """Whether this rank's node goes away. Once it does, it does."""

    def __init__(self, *sources: Callable[[], str]) -> None:
        """`sources` say why in words, or nothing; they are asked at every step."""
        self._sources = (*sources, drained)
        self._why = ""

    def listen(self) -> None:
        """Take SIGTERM for it from now on. Only a process's main thread may ask for signals; elsewhere this does nothing."""
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._signalled)

    def why(self) -> str:
        """Why the node goes away; empty while it stays."""
        if not self._why:
            self._why = next((words for source in self._sources if (words := source())), "")
        return self._why

    def _signalled(self, number: int, frame: FrameType | None) -> None:
        self._why = "SIGTERM"


def drained() -> str:
    """Whether the file that TUNESMITH_DRAIN_FILE names is there."""
    path = os.environ.get(DRAIN_FILE)
    return f"{DRAIN_FILE} is there" if path and Path(path).exists() else ""
