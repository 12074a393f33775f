"""Organizations and API keys: making, reading and checking them.

A key is `ts_<id>_<secret>_<check>`: the id finds its row, the secret is 256 random bits of which only
the SHA-256 is stored, the check lets a typing error be told from a revoked key without the database.
Nothing is cached, so a revoked key is refused at the next request. `Admission` calls `authenticate`.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from service.errors import ErrorCode, TunesmithError, not_found
from service.quotas import Quotas
from service.records import Caller, Scope
from service.store import Store, Transaction

_FORM = re.compile(r"ts_([0-9a-f]{12})_([A-Za-z0-9\-]{16,64})_([0-9a-f]{8})")
ALL_SCOPES: frozenset[Scope] = frozenset({"read", "write", "admin"})


@dataclass(frozen=True, slots=True)
class NewKey:
    """A key that was just made. `value` is the whole of it and is not kept anywhere."""

    organization_id: str
    project_id: str
    id: str
    value: str


class WrongKey(TunesmithError):
    """A well-formed key that is good for nothing. `holder` is whose it is or was, None when the id is unknown."""

    def __init__(self, holder: Caller | None) -> None:
        message = "Incorrect API key provided: it is unknown, revoked or expired, or its project is archived."
        super().__init__(ErrorCode.UNAUTHENTICATED, message)
        self.holder = holder


def _check(body: str) -> str:
    return f"{zlib.crc32(body.encode()):08x}"


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def new_key(key_id: str | None = None) -> tuple[str, str, str]:
    """(key id, whole key, SHA-256 of its secret); another secret for a key that has its id already."""
    key_id, secret = key_id or secrets.token_hex(6), secrets.token_hex(32)
    body = f"ts_{key_id}_{secret}"
    return key_id, f"{body}_{_check(body)}", _digest(secret)


def unauthenticated(message: str) -> TunesmithError:
    """No, or no valid, key."""
    return TunesmithError(ErrorCode.UNAUTHENTICATED, message)


async def authenticate(store: Store, key: str, request_id: str = "") -> Caller:
    """Who the key belongs to. Raises TunesmithError UNAUTHENTICATED for anything but a live key, WrongKey for what might have been one."""
    match = _FORM.fullmatch(key)
    if match is None or _check(key.rpartition("_")[0]) != match[3]:
        raise unauthenticated("Incorrect API key provided. A key looks like ts_…; `tunesmith status` says where yours is kept.")
    async with store.read() as tx:
        row = await tx.key(match[1])
    if row is None:
        raise WrongKey(None)
    caller = Caller(
        key_id=row["id"],
        project_id=row["project_id"],
        organization_id=row["organization_id"],
        scopes=frozenset(row["scopes"]),
        request_id=request_id,
        quotas=Quotas.stored(row["quotas"]),
    )
    if not is_live(row, tx.time) or not _fits(row, _digest(match[2]), tx.time):
        raise WrongKey(caller)
    return caller


def is_live(row: Any, now: float) -> bool:
    """Whether a key, as `tx.key` reads it, is good now: neither revoked nor expired, and its project not archived."""
    expired = row["expires_at"] is not None and row["expires_at"] <= now
    return row["revoked_at"] is None and row["archived_at"] is None and not expired


def _fits(row: Any, digest: str, now: float) -> bool:
    """Whether it is the key's secret, or the one before while its grace lasts."""
    previous = row["previous_sha256"] if (row["previous_expires_at"] or 0.0) > now else None
    fits = hmac.compare_digest(row["secret_sha256"], digest)
    return (previous is not None and hmac.compare_digest(previous, digest)) or fits


def operator(organization_id: str, project_id: str = "") -> Caller:
    """Whoever has the data directory, to the audit log: no key, every right in the organization."""
    return Caller("", project_id, organization_id, ALL_SCOPES)


async def create_organization(store: Store, name: str) -> NewKey:
    """A new organization with its first project and an admin key in it."""
    async with store.begin() as tx:
        return await _found(tx, name)


async def new_admin_key(store: Store, organization_id: str) -> NewKey:
    """Another admin key for an organization whose own are lost. Raises NOT_FOUND where no project is left to hold it."""
    async with store.begin() as tx:
        project = await tx.first_project(organization_id)
        if project is None:
            raise not_found("organization", organization_id)
        return await _admin_key(tx, organization_id, project.id, "made by the operator")


async def first_key(store: Store, path: Path) -> None:
    """Make the first project and its key, kept at `path` for its owner alone; once."""
    async with store.begin() as tx:
        project = await tx.first_project()
        if project is not None and path.exists():
            return
        made = await (_admin_key(tx, project.organization_id, project.id, "first key") if project else _found(tx, "default"))
        # The file comes before the commit: a key that nobody can read would be worse than one nobody knows.
        _write(path, made.value)


async def _found(tx: Transaction, name: str) -> NewKey:
    organization_id, project_id = f"org-{secrets.token_hex(6)}", f"proj_{secrets.token_hex(12)}"
    await tx.insert_organization(organization_id, name)
    await tx.insert_project(project_id, organization_id, "default")
    await tx.audit(operator(organization_id), "organization.created", organization_id, {"name": name})
    await tx.audit(operator(organization_id, project_id), "project.created", project_id, {"data": {"name": "default"}})
    return await _admin_key(tx, organization_id, project_id, "first key")


async def _admin_key(tx: Transaction, organization_id: str, project_id: str, name: str) -> NewKey:
    key_id, key, digest = new_key()
    await tx.insert_key(key_id, project_id, name, digest, ALL_SCOPES)
    details = {"data": {"name": name, "scopes": sorted(ALL_SCOPES)}}
    await tx.audit(operator(organization_id, project_id), "api_key.created", key_id, details)
    return NewKey(organization_id, project_id, key_id, key)


def _write(path: Path, key: str) -> None:
    partial = path.with_suffix(".partial")
    partial.unlink(missing_ok=True)
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(key + "\n")
        file.flush()
        os.fsync(file.fileno())
    partial.rename(path)
