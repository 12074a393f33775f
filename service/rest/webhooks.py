"""/v1/webhooks: endpoints that are told when jobs end. Ours; at OpenAI they are made on a web page."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated

from fastapi import APIRouter, Query, Request

from service.rest import wire
from service.rest.bodies import read_json, validated
from service.rest.dependencies import After, AppDep, CallerDep, WebhookId
from service.rest.documents import json_body
from service.rest.values import ends, seconds
from service.webhooks import Delivery, Endpoint

router = APIRouter(prefix="/v1/webhooks", tags=["Webhooks"])
Limit = Annotated[int, Query(ge=1, le=100, description="Items of one page.")]


@router.post("", response_model=wire.WebhookObject, openapi_extra=json_body(wire.CreateWebhookRequest))
async def create_webhook(request: Request, app: AppDep, caller: CallerDep) -> wire.WebhookObject:
    """Register an endpoint. The answer holds its secret, which is shown this once."""
    body = validated(wire.CreateWebhookRequest, await read_json(request))
    endpoint = await app.create_webhook(caller, name=body.name, url=body.url, events=list(dict.fromkeys(body.events)))
    return _webhook(endpoint, secret=True)


@router.get("", response_model=wire.WebhookList)
async def list_webhooks(app: AppDep, caller: CallerDep, after: After = None, limit: Limit = 20) -> wire.WebhookList:
    """The project's endpoints."""
    page = await app.list_webhooks(caller, after=after, limit=limit)
    return wire.WebhookList(data=[_webhook(one) for one in page.items], has_more=page.has_more, **ends(page.items))


@router.get("/{webhook_id}", response_model=wire.WebhookObject)
async def get_webhook(app: AppDep, caller: CallerDep, webhook_id: WebhookId) -> wire.WebhookObject:
    """One endpoint, without its secret."""
    return _webhook(await app.get_webhook(caller, webhook_id))


@router.delete("/{webhook_id}", response_model=wire.WebhookDeleted)
async def delete_webhook(app: AppDep, caller: CallerDep, webhook_id: WebhookId) -> wire.WebhookDeleted:
    """Forget an endpoint; what waits for it is given up."""
    await app.delete_webhook(caller, webhook_id)
    return wire.WebhookDeleted(id=webhook_id)


@router.post("/{webhook_id}/rotate", response_model=wire.WebhookObject, openapi_extra=json_body(wire.RotateWebhookRequest))
async def rotate_webhook(request: Request, app: AppDep, caller: CallerDep, webhook_id: WebhookId) -> wire.WebhookObject:
    """Give the endpoint a new secret, which is shown this once. Until the grace is over, deliveries are signed with both."""
    body = validated(wire.RotateWebhookRequest, await read_json(request))
    return _webhook(await app.rotate_webhook(caller, webhook_id, timedelta(seconds=body.grace_seconds)), secret=True)


@router.post("/{webhook_id}/test", response_model=wire.DeliveryObject)
async def test_webhook(app: AppDep, caller: CallerDep, webhook_id: WebhookId) -> wire.DeliveryObject:
    """Send the endpoint an event of type `webhook.test`, signed like every other."""
    return _delivery(await app.test_webhook(caller, webhook_id))


@router.get("/{webhook_id}/deliveries", response_model=wire.DeliveryList)
async def list_deliveries(
    app: AppDep, caller: CallerDep, webhook_id: WebhookId, after: After = None, limit: Limit = 20
) -> wire.DeliveryList:
    """What was sent to the endpoint in the last 30 days, or waits, with how the last attempt went."""
    page = await app.list_deliveries(caller, webhook_id, after=after, limit=limit)
    return wire.DeliveryList(data=[_delivery(one) for one in page.items], has_more=page.has_more, **ends(page.items))


def _webhook(endpoint: Endpoint, *, secret: bool = False) -> wire.WebhookObject:
    return wire.WebhookObject(
        id=endpoint.id,
        created_at=int(endpoint.created_at),
        name=endpoint.name,
        url=endpoint.url,
        events=list(endpoint.events),
        secret=endpoint.secret if secret else None,
    )


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
