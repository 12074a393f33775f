"""Projects and API keys: making, reading and checking them.

A key is `ts_<id>_<secret>_<check>`: the id finds its row, the secret is 256 random bits of which only
the SHA-256 is stored, the check lets a typing error be told from a revoked key without the database.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
import zlib
from pathlib import Path

from service.errors import ErrorCode, TunesmithError
from service.records import Caller
from service.store import Store, Transaction

_FORM = re.compile(r"ts_([0-9a-f]{12})_([A-Za-z0-9\-]{16,64})_([0-9a-f]{8})")


def _check(body: str) -> str:
    return f"{zlib.crc32(body.encode()):08x}"


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def new_key() -> tuple[str, str, str]:
    """(key id, whole key, SHA-256 of its secret)."""
    key_id, secret = secrets.token_hex(6), secrets.token_hex(32)
    body = f"ts_{key_id}_{secret}"
    return key_id, f"{body}_{_check(body)}", _digest(secret)


def unauthenticated(message: str) -> TunesmithError:
    """No, or no valid, key."""
    return TunesmithError(ErrorCode.UNAUTHENTICATED, message)


async def authenticate(store: Store, key: str) -> Caller:
    """Who the key belongs to. Raises TunesmithError UNAUTHENTICATED for anything but a live key."""
    match = _FORM.fullmatch(key)
    if match is None or _check(key.rpartition("_")[0]) != match[3]:
        raise unauthenticated("Incorrect API key provided. A key looks like ts_…; `tunesmith status` says where yours is kept.")
    async with store.read() as tx:
        row = await tx.key(match[1])
    if row is None or not hmac.compare_digest(row["secret_sha256"], _digest(match[2])):
        raise unauthenticated("Incorrect API key provided: it is unknown, revoked or expired.")
    return Caller(row["id"], row["project_id"], row["organization_id"], frozenset(row["scopes"]))


async def first_key(store: Store, path: Path) -> None:
    """Make the first project and its key, kept at `path` for its owner alone; once."""
    async with store.begin() as tx:
        if await tx.first_project() is not None and path.exists():
            return
        await _issue(tx, path)


async def _issue(tx: Transaction, path: Path) -> None:
    project_id = await tx.first_project()
    if project_id is None:
        project_id = f"proj_{secrets.token_hex(12)}"
        await tx.insert_project(project_id, f"org-{secrets.token_hex(6)}", "default")
    key_id, key, digest = new_key()
    await tx.insert_key(key_id, project_id, "first key", digest, ["read", "write", "admin"])
    # The file comes before the commit: a key that nobody can read would be worse than one nobody knows.
    partial = path.with_suffix(".partial")
    partial.unlink(missing_ok=True)
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(key + "\n")
        file.flush()
        os.fsync(file.fileno())
    partial.rename(path)
