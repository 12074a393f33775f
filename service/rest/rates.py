"""OpenAI's `x-ratelimit-…-requests` headers, on every answer to a request whose key was admitted, refusals too.

A plain ASGI middleware: answers that stream, and errors, pass through no code of FastAPI that could add a header.
"""

from __future__ import annotations

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.records import Rate


class RateHeaders:
    """Adds what `dependencies.get_caller` left in the request's state; nothing where the project has no rate."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: Message) -> None:
            rate: Rate | None = scope.get("state", {}).get("rate")
            if message["type"] == "http.response.start" and rate is not None:
                MutableHeaders(scope=message).update(rate_headers(rate))
            await send(message)

        await self._app(scope, receive, with_headers)


def rate_headers(rate: Rate) -> dict[str, str]:
    """The three headers; the reset is a duration such as `59.213s`."""
    return {
        "x-ratelimit-limit-requests": str(rate.limit),
        "x-ratelimit-remaining-requests": str(rate.remaining),
        "x-ratelimit-reset-requests": f"{rate.reset:.3f}s",
    }
