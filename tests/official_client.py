"""The official client, synchronous and asynchronous, driven by the same lines: every call is awaited, and noted under its name.

Scenarios in tests/contract/test_official_client.py are written against `Driven`, so that each is written once for both forms.
`methods` says by introspection what the installed client can be asked for.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from openai._resource import AsyncAPIResource, SyncAPIResource

RESOURCES = (SyncAPIResource, AsyncAPIResource)


@dataclass(frozen=True)
class Driven:
    """A client, or a resource of one; `called` has the methods that were called and answered as their types say."""

    target: Any
    path: str = ""
    called: set[str] = field(default_factory=set)

    def __getattr__(self, name: str) -> Any:
        found, path = getattr(self.target, name), f"{self.path}.{name}".lstrip(".")
        return Driven(found, path, self.called) if isinstance(found, RESOURCES) else partial(self._call, found, path)

    async def _call(self, method: Any, path: str, /, *args: Any, **kwargs: Any) -> Any:
        answer = method(*args, **kwargs)
        if inspect.isawaitable(answer):
            answer = await answer
        self.called.add(path)
        return answer


async def everything(page: Any) -> list[Any]:
    """The items of this page and of all behind it, asked for by the client itself."""
    return [item async for item in page] if hasattr(page, "__aiter__") else list(page)


def methods(target: Any, path: str) -> Iterator[str]:
    """Dotted names of all public methods of a resource and of those below it, but for the views of the same (`with_raw_response`)."""
    for name in dir(type(target)):
        if name.startswith(("_", "with_")):
            continue
        found = getattr(target, name)
        if isinstance(found, RESOURCES):
            yield from methods(found, f"{path}.{name}")
        elif callable(found):
            yield f"{path}.{name}"
