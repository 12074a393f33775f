"""What a look at the queue costs with many jobs in it, on SQLite and on PostgreSQL: processor time of the gateway, and waiting.

    python -m bench.looks [--jobs 1000 100000]

The jobs belong to 20 projects in 3 priorities; the cluster is full after the first look, so the later ones find nothing to do.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from service.jobs import JobStatus
from service.metrics import Metrics
from service.runtime import Capacity
from service.settings import Settings
from service.store import Store
from service.store import tables as t
from service.turns import Turns
from tests.fake_runtime import FakeRuntime
from tests.pg import running_postgres
from trainers.spec import BaseModelRef, ResourceSpec, TunesmithSpec

LOOKS = 20
ROWS = 1000
"""Jobs of one INSERT."""


def _rows(first: int, count: int, now: float) -> list[dict[str, Any]]:
    base = BaseModelRef(id="m", revision="1", prefix="p", licence="mit").model_dump()
    made = []
    for number in range(first, first + count):
        ours = TunesmithSpec(priority=number % 3, resources=ResourceSpec(cpus_per_worker=1 + number % 7))
        spec = {
            "model": "m",
            "training_file": "file-1",
            "seed": 1,
            "method": {"type": "supervised"},
            "tunesmith": ours.model_dump(mode="json"),
        }
        row = {"id": f"ftjob-{number}", "project_id": f"proj_{number % 20}", "organization_id": "org", "spec": spec, "base_model": base}
        row |= {"status": JobStatus.QUEUED.value, "priority": number % 3, "queued_at": now + number * 1e-3, "created_at": now}
        row |= {"version": 1, "fingerprint": "f", "epoch": 0, "infra_failures": 0, "not_before": 0.0, "reason": "", "progress": {}}
        made.append(row | {"result_files": [], "lease_expires_at": 0.0, "event_seq": 0})
    return made


async def measure(url: str, jobs: int, directory: Path) -> tuple[float, float]:
    """Medians of a look that finds nothing to do: milliseconds of this process, and from begin to end."""
    store = Store(url)
    await store.migrate()
    for first in range(0, jobs, ROWS):
        async with store.begin() as tx:
            await tx.connection.execute(sa.insert(t.jobs), _rows(first, min(ROWS, jobs - first), tx.time))
    turns = Turns("bench", store, FakeRuntime(total=Capacity(cpus=64, gpus=0, nodes=4)), Settings(data_dir=directory), Metrics())
    while await turns.take():
        pass
    spent, lasted = [], []
    for _ in range(LOOKS):
        began, busy = time.perf_counter(), time.process_time()
        await turns.take()
        spent.append(time.process_time() - busy)
        lasted.append(time.perf_counter() - began)
    await store.close()
    return statistics.median(spent) * 1000, statistics.median(lasted) * 1000


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description="What a look at the queue costs.")
    parser.add_argument("--jobs", type=int, nargs="+", default=[1000, 100_000])
    counts = parser.parse_args().jobs
    for database in ("SQLite", "PostgreSQL"):
        for jobs in counts:
            with tempfile.TemporaryDirectory() as scratch, running_postgres() if database == "PostgreSQL" else nullcontext("") as url:
                at = url or f"sqlite+aiosqlite:///{scratch}/tunesmith.db"
                spent, lasted = asyncio.run(measure(at, jobs, Path(scratch)))
            sys.stdout.write(f"{database:<12}{jobs:>8} jobs: {spent:6.0f} ms of the gateway's processor, {lasted:6.0f} ms in all\n")


if __name__ == "__main__":
    main()
