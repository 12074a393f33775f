"""What every converter does alike: times as whole seconds, and the ends of a page. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol


class HasId(Protocol):
    """Whatever a list is paged by."""

    @property
    def id(self) -> str: ...


def seconds(time: float | None) -> int | None:
    """Seconds since 1970 as OpenAI gives them."""
    return None if time is None else int(time)


def ends(items: Sequence[HasId]) -> dict[Literal["first_id", "last_id"], str | None]:
    """Ids of the first and the last item."""
    return {"first_id": items[0].id if items else None, "last_id": items[-1].id if items else None}
