"""Shapes of webhook endpoints, OpenAI's, and of their deliveries, ours. What an endpoint is sent is made in service/webhooks.py."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from service.rest.wire.shared import Answer, CursorList
from trainers.spec import Frozen

EventType = Literal["fine_tuning.job.succeeded", "fine_tuning.job.failed", "fine_tuning.job.cancelled"]
EVENTS: list[EventType] = ["fine_tuning.job.succeeded", "fine_tuning.job.failed", "fine_tuning.job.cancelled"]


Url = Annotated[str, Field(min_length=9, max_length=2048)]
Name = Annotated[str, Field(max_length=128)]
EventTypes = Annotated[list[EventType], Field(min_length=1, max_length=8)]


class CreateWebhookEndpointRequest(Frozen):
    """Where to send what."""

    url: Url = Field(description="https address of a public host; redirects are not followed.")
    name: Name = Field(default="", description="For people.")
    event_types: EventTypes = Field(default=EVENTS, description="All unless given.")


class UpdateWebhookEndpointRequest(Frozen):
    """What to change; what is not named stays."""

    url: Url | None = Field(default=None, description="https address of a public host.")
    name: Name | None = Field(default=None, description="For people.")
    event_types: EventTypes | None = Field(default=None, description="All that shall be sent from now on.")


class Grace(Frozen):
    """Ours: any time, where OpenAI has a day or none."""

    grace_seconds: int = Field(ge=0, le=604_800, description="As long as this the secret before is signed with too.")


class RotateWebhookSecretRequest(Frozen):
    """How to replace a secret."""

    keep_old_secret_active_for_24_hours: bool = Field(
        default=False, description="Sign with the secret before too for a day, so that receivers can change."
    )
    tunesmith: Grace | None = Field(default=None, description="In place of the day.")


class TestWebhookEndpointRequest(Frozen):
    """What to try an endpoint with."""

    event_type: EventType | Literal["webhook.test"] = Field(
        default="webhook.test", description="Of the sample; its `data.id` is the endpoint's, so that it names no job."
    )


class WebhookEndpointObject(Answer):
    """An endpoint that is told of jobs' ends."""

    id: str
    object: Literal["webhook_endpoint"] = "webhook_endpoint"
    created_at: int
    name: str
    url: str
    event_types: list[str]
    signing_secret_hint: str = Field(description="The secret's end, to tell it from others.")


class NewWebhookEndpointObject(WebhookEndpointObject):
    """An endpoint with its secret, which is shown this once."""

    signing_secret: str = Field(description="For `client.webhooks.unwrap`.")


class WebhookEndpointDeleted(Answer):
    """An endpoint is gone."""

    id: str
    object: Literal["webhook_endpoint.deleted"] = "webhook_endpoint.deleted"
    deleted: Literal[True] = True


class WebhookEndpointList(CursorList):
    """Endpoints, newest first."""

    data: list[WebhookEndpointObject]


class WebhookEventTypeList(Answer):
    """Every type of event that an endpoint can ask for."""

    object: Literal["list"] = "list"
    data: list[EventType]


class WebhookEndpointTested(Answer):
    """The endpoint has answered."""

    object: Literal["webhook_endpoint.test"] = "webhook_endpoint.test"
    webhook_endpoint_id: str
    event_type: str
    status_code: int = Field(description="HTTP status of the endpoint's answer.")
    success: Literal[True] = Field(default=True, description="It did answer; `status_code` says whether it took the event.")


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
