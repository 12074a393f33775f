"""The processes of one embedded stack, found by what their environment says and never by their name.

The Ray head is started with MARKER in its environment and every run with RUN_MARKER as well; whatever they
start inherits both. So nothing is lost from sight when a parent dies, and nothing foreign is ever ended.
Knows no Ray. Used by the embedded head, its runtime and `tunesmith down`.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import psutil

MARKER = "TUNESMITH_HEAD_OF"
"""Holds the data directory. Not TUNESMITH_DATA_DIR, which a person may have set in the shell that everything is started from."""
RUN_MARKER = "TUNESMITH_RUN_ID"
LOOPBACK = ("127.", "::1", "::ffff:127.")
END_SECONDS = 15.0
"""After SIGKILL a process is gone at once, unless the kernel waits for a device."""


@dataclass(frozen=True)
class StackProcesses:
    """What runs on one data directory: the Ray head and the runs below it."""

    marker: str

    @classmethod
    def of(cls, data_dir: Path) -> StackProcesses:
        """Those of this data directory, whatever way its path is written."""
        return cls(str(data_dir.resolve()))

    def all(self) -> list[psutil.Process]:
        """Every living process of the head and of its runs."""
        return [process for process, _ in self._marked()]

    def head(self) -> list[psutil.Process]:
        """The head itself, without the runs."""
        return [process for process, run_id in self._marked() if run_id is None]

    def has(self, pid: int) -> bool:
        """Whether this process lives and is one of them."""
        try:
            process = psutil.Process(pid)
            return process.environ().get(MARKER) == self.marker and process.status() != psutil.STATUS_ZOMBIE
        except (psutil.NoSuchProcess, psutil.AccessDenied, OSError):
            return False

    def of_run(self, run_id: str) -> list[psutil.Process]:
        """Every living process of the run, with all that they have started."""
        found = {process.pid: process for process, its_run in self._marked() if its_run == run_id}
        for process in list(found.values()):
            found |= {child.pid: child for child in _children(process)}
        return list(found.values())

    def run_ids(self) -> set[str]:
        """The runs of which anything lives."""
        return {run_id for _, run_id in self._marked() if run_id is not None}

    def end_all(self) -> bool:
        """SIGKILL everything until nothing is left; whether that came within END_SECONDS."""
        return end(self.all)

    def beyond_loopback(self) -> list[str]:
        """Addresses on which the head listens for more than this machine."""
        found: set[str] = set()
        for process in self.head():
            try:
                for connection in process.net_connections(kind="inet"):
                    if connection.status == psutil.CONN_LISTEN and not connection.laddr.ip.startswith(LOOPBACK):
                        found.add(f"{connection.laddr.ip}:{connection.laddr.port}")
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        return sorted(found)

    def _marked(self) -> list[tuple[psutil.Process, str | None]]:
        found: list[tuple[psutil.Process, str | None]] = []
        for process in psutil.process_iter():
            try:
                environment = process.environ()
                if environment.get(MARKER) == self.marker and process.status() != psutil.STATUS_ZOMBIE:
                    found.append((process, environment.get(RUN_MARKER) or None))
            except (psutil.NoSuchProcess, psutil.AccessDenied, OSError):
                continue
        return found


def lives(pid: int) -> bool:
    """Whether there is such a process, and not only its exit status that nobody has asked for."""
    try:
        return pid > 0 and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def send(processes: Iterable[psutil.Process], number: signal.Signals) -> None:
    """Signal each that is still the process it was when it was found."""
    for process in processes:
        try:
            process.send_signal(number)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue


def end(find: Callable[[], list[psutil.Process]], seconds: float = END_SECONDS) -> bool:
    """SIGKILL what `find` finds, again and again, since a dying process may start another; whether nothing is left."""
    deadline = time.monotonic() + seconds
    while left := find():
        if time.monotonic() > deadline:
            return False
        send(left, signal.SIGKILL)
        time.sleep(0.05)
    return True


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return [child for child in process.children(recursive=True) if child.status() != psutil.STATUS_ZOMBIE]
    except psutil.NoSuchProcess:
        return []
