"""Shapes of artifacts."""

from __future__ import annotations

from pydantic import Field

from service.rest.wire.shared import Answer, List


class ArtifactObject(Answer):
    """A published file of a succeeded job."""

    name: str = Field(description="Path below the job, e.g. adapter/adapter_model.safetensors.")
    bytes: int
    sha256: str


class ArtifactList(List):
    """Every artifact of a job."""

    data: list[ArtifactObject]
