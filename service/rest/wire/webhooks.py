"""Shapes of webhooks. What an endpoint is sent has OpenAI's shape, see service/webhooks.py."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from service.rest.wire.shared import Answer, CursorList
from trainers.spec import Frozen

EventType = Literal["fine_tuning.job.succeeded", "fine_tuning.job.failed", "fine_tuning.job.cancelled"]
EVENTS: list[EventType] = ["fine_tuning.job.succeeded", "fine_tuning.job.failed", "fine_tuning.job.cancelled"]


class CreateWebhookRequest(Frozen):
    """Where to send what."""

    url: str = Field(min_length=9, max_length=2048, description="https address of a public host; redirects are not followed.")
    name: str = Field(default="", max_length=128, description="For people.")
    events: Annotated[list[EventType], Field(min_length=1, max_length=8)] = Field(default=EVENTS, description="All unless given.")


class RotateWebhookRequest(Frozen):
    """How to replace a secret."""

    grace_seconds: int = Field(
        default=86_400, ge=0, le=604_800, description="As long as this the secret before is signed with too, so that receivers can change."
    )


class WebhookObject(Answer):
    """An endpoint that is told of jobs' ends."""

    id: str
    object: Literal["webhook"] = "webhook"
    created_at: int
    name: str
    url: str
    events: list[str]
    secret: str | None = Field(default=None, description="For `client.webhooks.unwrap`; shown when it is made, null ever after.")


class WebhookDeleted(Answer):
    """An endpoint is gone."""

    id: str
    object: Literal["webhook"] = "webhook"
    deleted: Literal[True] = True


class WebhookList(CursorList):
    """Endpoints, newest first."""

    data: list[WebhookObject]


class DeliveryObject(Answer):
    """One event on its way to one endpoint."""

    id: str
    object: Literal["webhook.delivery"] = "webhook.delivery"
    created_at: int
    event_id: str = Field(description="The `webhook-id` header; the same at every attempt.")
    event_type: str
    status: Literal["pending", "delivered", "failed"]
    attempts: int
    attempted_at: int | None
    next_attempt_at: int | None = Field(description="Null once it is delivered or given up.")
    response_status: int | None = Field(description="HTTP status of the last answer; null when there was none.")
    error: str | None


class DeliveryList(CursorList):
    """Deliveries, newest first."""

    data: list[DeliveryObject]
