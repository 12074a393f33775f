"""How fast earlier runs were, in SQL: from what their jobs' rows and events tell.

A speed is a fact of the service's devices, so runs of every project count; nothing else of their jobs leaves here.
"""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from service.jobs import JobStatus, Progress
from service.store import tables as t
from trainers.spec import AdapterSpec, BaseModelRef, DatasetRef, ResourceSpec, TunesmithSpec

NEWEST = 5
"""Runs that are looked at: devices and libraries change."""


@dataclass(frozen=True, slots=True)
class MeasuredRun:
    """The run of a succeeded job. Seconds are None where a job took more than one run."""

    tokens_per_second: float
    """Non-padding tokens, all workers together."""
    adapter: AdapterSpec
    resources: ResourceSpec
    dataset: DatasetRef
    start_seconds: float | None
    """From the claim to the first word of the run."""
    finish_seconds: float | None
    """From the last step to the end."""


class SpeedStatements:
    """Mixed into `Transaction`."""

    connection: AsyncConnection

    async def measured_runs(self, base_model: BaseModelRef, method: str, *, on_gpu: bool) -> list[MeasuredRun]:
        """Those of the newest succeeded jobs of the same base model, method and kind of device."""
        c, r, e = t.jobs.c, t.runs.c, t.events.c
        gpus = c.spec["tunesmith"]["resources"]["gpus_per_worker"].as_integer()
        began = sa.select(r.created_at).where(r.job_id == c.id, r.epoch == 1).scalar_subquery()
        last_step = sa.select(sa.func.max(e.created_at)).where(e.job_id == c.id, e.type == "metrics").scalar_subquery()
        query = (
            sa.select(
                c.spec, c.dataset, c.progress, c.epoch, c.started_at, c.finished_at, began.label("began"), last_step.label("last_step")
            )
            .where(
                c.status == JobStatus.SUCCEEDED.value,
                c.base_model["id"].as_string() == base_model.id,
                c.base_model["revision"].as_string() == base_model.revision,
                c.spec["method"]["type"].as_string() == method,
                gpus > 0 if on_gpu else gpus == 0,
            )
            .order_by(c.n.desc())
            .limit(NEWEST)
        )
        runs = [_measured(row) for row in (await self.connection.execute(query)).mappings()]
        return [run for run in runs if run is not None]


def _measured(row: sa.RowMapping) -> MeasuredRun | None:
    speed = Progress.model_validate(row["progress"]).tokens_per_second
    if not speed:
        return None
    asked = TunesmithSpec.model_validate(row["spec"]["tunesmith"])
    once = row["epoch"] == 1
    return MeasuredRun(
        tokens_per_second=speed,
        adapter=asked.adapter,
        resources=asked.resources,
        dataset=DatasetRef.model_validate(row["dataset"]),
        start_seconds=_between(row["began"], row["started_at"]) if once else None,
        finish_seconds=_between(row["last_step"], row["finished_at"]) if once else None,
    )


def _between(first: float | None, then: float | None) -> float | None:
    return None if first is None or then is None else max(0.0, then - first)
