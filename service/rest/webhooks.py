"""/v1/webhook_endpoints: endpoints that are told when jobs end. The calls are OpenAI's; the log of deliveries is ours."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated

from fastapi import APIRouter, Query, Request

from service.errors import invalid
from service.rest import wire
from service.rest.bodies import read_json, validated
from service.rest.dependencies import After, AppDep, CallerDep, WebhookEndpointId
from service.rest.documents import json_body
from service.rest.values import ends, seconds
from service.webhooks import Delivery, Endpoint

router = APIRouter(prefix="/v1", tags=["Webhooks"])
Limit = Annotated[int, Query(ge=1, le=100, description="Items of one page.")]
ENDPOINTS, ENDPOINT = "/webhook_endpoints", "/webhook_endpoints/{webhook_endpoint_id}"


@router.get("/webhook_event_types", response_model=wire.WebhookEventTypeList)
async def list_webhook_event_types(caller: CallerDep) -> wire.WebhookEventTypeList:
    """What an endpoint can be told of."""
    return wire.WebhookEventTypeList(data=wire.EVENTS)


@router.post(ENDPOINTS, response_model=wire.NewWebhookEndpointObject, openapi_extra=json_body(wire.CreateWebhookEndpointRequest))
async def create_webhook_endpoint(request: Request, app: AppDep, caller: CallerDep) -> wire.NewWebhookEndpointObject:
    """Register an endpoint. The answer holds its secret, which is shown this once."""
    body = validated(wire.CreateWebhookEndpointRequest, await read_json(request))
    return _with_secret(await app.create_webhook(caller, name=body.name, url=body.url, events=_distinct(body.event_types)))


@router.get(ENDPOINTS, response_model=wire.WebhookEndpointList)
async def list_webhook_endpoints(app: AppDep, caller: CallerDep, after: After = None, limit: Limit = 20) -> wire.WebhookEndpointList:
    """The project's endpoints."""
    page = await app.list_webhooks(caller, after=after, limit=limit)
    return wire.WebhookEndpointList(data=[_endpoint(one) for one in page.items], has_more=page.has_more, **ends(page.items))


@router.get(ENDPOINT, response_model=wire.WebhookEndpointObject)
async def get_webhook_endpoint(app: AppDep, caller: CallerDep, webhook_id: WebhookEndpointId) -> wire.WebhookEndpointObject:
    """One endpoint, without its secret."""
    return _endpoint(await app.get_webhook(caller, webhook_id))


@router.post(ENDPOINT, response_model=wire.WebhookEndpointObject, openapi_extra=json_body(wire.UpdateWebhookEndpointRequest))
async def update_webhook_endpoint(
    request: Request, app: AppDep, caller: CallerDep, webhook_id: WebhookEndpointId
) -> wire.WebhookEndpointObject:
    """Change an endpoint; what is not named stays as it is."""
    body = validated(wire.UpdateWebhookEndpointRequest, await read_json(request))
    events = None if body.event_types is None else _distinct(body.event_types)
    return _endpoint(await app.update_webhook(caller, webhook_id, name=body.name, url=body.url, events=events))


@router.delete(ENDPOINT, response_model=wire.WebhookEndpointDeleted)
async def delete_webhook_endpoint(app: AppDep, caller: CallerDep, webhook_id: WebhookEndpointId) -> wire.WebhookEndpointDeleted:
    """Forget an endpoint; what waits for it is given up."""
    await app.delete_webhook(caller, webhook_id)
    return wire.WebhookEndpointDeleted(id=webhook_id)


@router.post(
    f"{ENDPOINT}/rotate_secret",
    response_model=wire.NewWebhookEndpointObject,
    openapi_extra=json_body(wire.RotateWebhookSecretRequest, required=False),
)
async def rotate_webhook_secret(
    request: Request, app: AppDep, caller: CallerDep, webhook_id: WebhookEndpointId
) -> wire.NewWebhookEndpointObject:
    """Give the endpoint a new secret, which is shown this once."""
    body = validated(wire.RotateWebhookSecretRequest, await read_json(request) if await request.body() else {})
    return _with_secret(await app.rotate_webhook(caller, webhook_id, _grace(body)))


@router.post(
    f"{ENDPOINT}/test", response_model=wire.WebhookEndpointTested, openapi_extra=json_body(wire.TestWebhookEndpointRequest, required=False)
)
async def test_webhook_endpoint(
    request: Request, app: AppDep, caller: CallerDep, webhook_id: WebhookEndpointId
) -> wire.WebhookEndpointTested:
    """Send the endpoint a sample event, signed like every other, and tell what it answered; refused where it does not answer."""
    body = validated(wire.TestWebhookEndpointRequest, await read_json(request) if await request.body() else {})
    status = await app.test_webhook(caller, webhook_id, body.event_type)
    return wire.WebhookEndpointTested(webhook_endpoint_id=webhook_id, event_type=body.event_type, status_code=status)


@router.get(f"{ENDPOINT}/deliveries", response_model=wire.DeliveryList)
async def list_deliveries(
    app: AppDep, caller: CallerDep, webhook_id: WebhookEndpointId, after: After = None, limit: Limit = 20
) -> wire.DeliveryList:
    """What was sent to the endpoint in the last 30 days, or waits, with how the last attempt went."""
    page = await app.list_deliveries(caller, webhook_id, after=after, limit=limit)
    return wire.DeliveryList(data=[_delivery(one) for one in page.items], has_more=page.has_more, **ends(page.items))


def _distinct(events: list[wire.EventType]) -> list[str]:
    return list(dict.fromkeys(events))


def _grace(body: wire.RotateWebhookSecretRequest) -> timedelta:
    """How long the secret before is good; said in one way."""
    if body.tunesmith is None:
        return timedelta(days=1 if body.keep_old_secret_active_for_24_hours else 0)
    if body.keep_old_secret_active_for_24_hours:
        raise invalid("Pass 'keep_old_secret_active_for_24_hours' or a grace of seconds, not both.", "tunesmith.grace_seconds")
    return timedelta(seconds=body.tunesmith.grace_seconds)


def _endpoint(endpoint: Endpoint) -> wire.WebhookEndpointObject:
    return wire.WebhookEndpointObject(
        id=endpoint.id,
        created_at=int(endpoint.created_at),
        name=endpoint.name,
        url=endpoint.url,
        event_types=list(endpoint.events),
        signing_secret_hint=f"whsec_…{endpoint.secret[-4:]}",
    )


def _with_secret(endpoint: Endpoint) -> wire.NewWebhookEndpointObject:
    return wire.NewWebhookEndpointObject(**_endpoint(endpoint).model_dump(), signing_secret=endpoint.secret)


def _delivery(one: Delivery) -> wire.DeliveryObject:
    return wire.DeliveryObject(
        id=one.id,
        created_at=int(one.created_at),
        event_id=one.event_id,
        event_type=one.type,
        status=one.status,
        attempts=one.attempts,
        attempted_at=seconds(one.attempted_at),
        next_attempt_at=seconds(one.due_at),
        response_status=one.response_status,
        error=one.error,
    )
