"""What a project may use at most: the quotas, where each one's number comes from, and the words of a refusal. Pure.

The settings give every project its quotas; a project's own, in the database, come first. The application
layer enforces those of requests, the scheduler that of running jobs, `Admission` the request rate.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal

from pydantic import Field

from service.errors import ErrorCode, TunesmithError
from service.jobs import JobStatus
from service.settings import Settings
from trainers.spec import Frozen

Count = Annotated[int, Field(ge=0, le=2**53)] | Literal["unlimited"]
Hours = Annotated[float, Field(ge=0, le=1e9)] | Literal["unlimited"]
Rate = Annotated[int, Field(ge=1, le=10**6)] | Literal["unlimited"]
Priority = Annotated[int, Field(ge=-100, le=100)] | Literal["unlimited"]
WAITING = frozenset({JobStatus.VALIDATING, JobStatus.QUEUED, JobStatus.PAUSED})
"""States in which a job counts as queued: a paused one too, or pausing would make room for more."""
SOON = timedelta(minutes=1)
"""When to ask again for what other jobs must give back first."""


class Quotas(Frozen):
    """Quotas of one project. Null is the service's default, "unlimited" no limit."""

    running_jobs: Count | None = Field(default=None, description="Jobs that run at the same time; further ones wait in the queue.")
    queued_jobs: Count | None = Field(default=None, description="Jobs that are being checked, wait or are paused.")
    gpu_hours: Hours | None = Field(default=None, description="GPU-hours of all runs in a calendar month (UTC).")
    stored_bytes: Count | None = Field(default=None, description="Bytes of all files, result files too.")
    requests_per_minute: Rate | None = Field(default=None, description="Requests in any 60 seconds with all keys, at each gateway.")
    priority: Priority | None = Field(default=None, description="Highest priority of a job.")

    @classmethod
    def of(cls, settings: Settings) -> Quotas:
        """The service's defaults: every field has a value."""
        return cls(**{name: getattr(settings, f"quota_{name}") for name in cls.model_fields})

    @classmethod
    def stored(cls, value: object) -> Quotas:
        """From the database's column, which is null in projects that are older than quotas."""
        return cls.model_validate(value or {})

    def over(self, defaults: Quotas) -> Quotas:
        """These where they are set, else the defaults."""
        return defaults.changed(self.model_dump(exclude_none=True))

    def changed(self, changes: dict[str, Any]) -> Quotas:
        """With `changes` to the named ones; None takes the default again."""
        return self.model_copy(update=changes)

    def limit(self, name: str) -> float | None:
        """The number, None where there is no limit."""
        value = getattr(self, name)
        return None if value in (None, "unlimited") else value


@dataclass(frozen=True, slots=True)
class Usage:
    """What a project uses now; GPU-hours are those of the calendar month."""

    running_jobs: int
    queued_jobs: int
    gpu_hours: float
    stored_bytes: int


def month(time: float) -> tuple[float, float]:
    """Begin and end of the calendar month (UTC) around `time`, in seconds since 1970."""
    begin = datetime.fromtimestamp(time, UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    return begin.timestamp(), (begin + timedelta(days=32)).replace(day=1).timestamp()


def exceeded(name: str, said: str, retry_after: timedelta = SOON) -> TunesmithError:
    """The refusal that names the quota; `said` tells what is used and what to do."""
    message = f"The project's quota '{name}' is used up: {said}"
    return TunesmithError(ErrorCode.QUOTA_EXCEEDED, message, param=name, retry_after=retry_after)
