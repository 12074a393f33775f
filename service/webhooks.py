"""Webhooks: endpoints that a project registers, what they are sent, how it is signed, and when it is tried again. Pure.

Signed as OpenAI signs (Standard Webhooks), so that the official client's `webhooks.unwrap` verifies it. The outbox is written by
store/jobs.py in the job's own transaction, emptied by deliveries.py.
"""

from __future__ import annotations

import base64
import json
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal

from standardwebhooks.webhooks import Webhook

from service.jobs import JobStatus

EVENT_OF: dict[JobStatus, str] = {
    JobStatus.SUCCEEDED: "fine_tuning.job.succeeded",
    JobStatus.FAILED: "fine_tuning.job.failed",
    JobStatus.CANCELLED: "fine_tuning.job.cancelled",
}
"""What a job's end is called; OpenAI's words."""
PAUSES = tuple(timedelta(seconds=s) for s in (5, 30, 120, 600, 1800, 3600, 3 * 3600, 6 * 3600, 12 * 3600, 24 * 3600, 24 * 3600))
"""Between two attempts: twelve in about three days, as long as OpenAI tries."""
Outcome = Literal["pending", "delivered", "failed"]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a project wants to be told, and of what. After a rotation the secret before is signed with too, until it expires."""

    id: str
    project_id: str
    name: str
    url: str
    events: tuple[str, ...]
    secret: str
    previous_secret: str | None
    previous_expires_at: float | None
    created_at: float

    def secrets_at(self, time: float) -> list[str]:
        """The secrets to sign with, newest first."""
        old = self.previous_secret
        return [self.secret] + ([old] if old is not None and (self.previous_expires_at or 0) > time else [])


@dataclass(frozen=True, slots=True)
class Delivery:
    """One event on its way to one endpoint. `body` is what is signed and sent, byte for byte; `due_at` is None once it is settled."""

    id: str
    endpoint_id: str
    event_id: str
    type: str
    body: str
    status: Outcome
    attempts: int
    created_at: float
    due_at: float | None
    attempted_at: float | None
    response_status: int | None
    error: str | None


@dataclass(frozen=True, slots=True)
class Attempt:
    """How one attempt went: what the endpoint answered, or why it could not be asked."""

    response_status: int | None
    error: str | None

    @property
    def delivered(self) -> bool:
        """Whether the endpoint took it: any 2xx."""
        return self.response_status is not None and 200 <= self.response_status < 300


def new_secret() -> str:
    """256 random bits in the form that the official client takes."""
    return "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode()


def new_event(type: str, object_id: str, time: float) -> tuple[str, str]:
    """(event id, body) in OpenAI's form."""
    event_id = f"evt_{secrets.token_hex(12)}"
    event = {"id": event_id, "object": "event", "type": type, "created_at": int(time), "data": {"id": object_id}}
    return event_id, json.dumps(event, separators=(",", ":"))


def signed_headers(endpoint: Endpoint, event_id: str, body: str, time: float) -> dict[str, str]:
    """The three headers of Standard Webhooks, signed at `time` with every secret that is good."""
    at = datetime.fromtimestamp(int(time), UTC)
    signatures = [Webhook(secret).sign(event_id, at, body) for secret in endpoint.secrets_at(time)]
    return {"webhook-id": event_id, "webhook-timestamp": str(int(time)), "webhook-signature": " ".join(signatures)}


def next_attempt(attempts: int, time: float, jitter: float) -> float | None:
    """When to try again after so many attempts, None when enough were made. `jitter` near 1 spreads endpoints that fell together."""
    return time + PAUSES[attempts - 1].total_seconds() * jitter if attempts <= len(PAUSES) else None
