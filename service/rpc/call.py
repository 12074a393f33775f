"""What a servicer is told of the call that it answers, beside the request."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar

import grpc.aio

from service.records import Caller

T = TypeVar("T")
Context = grpc.aio.ServicerContext[Any, Any]
Reader = Callable[[bytes], Any]
"""Parses one message of a method's request."""


@dataclass(frozen=True, slots=True)
class Call:
    """One call, past the interceptor's door."""

    context: Context
    request_id: str
    bearer: str = field(default="", repr=False)
    """The run's token, for Runs."""
    known_caller: Caller | None = None

    @property
    def caller(self) -> Caller:
        """Who asks; only the services that need a key have one."""
        assert self.known_caller is not None
        return self.known_caller

    @property
    def retried(self) -> bool:
        """Whether the client's gRPC library says that it sends this for a second time."""
        return metadata_of(self.context).get("grpc-previous-rpc-attempts", "0") != "0"


def metadata_of(context: Context) -> dict[str, str]:
    """The text entries of the metadata that the client sent."""
    return {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}


async def whole(work: Coroutine[Any, Any, T]) -> T:
    """What `work` gives. Once begun it is carried to its end, as over HTTP: a client that leaves does not cut a transaction."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task})
        raise
