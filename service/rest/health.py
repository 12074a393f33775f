"""/healthz, /readyz and /metrics: for probes and scrapers, not for clients."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse

from service.metrics import CONTENT_TYPE
from service.rest import docs_page, wire
from service.rest.dependencies import AppDep, Credentials, MetricsDep, SettingsDep, get_caller
from service.rest.errors import SERVER

EXPOSITION: dict[int | str, dict[str, Any]] = {200: {"content": {"text/plain": {}}, "description": "Prometheus' text format."}}
router = APIRouter(tags=["Operation"])


@router.get("/healthz", response_model=wire.Health)
async def healthz() -> wire.Health:
    """The process lives. Needs no key."""
    return wire.Health()


@router.get("/readyz", response_model=wire.Readiness, responses={503: {"model": wire.Readiness, "description": "A part does not answer."}})
async def readyz(app: AppDep, response: Response) -> wire.Readiness:
    """Whether database, object store and runtime answer. Needs no key."""
    parts = await app.ready()
    away = [name for name, state in parts.items() if state != "ok"]
    if not away:
        return wire.Readiness(status="ok", parts=parts)
    response.status_code = 503
    response.headers["retry-after"] = "2"
    error = wire.ErrorObject(message=f"Not ready: {', '.join(away)}.", type=SERVER, param=None, code="unavailable")
    return wire.Readiness(status="unavailable", parts=parts, error=error)


@router.get("/docs", include_in_schema=False)
async def docs(request: Request) -> HTMLResponse:
    """The OpenAPI description for a person. Needs no key."""
    return HTMLResponse(docs_page.page(request.app.openapi()))


@router.get("/metrics", response_class=Response, responses=EXPOSITION)
async def metrics(request: Request, app: AppDep, metrics: MetricsDep, settings: SettingsDep, credentials: Credentials) -> Response:
    """Every metric. Needs a key unless the setting `metrics_public` says otherwise."""
    if not settings.metrics_public:
        await get_caller(request, app, credentials)
    return Response(metrics.exposition(), media_type=CONTENT_TYPE)
