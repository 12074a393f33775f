"""Times for a person: seconds since 1970 as local time, and as an age."""

from __future__ import annotations

import time
from datetime import datetime

from service.cli.output import duration


def when(seconds: float | None) -> str:
    """Local time, to the second."""
    return "" if seconds is None else datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def clock(seconds: float) -> str:
    """Local time of day, to the second."""
    return datetime.fromtimestamp(seconds).astimezone().strftime("%H:%M:%S")


def age(seconds: float | None) -> str:
    """How long ago it was."""
    return "" if seconds is None else duration(time.time() - seconds)
