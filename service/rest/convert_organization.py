"""From projects, API keys and audit logs to their wire shapes. Pure."""

from __future__ import annotations

from typing import Any

from service.quotas import Quotas, Usage
from service.records import ApiKey, AuditLog, Page, Project
from service.rest import wire
from service.rest.values import ends, seconds


def project_object(project: Project, limits: Quotas, usage: Usage | None = None) -> wire.ProjectObject:
    """A project; `limits` are the quotas that hold for it."""
    used = None
    if usage is not None:
        used = wire.ProjectUsage(
            running_jobs=usage.running_jobs, queued_jobs=usage.queued_jobs, gpu_hours=usage.gpu_hours, stored_bytes=usage.stored_bytes
        )
    return wire.ProjectObject(
        id=project.id,
        name=project.name,
        created_at=int(project.created_at),
        archived_at=seconds(project.archived_at),
        status="active" if project.archived_at is None else "archived",
        tunesmith=wire.TunesmithProject(organization_id=project.organization_id, quotas=project.quotas, limits=limits, usage=used),
    )


def api_key_object(key: ApiKey) -> wire.ApiKeyObject:
    """A key's facts."""
    return wire.ApiKeyObject(**_key_fields(key))


def new_api_key_object(key: ApiKey, value: str) -> wire.NewApiKeyObject:
    """A key's facts and the whole of it."""
    return wire.NewApiKeyObject(**_key_fields(key), value=value)


def _key_fields(key: ApiKey) -> dict[str, Any]:
    previous = seconds(key.previous_expires_at)
    return {
        "id": key.id,
        "name": key.name,
        "redacted_value": f"ts_{key.id}_****",
        "created_at": int(key.created_at),
        "last_used_at": seconds(key.last_used_at),
        "expires_at": seconds(key.expires_at),
        "tunesmith": wire.TunesmithApiKey(project_id=key.project_id, scopes=sorted(key.scopes), previous_expires_at=previous),
    }


def api_key_list(page: Page[ApiKey]) -> wire.ApiKeyList:
    """A page of keys."""
    return wire.ApiKeyList(data=[api_key_object(key) for key in page.items], has_more=page.has_more, **ends(page.items))


def audit_log_object(entry: AuditLog) -> wire.AuditLogObject:
    """One change, with its details under the name of its type."""
    details: dict[str, Any] = {entry.type: {"id": entry.object_id, **entry.details}}
    project = wire.AuditProject(id=entry.project_id, name=entry.project_name or "") if entry.project_id else None
    return wire.AuditLogObject(
        id=entry.id,
        type=entry.type,
        effective_at=int(entry.effective_at),
        actor=wire.AuditActor(api_key=wire.AuditKey(id=entry.key_id)) if entry.key_id else None,
        project=project,
        tunesmith=wire.TunesmithAuditLog(object_id=entry.object_id, request_id=entry.request_id),
        **details,
    )


def audit_log_list(page: Page[AuditLog]) -> wire.AuditLogList:
    """A page of the audit log."""
    return wire.AuditLogList(data=[audit_log_object(entry) for entry in page.items], has_more=page.has_more, **ends(page.items))
