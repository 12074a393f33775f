"""Projects of the caller's organization: create, list, look up, change, archive."""

from __future__ import annotations

import secrets
from dataclasses import replace
from typing import Any

from service.app.context import Context, available, found, require
from service.errors import invalid
from service.jobs import ON_RAY
from service.quotas import WAITING, Quotas, Usage
from service.records import Caller, Page, Project
from service.store import Transaction


class ProjectUses(Context):
    """What an admin key can do with projects."""

    async def create_project(self, caller: Caller, name: str, quotas: Quotas) -> Project:
        """A new project, without keys."""
        require(caller, "admin")
        project_id = f"proj_{secrets.token_hex(12)}"
        details = {"data": {"name": name, "title": name, "quotas": quotas.model_dump(exclude_none=True)}}
        async with available(), self.store.begin() as tx:
            await tx.insert_project(project_id, caller.organization_id, name, quotas)
            await tx.audit(caller, "project.created", project_id, details, project_id=project_id)
            return await self.the_project(tx, caller, project_id)

    async def list_projects(self, caller: Caller, *, after: str | None, limit: int, archived: bool) -> Page[Project]:
        """The organization's projects, newest first; `archived` takes those in too."""
        require(caller, "admin")
        async with self.reading() as tx:
            return await tx.list_projects(caller.organization_id, after=after, limit=limit, archived=archived)

    async def get_project(self, caller: Caller, project_id: str) -> tuple[Project, Usage]:
        """One project, and what it uses."""
        require(caller, "admin")
        async with self.reading() as tx:
            return await self.the_project(tx, caller, project_id), await tx.usage(project_id)

    async def update_project(self, caller: Caller, project_id: str, *, name: str | None, quotas: dict[str, Any]) -> Project:
        """Another name unless it is None, and other numbers for the named quotas; None gives one back to the service's default."""
        require(caller, "admin")
        async with available(), self.store.begin() as tx:
            project = await self._usable(tx, caller, project_id)
            changed = replace(project, name=name or project.name, quotas=project.quotas.changed(quotas))
            await tx.update_project(changed)
            changes = ({"title": name, "name": name} if name else {}) | ({"quotas": quotas} if quotas else {})
            await tx.audit(caller, "project.updated", project_id, {"changes_requested": changes}, project_id=project_id)
            return changed

    async def archive_project(self, caller: Caller, project_id: str) -> Project:
        """Its keys are refused from now on; what it holds stays. Needs a project without jobs that could still run."""
        require(caller, "admin")
        if project_id == caller.project_id:
            raise invalid("This is the project of the key that you use; archive it with an admin key of another project.", "project_id")
        async with available(), self.store.begin() as tx:
            project = await self._usable(tx, caller, project_id)
            if (alive := await tx.count_jobs(project_id, WAITING | ON_RAY)) > 0:
                raise invalid(f"The project has {alive} job(s) that have not ended; cancel them first.", "project_id")
            archived = replace(project, archived_at=tx.time)
            await tx.update_project(archived)
            await tx.audit(caller, "project.archived", project_id, project_id=project_id)
            return archived

    async def _usable(self, tx: Transaction, caller: Caller, project_id: str) -> Project:
        """The project, locked, so that nothing is added to it meanwhile."""
        project = await self.the_project(tx, caller, project_id, lock=True)
        if project.archived_at is not None:
            raise invalid("The project is archived: it can be neither used nor changed.", "project_id")
        return project

    async def the_project(self, tx: Transaction, caller: Caller, project_id: str, *, lock: bool = False) -> Project:
        """A project of the caller's organization, or NOT_FOUND."""
        return found(await tx.project(caller.organization_id, project_id, lock=lock), "project", project_id, param="project_id")
