"""Shapes of permissions on tuned models and checkpoints."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from service.rest.wire.shared import Answer, CursorList
from trainers.spec import Frozen


class CreatePermissionsRequest(Frozen):
    """Who may use the model."""

    project_ids: list[Annotated[str, Field(min_length=1, max_length=128)]] = Field(
        min_length=1, max_length=100, description="Projects of the same organization."
    )


class PermissionObject(Answer):
    """Another project may use a model."""

    id: str
    object: Literal["checkpoint.permission"] = "checkpoint.permission"
    created_at: int
    project_id: str


class PermissionDeleted(Answer):
    """A permission is gone."""

    id: str
    object: Literal["checkpoint.permission"] = "checkpoint.permission"
    deleted: Literal[True] = True


class PermissionList(CursorList):
    """Permissions of one model."""

    data: list[PermissionObject]
