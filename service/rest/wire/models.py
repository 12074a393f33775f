"""Shapes of models."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from service.rest.wire.shared import Answer


class TunesmithModel(Answer):
    """Where a model comes from."""

    job_id: str | None = Field(description="The job that made it; null for a base model.")
    base_model: str | None
    revision: str | None = Field(description="The pinned revision of the base model.")
    licence: str | None


class ModelObject(Answer):
    """A base model, a tuned model or checkpoint of the project, or one that another project shares."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str
    tunesmith: TunesmithModel


class ModelDeleted(Answer):
    """A tuned model is gone."""

    id: str
    object: Literal["model"] = "model"
    deleted: Literal[True] = True


class ModelList(Answer):
    """Every base model that is ready, the project's tuned models, and those shared with it."""

    object: Literal["list"] = "list"
    data: list[ModelObject]
