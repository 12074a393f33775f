"""Shapes of the answers for probes."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from service.rest.wire.shared import Answer, ErrorObject


class Health(Answer):
    """The process lives."""

    status: Literal["ok"] = "ok"


class Readiness(Answer):
    """Whether the parts behind this process answer."""

    status: Literal["ok", "unavailable"]
    parts: dict[str, str] = Field(description='Each part and "ok", or what is wrong with it.')
    error: ErrorObject | None = Field(default=None, description="Null when ready.")
