"""How a pull can end badly, and how it says what it is doing. Shared by `pull` and the sources; knows neither."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

OnProgress = Callable[[str, int, int], None]
"""Told what is being done, bytes done and bytes in all; 0 in all when that is not known."""


class PullFailed(Exception):
    """The base model could not be stored. The message is one line: what is wrong, and what to do next."""


class SourceAway(Exception):
    """This source can't be had just now; another one may do. The message is one line."""


def require_room(directory: Path, size: int) -> None:
    """Raise PullFailed unless `size` bytes fit on the disk below `directory`."""
    free = shutil.disk_usage(directory).free
    if size > free:
        raise PullFailed(
            f"{size / 1e9:.1f} GB are needed for a while at {directory}, {free / 1e9:.1f} GB are free; free some, or set TMPDIR"
        )
