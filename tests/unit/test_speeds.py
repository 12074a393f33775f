"""What earlier runs tell of their speed, on SQLite and PostgreSQL, and what an estimate makes of it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from service import devices
from service.durations import Past, Work, duration, token_flops
from service.gangs import Gang
from service.jobs import Job, JobSpec, JobStatus, MethodSpec, Notice, Progress
from service.settings import Settings
from service.store import Store, tables
from tests.sizes import SMOLLM2
from trainers.spec import AdapterSpec, BaseModelRef, DatasetRef, ResourceSpec, TunesmithSpec

BASE = BaseModelRef(id="m", revision="1", prefix="base/m/1", licence="mit")
DATA = DatasetRef(prefix="d", sha256="d", rows=100, tokens=5_500, trained_tokens=550, longest=80)
WORK = Work(flops=1e12, evaluation_flops=1e11, steps=10, weights_bytes=10**9)
ONE_CORE = Gang(workers=1, cpus_per_worker=1, gpus_per_worker=0)


@pytest.fixture(params=["sqlite", "postgresql"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    url = f"sqlite+aiosqlite:///{tmp_path}/jobs.db" if request.param == "sqlite" else request.getfixturevalue("postgres_url")
    store = Store(url)
    await store.migrate()
    yield store
    await store.close()


async def ended(store: Store, name: str, *, speed: float | None = 100.0, gpus: int = 0, method: str = "supervised", **changes: Any) -> None:
    """A job that took 20 s to start and 4 s after its last step."""
    resources = ResourceSpec(gpus_per_worker=gpus)
    spec = JobSpec(model="m", training_file="f", seed=1, method=MethodSpec(type=method), tunesmith=TunesmithSpec(resources=resources))
    job = Job(f"ftjob-{name}", f"proj-{name}", "org", spec, JobStatus.SUCCEEDED, 1, 0.0, BASE, epoch=1, dataset=DATA)
    async with store.begin() as tx:
        now = tx.time
        job = replace(job, progress=Progress(tokens_per_second=speed), started_at=now + 20, finished_at=now + 84)
        await tx.insert_job(replace(job, **changes), "f", [Notice("Step", type="metrics", data={"step": 1}), Notice("The job has ended")])
        await tx.insert_run(job.id, 1, "")
        events = tables.events.c
        await tx.connection.execute(sa.update(tables.events).where(events.job_id == job.id).values(created_at=now + 80))


async def test_only_runs_of_the_same_kind_count_and_the_newest_come_first(store: Store) -> None:
    await ended(store, "old", speed=50.0)
    for n in range(5):
        await ended(store, f"same{n}", speed=100.0 + n)
    await ended(store, "failed", status=JobStatus.FAILED)
    await ended(store, "dpo", method="dpo")
    await ended(store, "gpu", speed=9000.0, gpus=1)
    await ended(store, "revision", base_model=BASE.model_copy(update={"revision": "2"}))
    async with store.read() as tx:
        on_cpu = await tx.measured_runs(BASE, "supervised", on_gpu=False)
        on_gpu = await tx.measured_runs(BASE, "supervised", on_gpu=True)
    assert [run.tokens_per_second for run in on_cpu] == [104.0, 103.0, 102.0, 101.0, 100.0]
    assert [run.tokens_per_second for run in on_gpu] == [9000.0]
    assert on_cpu[0].start_seconds == pytest.approx(20, abs=0.01)
    assert on_cpu[0].finish_seconds == pytest.approx(4, abs=0.01)


async def test_a_job_of_several_runs_tells_its_speed_alone(store: Store) -> None:
    await ended(store, "again", epoch=2)
    await ended(store, "unmeasured", speed=None)
    async with store.read() as tx:
        [run] = await tx.measured_runs(BASE, "supervised", on_gpu=False)
    assert (run.tokens_per_second, run.start_seconds, run.finish_seconds) == (100.0, None, None)


def test_operations_of_a_token_are_those_of_the_yardstick() -> None:
    """PERFORMANCE: about 620 MFLOP for LoRA r 16 at 512 tokens, all labelled; about 460 where one token in ten is."""
    whole = DATA.model_copy(update={"rows": 10, "tokens": 5120, "trained_tokens": 5120})
    assert token_flops(SMOLLM2, AdapterSpec(), whole) == pytest.approx(620e6, rel=0.03)
    assert token_flops(SMOLLM2, AdapterSpec(), DATA) == pytest.approx(460e6, rel=0.04)


def test_a_measured_range_is_narrower_than_a_computed_one() -> None:
    device = devices.processor(Settings(cpu_gflops=50))
    computed = duration(WORK, ONE_CORE, [], device)
    measured = duration(WORK, ONE_CORE, [Past(25e9, 20.0, 4.0)], device)
    assert computed is not None
    assert measured is not None
    assert measured.training.low < 1e12 / 25e9 < measured.training.high
    assert computed.training.high / computed.training.low > measured.training.high / measured.training.low
    assert measured.low == pytest.approx(
        sum(part.low for part in (measured.start, measured.training, measured.evaluation, measured.finish))
    )


def test_more_devices_take_less_time() -> None:
    device = devices.processor(Settings(cpu_gflops=50))
    one, four = (duration(WORK, replace(ONE_CORE, cpus_per_worker=cores), [], device) for cores in (1, 4))
    assert one is not None
    assert four is not None
    assert four.evaluation.high == pytest.approx(one.evaluation.high / 4)


def test_gpus_are_known_by_their_type_or_by_settings() -> None:
    assert devices.gpu(Settings(), ()).flops is None
    assert devices.gpu(Settings(), ("UNHEARD-OF", "H100")).flops is None, "the unknown one may be the weaker"
    mixed = devices.gpu(Settings(), ("A100", "H100"))
    assert mixed.flops == devices.gpu(Settings(), ("A100",)).flops
    assert mixed.memory_bytes == 39 * 2**30
    given = devices.gpu(Settings(gpu_tflops=100, gpu_memory_bytes=2**34), ())
    assert given.memory_bytes == 2**34
    assert given.flops is not None
    assert duration(WORK, ONE_CORE, [], devices.gpu(Settings(), ())) is None


def test_a_core_is_measured() -> None:
    assert devices.core_flops() > 1e8
    assert "measured on the gateway's machine" in devices.processor(Settings()).known_by
