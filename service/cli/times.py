"""Times for a person: seconds since 1970 as local time, and as an age; spans of time as a person types them."""

from __future__ import annotations

import re
import time
from datetime import datetime

from service.cli.output import Ended, ExitCode, duration

UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def when(seconds: float | None) -> str:
    """Local time, to the second."""
    return "" if seconds is None else datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def clock(seconds: float) -> str:
    """Local time of day, to the second."""
    return datetime.fromtimestamp(seconds).astimezone().strftime("%H:%M:%S")


def age(seconds: float | None) -> str:
    """How long ago it was."""
    return "" if seconds is None else duration(time.time() - seconds)


def seconds_of(text: str, option: str) -> int:
    """Seconds of a duration such as 90d, 12h, 30m or 45s. Raises Ended."""
    match = re.fullmatch(r"([0-9]{1,9})([smhd])", text)
    if match is None:
        raise Ended(ExitCode.USAGE, f"'{text}' is no duration", f"Write {option} 90d, 12h, 30m or 45s.")
    return int(match[1]) * UNITS[match[2]]
