"""Bars on standard error for what takes a while; without a terminal they say nothing.

Knows no service. `bar` is for bytes; watch.py has its own line for jobs.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from service.cli.output import on_terminal

if TYPE_CHECKING:
    from rich import progress
    from rich.console import Console


def console() -> Console:
    """Standard error, for rich."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, markup=False, emoji=False)


class Bar:
    """A bar of bytes; may be told any amount, in steps or as a whole."""

    def advance(self, count: int) -> None:
        """So many more."""

    def at_work(self, label: str) -> None:
        """What is being done now."""

    def at(self, done: int, total: int | None = None, label: str | None = None) -> None:
        """So many of so many; what is being done."""


@contextmanager
def bar(label: str, total: int | None) -> Generator[Bar]:
    """A bar while the `with` lasts; it leaves nothing on the screen."""
    if not on_terminal():
        yield Bar()
        return
    from rich import progress

    columns = (
        progress.TextColumn("{task.description}", markup=False),
        progress.BarColumn(),
        progress.DownloadColumn(),
        progress.TransferSpeedColumn(),
        progress.TimeRemainingColumn(),
    )
    with progress.Progress(*columns, console=console(), transient=True) as shown:
        yield _RichBar(shown, shown.add_task(label, total=total))


class _RichBar(Bar):
    def __init__(self, shown: progress.Progress, task: progress.TaskID) -> None:
        self._shown, self._task = shown, task

    def advance(self, count: int) -> None:
        self._shown.advance(self._task, count)

    def at_work(self, label: str) -> None:
        self._shown.update(self._task, description=label)

    def at(self, done: int, total: int | None = None, label: str | None = None) -> None:
        self._shown.update(self._task, completed=done, total=total, description=label)
