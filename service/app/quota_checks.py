"""What use cases ask before they add to what a project uses. Part of every use case's `Context`.

Each check compares and refuses inside the transaction that adds, under the lock on the project's row, so
that two gateways can't both give the last place away.
"""

from __future__ import annotations

from datetime import timedelta

from service.admission import Admission
from service.errors import invalid
from service.jobs import JobSpec
from service.quotas import WAITING, Quotas, exceeded, month
from service.records import Caller, Project
from service.store import Store, Transaction


class QuotaChecks:
    """Mixed into `Context`."""

    admission: Admission
    store: Store

    async def locked_project(self, tx: Transaction, caller: Caller) -> Project:
        """The caller's project; until the transaction ends nobody else adds to it, or archives it."""
        project = await tx.project(caller.organization_id, caller.project_id, lock=True)
        if project is None or project.archived_at is not None:
            raise invalid("The project is archived.")
        return project

    def quotas(self, project: Project) -> Quotas:
        """What holds for the project: its own quotas, else the service's."""
        return project.quotas.over(self.admission.defaults)

    def with_priority(self, project: Project, spec: JobSpec) -> JobSpec:
        """The spec; one that names no priority has the project's highest where that is below the usual one.

        Raises INVALID for a priority above the project's highest: waiting does not help.
        """
        highest, ours = self.quotas(project).limit("priority"), spec.tunesmith
        if highest is None or ours.priority <= highest:
            return spec
        if "priority" not in ours.model_fields_set:
            return spec.model_copy(update={"tunesmith": ours.model_copy(update={"priority": int(highest)})})
        told = f"priority is {ours.priority}, and jobs of this project may have {highest:.0f} at the most"
        raise invalid(f"{told} (its quota 'priority').", "tunesmith.priority")

    async def check_new_job(self, tx: Transaction, project: Project, spec: JobSpec) -> None:
        """Raises QUOTA_EXCEEDED when the project has no room for one more job in the queue, or no GPU-hours left for this one."""
        quotas = self.quotas(project)
        limit = quotas.limit("queued_jobs")
        if limit is not None and (waiting := await tx.count_jobs(project.id, WAITING)) >= limit:
            raise exceeded("queued_jobs", f"{waiting} of {limit:.0f} jobs wait already. Ask again when one has started.")
        if spec.tunesmith.resources.gpus_per_worker:
            await self._check_gpu_hours(tx, project, quotas.limit("gpu_hours"))

    async def _check_gpu_hours(self, tx: Transaction, project: Project, limit: float | None) -> None:
        if limit is not None and (used := await tx.gpu_hours(project.id)) >= limit:
            left = timedelta(seconds=month(tx.time)[1] - tx.time)
            raise exceeded("gpu_hours", f"{used:.2f} of {limit:g} GPU-hours of this month. It begins anew with the next one (UTC).", left)

    async def room_for(self, caller: Caller, more: int) -> None:
        """As `check_stored_bytes`, before the object store is given what would be refused; what counts is said with the row."""
        async with self.store.read() as tx:
            project = await tx.project(caller.organization_id, caller.project_id)
            if project is not None:
                await self.check_stored_bytes(tx, project, more)

    async def check_stored_bytes(self, tx: Transaction, project: Project, more: int) -> None:
        """Raises QUOTA_EXCEEDED when the project has no room for `more` bytes."""
        limit = self.quotas(project).limit("stored_bytes")
        if limit is not None and (stored := await tx.stored_bytes(project.id)) + more > limit:
            raise exceeded("stored_bytes", f"{stored} of {limit:.0f} bytes are stored and {more} more do not fit. Delete files first.")
