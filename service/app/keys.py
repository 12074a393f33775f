"""API keys of the projects of the caller's organization: create, list, look up, change, rotate, revoke."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

from service.app.context import available, found, require
from service.app.projects import ProjectUses
from service.errors import invalid
from service.records import ApiKey, Caller, Page, Scope
from service.store import Transaction
from service.tenancy import new_key


class KeyUses(ProjectUses):
    """What an admin key can do with keys. A whole key is given out once, by `create_key` and `rotate_key`."""

    async def create_key(
        self, caller: Caller, project_id: str, *, name: str, scopes: frozenset[Scope], life: timedelta | None
    ) -> tuple[ApiKey, str]:
        """A new key, and the whole of it; it expires after `life`."""
        require(caller, "admin")
        key_id, value, digest = new_key()
        details = {"data": {"name": name, "scopes": sorted(scopes), "expires_in_seconds": life and int(life.total_seconds())}}
        async with available(), self.store.begin() as tx:
            await self._usable(tx, caller, project_id)
            await tx.insert_key(key_id, project_id, name, digest, scopes, tx.time + life.total_seconds() if life else None)
            await tx.audit(caller, "api_key.created", key_id, details, project_id=project_id)
            return await self._the_key(tx, project_id, key_id), value

    async def list_keys(self, caller: Caller, project_id: str, *, after: str | None, limit: int) -> Page[ApiKey]:
        """The project's keys, newest first; not those that were revoked."""
        require(caller, "admin")
        async with self.reading() as tx:
            await self.the_project(tx, caller, project_id)
            return await tx.list_keys(project_id, after=after, limit=limit)

    async def get_key(self, caller: Caller, project_id: str, key_id: str) -> ApiKey:
        """One key."""
        require(caller, "admin")
        async with self.reading() as tx:
            await self.the_project(tx, caller, project_id)
            return await self._the_key(tx, project_id, key_id)

    async def update_key(
        self,
        caller: Caller,
        project_id: str,
        key_id: str,
        *,
        name: str | None = None,
        scopes: frozenset[Scope] | None = None,
        life: timedelta | None = None,
    ) -> ApiKey:
        """Another name, other scopes, or an expiry from now on; None leaves each as it is."""
        require(caller, "admin")
        if key_id == caller.key_id and scopes is not None and "admin" not in scopes:
            raise invalid("A key can't take the scope 'admin' from itself; use another admin key.", "scopes")
        given = {"name": name, "scopes": scopes and sorted(scopes), "expires_in_seconds": life and int(life.total_seconds())}
        async with available(), self.store.begin() as tx:
            key = await self._changeable(tx, caller, project_id, key_id)
            expires_at = tx.time + life.total_seconds() if life else key.expires_at
            changed = replace(key, name=name or key.name, scopes=scopes or key.scopes, expires_at=expires_at)
            await tx.update_key(changed)
            changes = {field: value for field, value in given.items() if value is not None}
            await tx.audit(caller, "api_key.updated", key_id, {"changes_requested": changes}, project_id=project_id)
            return changed

    async def rotate_key(self, caller: Caller, project_id: str, key_id: str, *, grace: timedelta) -> tuple[ApiKey, str]:
        """Another secret under the same id, and the whole new key; the old secret is good while `grace` lasts."""
        require(caller, "admin")
        _, value, digest = new_key(key_id)
        async with available(), self.store.begin() as tx:
            await self._changeable(tx, caller, project_id, key_id)
            await tx.rotate_key(key_id, digest, tx.time + grace.total_seconds())
            details = {"grace_seconds": int(grace.total_seconds())}
            await tx.audit(caller, "api_key.rotated", key_id, details, project_id=project_id)
            return await self._the_key(tx, project_id, key_id), value

    async def revoke_key(self, caller: Caller, project_id: str, key_id: str) -> None:
        """The key is refused from the next request on. A key can't revoke itself, so an organization keeps one that administers it."""
        require(caller, "admin")
        if key_id == caller.key_id:
            raise invalid("A key can't revoke itself; use another admin key, or rotate this one.", "api_key_id")
        async with available(), self.store.begin() as tx:
            await self.the_project(tx, caller, project_id)
            await self._the_key(tx, project_id, key_id, lock=True)
            await tx.revoke_key(key_id)
            await tx.audit(caller, "api_key.deleted", key_id, project_id=project_id)

    async def _changeable(self, tx: Transaction, caller: Caller, project_id: str, key_id: str) -> ApiKey:
        await self._usable(tx, caller, project_id)
        key = await self._the_key(tx, project_id, key_id, lock=True)
        if key.expires_at is not None and key.expires_at <= tx.time:
            raise invalid("The key has expired; create another.", "api_key_id")
        return key

    async def _the_key(self, tx: Transaction, project_id: str, key_id: str, *, lock: bool = False) -> ApiKey:
        return found(await tx.api_key(project_id, key_id, lock=lock), "API key", key_id, param="api_key_id")
