"""What must hold of jobs, objects and logs after every fault, whatever has run: asked of the database and the store, past every gateway."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from service.store import tables as t
from trainers import manifest
from trainers.storage import Storage

ENDS = ("The job has successfully completed", "The job has been cancelled", "The job failed due to ")
"""The last words of a job's history."""


def rows(database: str, query: sa.Select[Any]) -> list[Any]:
    """What the database says."""
    engine = sa.create_engine(database)
    try:
        with engine.connect() as connection:
            return list(connection.execute(query).all())
    finally:
        engine.dispose()


def assert_one_end(database: str, job: Any) -> None:
    """One end, events and epochs without a gap, each run's end noted, nobody's lease. `job` is its row."""
    events = rows(database, sa.select(t.events.c.message, t.events.c.seq).where(t.events.c.job_id == job.id).order_by(t.events.c.seq))
    assert [row.seq for row in events] == list(range(1, len(events) + 1))
    assert sum(row.message.startswith(ENDS) for row in events) == 1, [row.message for row in events]
    runs = rows(database, sa.select(t.runs.c.epoch, t.runs.c.ended_at).where(t.runs.c.job_id == job.id).order_by(t.runs.c.epoch))
    assert [row.epoch for row in runs] == list(range(1, job.epoch + 1))
    assert all(row.ended_at is not None for row in runs)
    assert job.lease_owner is None


def assert_manifests(storage: Storage) -> None:
    """Every checkpoint and every model is what its manifest says."""
    for info in list(storage.list("")):
        prefix, _, name = info.key.rpartition("/")
        if name == manifest.MANIFEST and prefix.startswith(("runs/", "models/")):
            with tempfile.TemporaryDirectory() as scratch:
                manifest.fetch(storage, prefix, manifest.read(storage, prefix).files, Path(scratch))


def assert_untold(secrets: Iterable[str], logs: Iterable[Path]) -> None:
    """No secret stands in a log."""
    for path in logs:
        text = path.read_text(errors="replace")
        assert not [secret for secret in secrets if secret in text], f"a secret is in {path}"
