"""How many jobs each project runs, and whether its quota lets it run one more. Pure; for one look of the scheduler."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from service.quotas import Quotas
from service.shares import Owned


class Places:
    """Places for running jobs, by project. `own` are the quotas that projects have beside the `defaults`."""

    def __init__(self, defaults: Quotas, own: Mapping[str, Quotas], busy: Iterable[Owned]) -> None:
        self._defaults, self._own = defaults, own
        self.running = Counter(job.project_id for job in busy)

    def limit(self, project_id: str) -> float | None:
        """The project's quota of running jobs, None where there is none."""
        return self._own.get(project_id, Quotas()).over(self._defaults).limit("running_jobs")

    def shortage(self, project_id: str) -> str:
        """Why the project can't run one more job now, in words; empty when it can."""
        limit, running = self.limit(project_id), self.running[project_id]
        return f"the project runs {running} of {limit:.0f} jobs" if limit is not None and running >= limit else ""

    def take(self, project_id: str) -> None:
        """One more job of the project runs."""
        self.running[project_id] += 1
