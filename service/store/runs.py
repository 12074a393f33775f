"""Runs and checkpoints in SQL."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from service.jobs import Departure
from service.records import Checkpoint, Page
from service.store import tables as t
from service.store.paging import page
from trainers.retention import kept_steps
from trainers.spec import CheckpointSpec


@dataclass(frozen=True, slots=True)
class Run:
    """One attempt of a job. `outcome` is what it said of its end, None while it goes on."""

    job_id: str
    epoch: int
    token_sha256: str
    created_at: float
    reported_at: float | None
    last_seq: int
    resumed_step: int | None
    last_step: int
    outcome: dict[str, Any] | None
    ended_at: float | None
    held: dict[str, Any] | None
    """Numbers of a step that was reported and whose evaluation was not yet."""
    leaving: str | None = None
    """Why it was asked to write a checkpoint and leave (a `jobs.Departure`); None unless it was."""
    out_of_turn: bool = False
    """Its job had waited longer than anybody should."""
    micro_batch: int | None = None
    """Most rows of one forward pass: at first what it was given, then what it tells; None of a run that an older release started."""


class RunStatements:
    """Mixed into `Transaction`."""

    connection: AsyncConnection
    time: float

    async def insert_run(self, job_id: str, epoch: int, token_sha256: str, *, out_of_turn: bool = False) -> None:
        """A new run, before anything of it is launched."""
        values = {"job_id": job_id, "epoch": epoch, "token_sha256": token_sha256, "created_at": self.time, "last_seq": 0, "last_step": 0}
        await self.connection.execute(sa.insert(t.runs).values(values | {"out_of_turn": out_of_turn}))

    async def ask_to_leave(self, job_id: str, epoch: int, why: Departure) -> None:
        """The run is to write a checkpoint and leave; the first reason counts."""
        c = t.runs.c
        query = sa.update(t.runs).where(c.job_id == job_id, c.epoch == epoch, c.leaving.is_(None))
        await self.connection.execute(query.values(leaving=why.value))

    async def run(self, job_id: str, epoch: int) -> Run | None:
        """A run by its job and number."""
        query = sa.select(t.runs).where(t.runs.c.job_id == job_id, t.runs.c.epoch == epoch)
        row = (await self.connection.execute(query)).mappings().first()
        return Run(**row) if row else None

    async def list_runs(self, job_id: str) -> list[Run]:
        """Every run of the job, first to last."""
        query = sa.select(t.runs).where(t.runs.c.job_id == job_id).order_by(t.runs.c.epoch)
        return [Run(**row) for row in (await self.connection.execute(query)).mappings()]

    async def update_run(self, job_id: str, epoch: int, **values: Any) -> None:
        """Write what a run reported."""
        await self.connection.execute(sa.update(t.runs).where(t.runs.c.job_id == job_id, t.runs.c.epoch == epoch).values(**values))

    async def put_checkpoint(
        self, job_id: str, epoch: int, step: int, prefix: str, model_name: str, metrics: dict[str, float], *, rules: CheckpointSpec
    ) -> None:
        """A complete checkpoint; a newer run's takes the place of an older one's at the same step. Those that the run keeps stay listed."""
        c = t.checkpoints.c
        await self.connection.execute(sa.delete(t.checkpoints).where(c.job_id == job_id, c.step == step))
        values = {"job_id": job_id, "epoch": epoch, "step": step, "prefix": prefix, "model_name": model_name, "metrics": metrics}
        await self.connection.execute(sa.insert(t.checkpoints).values(**values, id=f"ftckpt_{secrets.token_hex(12)}", created_at=self.time))
        losses = {known.step: known.metrics.get("valid_loss") for known in await self.checkpoints(job_id)}
        kept = kept_steps(losses, rules.keep, keep_best=rules.keep_best)
        await self.connection.execute(sa.delete(t.checkpoints).where(c.job_id == job_id, c.step.not_in(kept)))

    async def name_last_checkpoint(self, job_id: str, model_name: str) -> None:
        """The newest checkpoint is the tuned model itself, wherever training stopped."""
        c, p = t.checkpoints.c, t.checkpoint_permissions.c
        newest = sa.select(c.model_name).where(c.job_id == job_id).order_by(c.step.desc()).limit(1)
        name = (await self.connection.execute(newest)).scalar()
        bearing = (c.job_id == job_id, c.model_name == name)
        await self.connection.execute(sa.update(t.checkpoints).where(*bearing).values(model_name=model_name))
        # Whoever was let to use the checkpoint may use it under its new name.
        await self.connection.execute(sa.update(t.checkpoint_permissions).where(p.model == name).values(model=model_name))

    async def forget_checkpoints(self, job_id: str) -> None:
        """The job's checkpoints are about to be deleted."""
        await self.connection.execute(sa.delete(t.checkpoints).where(t.checkpoints.c.job_id == job_id))

    async def checkpoints(self, job_id: str) -> list[Checkpoint]:
        """Every checkpoint of the job, newest step first."""
        query = sa.select(t.checkpoints).where(t.checkpoints.c.job_id == job_id).order_by(t.checkpoints.c.step.desc())
        return [_checkpoint(row) for row in (await self.connection.execute(query)).mappings()]

    async def last_saved(self, job_id: str) -> int:
        """Step of the job's newest checkpoint, 0 when there is none."""
        newest = sa.select(sa.func.max(t.checkpoints.c.step)).where(t.checkpoints.c.job_id == job_id)
        return (await self.connection.execute(newest)).scalar() or 0

    async def list_checkpoints(self, job_id: str, *, after: str | None, limit: int) -> Page[Checkpoint]:
        """Newest step first. Raises ValueError when `after` is no checkpoint of the job."""
        c = t.checkpoints.c
        cursor = sa.select(c.step).where(c.id == after, c.job_id == job_id) if after else None
        return await page(self.connection, sa.select(t.checkpoints).where(c.job_id == job_id), c.step, cursor, limit, _checkpoint)


def _checkpoint(row: sa.RowMapping) -> Checkpoint:
    return Checkpoint(**{name: row[name] for name in ("id", "job_id", "epoch", "step", "created_at", "prefix", "model_name", "metrics")})
