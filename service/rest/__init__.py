"""REST: OpenAI's wire format over the application layer. Translates, and decides nothing.

`create_rest` is called by the gateway; each resource has its own module.
"""

from __future__ import annotations

from fastapi import FastAPI
from starlette.middleware import Middleware

from service import spool
from service.app import App
from service.metrics import HttpMetrics, Metrics
from service.rest import (
    api_keys,
    artifacts,
    audit_logs,
    documents,
    errors,
    estimates,
    files,
    graders,
    health,
    jobs,
    models,
    permissions,
    projects,
    streams,
    uploads,
    webhooks,
)
from service.rest.limits import SERVER_OPTIONS, Limits
from service.rest.multipart import FRAMING_BYTES
from service.rest.rates import RateHeaders
from service.rest.requests import Requests
from service.settings import Settings

__all__ = ["SERVER_OPTIONS", "create_rest"]
VERSION = "0.1.0"


def create_rest(app: App, metrics: Metrics, settings: Settings) -> FastAPI:
    """The ASGI application that serves `app`. Run it with SERVER_OPTIONS."""
    api = FastAPI(
        title="Tunesmith",
        version=VERSION,
        description=documents.DESCRIPTION,
        responses=documents.ERRORS,
        redirect_slashes=False,
        docs_url=None,  # these pages of FastAPI's load their scripts from elsewhere; /docs is ours
        redoc_url=None,
        middleware=[
            Middleware(Requests),
            Middleware(HttpMetrics, metrics=metrics),
            Middleware(RateHeaders),
            Middleware(
                Limits,
                max_body_bytes=settings.max_body_bytes,
                max_upload_bytes=settings.max_upload_bytes + FRAMING_BYTES,
                max_part_bytes=settings.max_part_bytes + FRAMING_BYTES,
            ),
        ],
    )
    api.state.app, api.state.metrics, api.state.settings = app, metrics, settings
    errors.install(api)
    for resource in (
        files,
        uploads,
        artifacts,
        estimates,
        jobs,
        streams,
        permissions,
        graders,
        models,
        webhooks,
        projects,
        api_keys,
        audit_logs,
        health,
    ):
        api.include_router(resource.router)
    api.openapi = lambda: documents.document(api)
    spool.sweep(settings.spool_dir)
    return api
