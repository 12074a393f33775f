"""Shapes of projects, their API keys and the audit log."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from service.quotas import Quotas
from service.records import Scope
from service.rest.wire.shared import Answer, CursorList
from trainers.spec import Frozen

Name = Annotated[str, Field(min_length=1, max_length=128)]
Scopes = Annotated[list[Scope], Field(min_length=1, max_length=3)]
Life = Annotated[int, Field(ge=1, le=10 * 365 * 86400)]


class ProjectSettings(Frozen):
    """Tunesmith's own part of a project."""

    quotas: Quotas = Field(default=Quotas(), description="Quotas that are not named stay as they are.")


class CreateProjectRequest(Frozen):
    """A new project."""

    name: Name = Field(description="The project's name, for people.")
    tunesmith: ProjectSettings = Field(default=ProjectSettings(), description="What OpenAI has no field for.")


class UpdateProjectRequest(Frozen):
    """What is to change of a project."""

    name: Name | None = Field(default=None, description="Its new name.")
    tunesmith: ProjectSettings = Field(default=ProjectSettings(), description="What OpenAI has no field for.")


class CreateApiKeyRequest(Frozen):
    """A new API key of a project."""

    name: Name = Field(description="What the key is for.")
    scopes: Scopes = Field(
        default=["read", "write"], description="read: every GET; write: everything else of the project; admin: the organization."
    )
    expires_in_seconds: Life | None = Field(default=None, description="After how long it expires; never unless given.")


class UpdateApiKeyRequest(Frozen):
    """What is to change of an API key."""

    name: Name | None = Field(default=None, description="What the key is for.")
    scopes: Scopes | None = Field(default=None, description="The scopes that it has from now on.")
    expires_in_seconds: Life | None = Field(default=None, description="When it expires, counted from this request.")


class RotateApiKeyRequest(Frozen):
    """How a key gets another secret."""

    grace_seconds: int = Field(default=0, ge=0, le=30 * 86400, description="How long the old secret stays good.")


class ProjectUsage(Answer):
    """What a project uses now."""

    running_jobs: int
    queued_jobs: int
    gpu_hours: float = Field(description="Of this calendar month (UTC).")
    stored_bytes: int


class TunesmithProject(Answer):
    """A project's quotas and what it uses of them."""

    organization_id: str
    quotas: Quotas = Field(description="The project's own; null takes the service's default.")
    limits: Quotas = Field(description="What holds: the project's own, else the service's defaults.")
    usage: ProjectUsage | None = Field(description="Null unless the project was asked for by its id.")


class ProjectObject(Answer):
    """A project."""

    id: str
    object: Literal["organization.project"] = "organization.project"
    name: str
    created_at: int = Field(description="Seconds since 1970.")
    archived_at: int | None
    status: Literal["active", "archived"]
    tunesmith: TunesmithProject


class ProjectList(CursorList):
    """Projects, newest first."""

    data: list[ProjectObject]


class KeyOwner(Answer):
    """Keys belong to their project, not to a person."""

    type: Literal["service_account"] = "service_account"


class TunesmithApiKey(Answer):
    """What OpenAI's object has no field for."""

    project_id: str
    scopes: list[Scope]
    previous_expires_at: int | None = Field(description="After a rotation, until when the secret before is good.")


class ApiKeyObject(Answer):
    """An API key, without its secret."""

    id: str
    object: Literal["organization.project.api_key"] = "organization.project.api_key"
    name: str
    redacted_value: str
    created_at: int = Field(description="Seconds since 1970.")
    last_used_at: int | None = Field(description="To the minute; null while it has never been used.")
    expires_at: int | None
    owner: KeyOwner = KeyOwner()
    owner_project_access: Literal["active"] = "active"
    tunesmith: TunesmithApiKey


class NewApiKeyObject(ApiKeyObject):
    """An API key that was just made or rotated."""

    value: str = Field(description="The whole key. It is shown this once and can't be had again.")


class ApiKeyList(CursorList):
    """API keys of a project, newest first."""

    data: list[ApiKeyObject]


class ApiKeyDeleted(Answer):
    """An API key is good for nothing any more."""

    id: str
    object: Literal["organization.project.api_key.deleted"] = "organization.project.api_key.deleted"
    deleted: Literal[True] = True


class AuditKey(Answer):
    """The API key that was used."""

    id: str


class AuditActor(Answer):
    """Who made the change."""

    type: Literal["api_key"] = "api_key"
    api_key: AuditKey


class AuditProject(Answer):
    """The project in which it was made."""

    id: str
    name: str


class TunesmithAuditLog(Answer):
    """What OpenAI's object has no field for."""

    object_id: str = Field(description="Id of what was changed.")
    request_id: str = Field(description="The `x-request-id` of the request that changed it; empty for the operator's command line.")


class AuditLogObject(Answer):
    """One change. A field named as its `type` holds its details, `{"id": …, …}`, as OpenAI has it."""

    model_config = ConfigDict(frozen=True, extra="allow")

    id: str
    object: Literal["organization.audit_log"] = "organization.audit_log"
    type: str = Field(description="E.g. project.created, api_key.deleted, job.created.")
    effective_at: int = Field(description="Seconds since 1970.")
    actor: AuditActor | None = Field(description="Null for the operator's command line.")
    project: AuditProject | None
    tunesmith: TunesmithAuditLog

    __pydantic_extra__: dict[str, dict[str, Any]]  # pyright: ignore[reportIncompatibleVariableOverride]


class AuditLogList(CursorList):
    """The organization's audit log, newest first."""

    data: list[AuditLogObject]
