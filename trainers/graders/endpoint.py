"""The OpenAI-compatible endpoint that model graders ask: chat completions and embeddings over HTTP.

Knows no grader and no score. Whoever configures graders opens one and closes it at the end.
"""

from __future__ import annotations

import json
from typing import Any

import httpx

from trainers.graders.outcome import sendable

MAX_REPLY_BYTES = 4 * 2**20
MAX_DETAILS = 300
CONNECT_SECONDS = 10.0


class EndpointFailed(Exception):
    """The endpoint gave no answer that can be used; says why, without a secret."""


class Endpoint:
    """One endpoint, the models that graders may name there, and the one that makes embeddings."""

    def __init__(self, base_url: str, api_key: str | None, models: tuple[str, ...], embedding_model: str | None) -> None:
        self.models, self.embedding_model = models, embedding_model
        headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
        # How long an answer may take is the caller's to say; redirects are not followed, so the key stays with this host.
        timeout = httpx.Timeout(None, connect=CONNECT_SECONDS)
        self._client = httpx.AsyncClient(base_url=f"{base_url.rstrip('/')}/", headers=headers, timeout=timeout, follow_redirects=False)

    async def close(self) -> None:
        """Give up the connections."""
        await self._client.aclose()

    async def chat(self, body: dict[str, Any]) -> dict[str, Any]:
        """The answer to a chat completion. Raises EndpointFailed."""
        return await self._post("chat/completions", body)

    async def embed(self, texts: list[str]) -> dict[str, Any]:
        """The answer with an embedding for each text. Raises EndpointFailed."""
        return await self._post("embeddings", {"model": self.embedding_model, "input": texts, "encoding_format": "float"})

    async def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        try:
            async with self._client.stream("POST", path, json=body) as response:
                content = await _content(response)
        except httpx.HTTPError as error:
            raise EndpointFailed(f"the endpoint can't be reached: {type(error).__name__}") from error
        answer = _read(content)
        if response.status_code != 200:
            raise EndpointFailed(f"the endpoint answered {response.status_code}{_reason(response.status_code, answer)}")
        if not isinstance(answer, dict):
            raise EndpointFailed("the endpoint answered no JSON object")
        return answer


async def _content(response: httpx.Response) -> bytes:
    content = bytearray()
    async for piece in response.aiter_bytes(2**16):
        content += piece
        if len(content) > MAX_REPLY_BYTES:
            raise EndpointFailed(f"the endpoint answered more than {MAX_REPLY_BYTES:,} bytes")
    return bytes(content)


def _read(content: bytes) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return None


def _reason(status: int, answer: Any) -> str:
    """The endpoint's own words, but for those on keys."""
    error = answer.get("error") if isinstance(answer, dict) else None
    message = error.get("message") if isinstance(error, dict) else None
    return f": {sendable(message[:MAX_DETAILS])}" if isinstance(message, str) and status not in (401, 403) else ""
