"""What graders may use of the machine and of the network, and the time they have. Made by whoever configures graders."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import timedelta

from trainers.graders.endpoint import Endpoint
from trainers.graders.python_grader import PythonLimits


@dataclass(frozen=True)
class Tools:
    """What graders may use, and how long one sample may take them."""

    python: PythonLimits
    endpoint: Endpoint | None
    timeout: timedelta


@dataclass(frozen=True)
class Deadline:
    """When the time for one sample is over."""

    at: float
    """By time.monotonic."""

    @classmethod
    def after(cls, duration: timedelta) -> Deadline:
        """That much from now."""
        return cls(time.monotonic() + duration.total_seconds())

    @property
    def left(self) -> timedelta:
        """What remains, never below 0."""
        return timedelta(seconds=max(0.0, self.at - time.monotonic()))
