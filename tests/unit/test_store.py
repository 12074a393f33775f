"""The store on SQLite and on a real PostgreSQL: the same statements, the same guarantees."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from service.jobs import ON_RAY, Job, JobSpec, JobStatus, MethodSpec, Notice, advance
from service.records import File
from service.store import Stale, Store
from service.store.tables import metadata
from trainers.spec import BaseModelRef, CheckpointSpec, TunesmithSpec

PROJECT = "proj_1"
TTL = timedelta(seconds=30)


def new_job(number: int, priority: int = 0, **metadata_of_job: str) -> Job:
    spec = JobSpec(
        model="m",
        training_file="file-1",
        seed=1,
        metadata=metadata_of_job,
        method=MethodSpec(type="supervised"),
        tunesmith=TunesmithSpec(priority=priority),
    )
    base = BaseModelRef(id="m", revision="1", prefix="base/m/1", licence="mit")
    return Job(f"ftjob-{number}", PROJECT, "org-1", spec, JobStatus.VALIDATING, 1, 0.0, base)


@pytest.fixture(params=["sqlite", "postgresql"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    url = f"sqlite+aiosqlite:///{tmp_path}/jobs.db" if request.param == "sqlite" else request.getfixturevalue("postgres_url")
    store = Store(url)
    await store.migrate()
    yield store
    await store.close()


async def insert(store: Store, *jobs: Job) -> list[Job]:
    async with store.begin() as tx:
        return [await tx.insert_job(job, f"fingerprint-{job.id}", [Notice("Created")]) for job in jobs]


async def queue(store: Store, job: Job) -> Job:
    async with store.begin() as tx:
        return await tx.apply(job, advance(job, JobStatus.QUEUED, queued_at=tx.time), [Notice("Queued")])


async def test_a_job_reads_back_as_it_was_written(store: Store) -> None:
    job = new_job(1, team="blue")
    (stored,) = await insert(store, job)
    assert stored == replace(job, created_at=stored.created_at)
    assert abs(stored.created_at - time.time()) < 5
    async with store.read() as tx:
        assert await tx.job(PROJECT, job.id) == stored
        assert await tx.job("proj_other", job.id) is None


async def test_migrating_twice_changes_nothing_and_fits_the_tables(store: Store) -> None:
    await store.migrate()
    async with store._engine.connect() as connection:
        difference = await connection.run_sync(
            lambda sync: compare_metadata(MigrationContext.configure(sync, opts={"compare_type": True}), metadata)
        )
    assert difference == []


async def test_only_the_first_of_two_writers_of_one_version_wins(store: Store) -> None:
    (job,) = await insert(store, new_job(1))
    await queue(store, job)
    with pytest.raises(Stale):
        async with store.begin() as tx:
            await tx.apply(job, advance(job, JobStatus.CANCELLED), [Notice("Cancelled")])
    async with store.read() as tx:
        events = await tx.list_events(job.id, after=None, limit=10)
        assert [event.message for event in events.items] == ["Queued", "Created"]
        assert (await tx.any_job(job.id)).status is JobStatus.QUEUED


async def test_state_and_events_are_written_together_or_not_at_all(store: Store) -> None:
    (job,) = await insert(store, new_job(1))

    async def apply_and_fail() -> None:
        async with store.begin() as tx:
            await tx.apply(job, advance(job, JobStatus.QUEUED), [Notice("Queued")])
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await apply_and_fail()
    async with store.read() as tx:
        assert (await tx.any_job(job.id)) == job
        assert len((await tx.list_events(job.id, after=None, limit=10)).items) == 1


async def test_twenty_claimers_of_thirty_jobs_claim_each_once(store: Store) -> None:
    jobs = [await queue(store, job) for job in await insert(store, *(new_job(n) for n in range(30)))]

    async def claim_all(owner: str) -> list[str]:
        won: list[str] = []
        for job in jobs:
            try:
                async with store.begin() as tx:
                    claimed = advance(job, JobStatus.STARTING, epoch=job.epoch + 1, lease_owner=owner)
                    await tx.lease(await tx.apply(job, claimed), owner, TTL)
                    won.append(job.id)
            except Stale:
                continue
        return won

    won = await asyncio.gather(*(claim_all(f"owner-{n}") for n in range(20)))
    assert sorted(job_id for ids in won for job_id in ids) == sorted(job.id for job in jobs)


async def test_a_lease_is_taken_over_only_after_it_ran_out(store: Store) -> None:
    (job,) = await insert(store, new_job(1))
    states = ON_RAY | {JobStatus.VALIDATING}
    async with store.begin() as tx:
        assert [j.lease_owner for j in await tx.take_leases("first", states, TTL)] == ["first"]
        assert await tx.take_leases("second", states, TTL) == []
        assert await tx.renew_leases("first", timedelta(seconds=-1)) == {job.id}
    async with store.begin() as tx:
        assert await tx.renew_leases("first", TTL) == set()
        taken = await tx.take_leases("second", states, TTL)
        assert [j.lease_owner for j in taken] == ["second"]
    with pytest.raises(Stale):
        async with store.begin() as tx:
            await tx.apply(job, advance(job, JobStatus.QUEUED))


async def test_jobs_page_newest_first_and_filter_by_metadata(store: Store) -> None:
    await insert(store, *(new_job(n, team="blue" if n % 2 else "red") for n in range(7)))
    async with store.read() as tx:
        first = await tx.list_jobs(PROJECT, after=None, limit=3, metadata={})
        assert ([j.id for j in first.items], first.has_more) == (["ftjob-6", "ftjob-5", "ftjob-4"], True)
        rest = await tx.list_jobs(PROJECT, after="ftjob-4", limit=10, metadata={})
        assert ([j.id for j in rest.items], rest.has_more) == (["ftjob-3", "ftjob-2", "ftjob-1", "ftjob-0"], False)
        blue = await tx.list_jobs(PROJECT, after=None, limit=10, metadata={"team": "blue"})
        assert [j.id for j in blue.items] == ["ftjob-5", "ftjob-3", "ftjob-1"]
        assert (await tx.list_jobs(PROJECT, after=None, limit=10, metadata=None)).items == []
        assert (await tx.list_jobs("proj_other", after=None, limit=10, metadata={})).items == []
        with pytest.raises(ValueError, match="after"):
            await tx.list_jobs("proj_other", after="ftjob-4", limit=10, metadata={})


@pytest.mark.parametrize("key", ['"', "a.b", "$[0]", "'", "\\", "a b", "\N{COLLISION SYMBOL}"])
async def test_every_metadata_key_is_found_again(store: Store, key: str) -> None:
    await insert(store, new_job(1, **{key: "there"}), new_job(2, **{key: "elsewhere"}), new_job(3))
    async with store.read() as tx:
        assert [j.id for j in (await tx.list_jobs(PROJECT, after=None, limit=10, metadata={key: "there"})).items] == ["ftjob-1"]
        assert [j.id for j in (await tx.list_jobs(PROJECT, after=None, limit=10, metadata=None)).items] == ["ftjob-3"]


async def test_the_queue_is_by_priority_then_age(store: Store) -> None:
    for job in await insert(store, new_job(1), new_job(2, priority=5), new_job(3)):
        await queue(store, job)
    async with store.read() as tx:
        assert [j.id for j in await tx.jobs_in([JobStatus.QUEUED])] == ["ftjob-2", "ftjob-1", "ftjob-3"]


async def test_one_submission_key_binds_one_job(store: Store) -> None:
    async def submit(number: int) -> bool:
        async with store.begin() as tx:
            return await tx.insert_submission(PROJECT, "key", "same", f"ftjob-{number}")

    assert sum(await asyncio.gather(*(submit(n) for n in range(20)))) == 1


@pytest.mark.parametrize("first_commits", [True, False])
async def test_a_submission_waits_for_the_one_that_is_in_flight(store: Store, first_commits: bool) -> None:
    async def again() -> tuple[bool, str | None]:
        async with store.begin() as tx:
            bound = await tx.insert_submission(PROJECT, "key", "f", "ftjob-2")
            await tx.lock_content(PROJECT, "f")
            return bound, await tx.recent_twin(PROJECT, "f", TTL)

    with suppress(ZeroDivisionError):
        async with store.begin() as tx:
            assert await tx.insert_submission(PROJECT, "key", "f", "ftjob-1")
            await tx.insert_job(new_job(1), "f", [])
            waiting = asyncio.create_task(again())
            await asyncio.sleep(0.3)
            assert not waiting.done()
            if not first_commits:
                raise ZeroDivisionError
    assert await waiting == ((False, "ftjob-1") if first_commits else (True, None))


async def test_a_retry_waits_for_the_same_content_in_flight(store: Store) -> None:
    async def retry() -> str | None:
        async with store.begin() as tx:
            await tx.lock_content(PROJECT, "f")
            return await tx.recent_twin(PROJECT, "f", TTL)

    async with store.begin() as tx:
        await tx.lock_content(PROJECT, "f")
        waiting = asyncio.create_task(retry())
        await asyncio.sleep(0.3)
        assert not waiting.done()
        await tx.insert_job(new_job(1), "f", [])
    assert await waiting == "ftjob-1"


async def test_files_of_another_project_are_unknown(store: Store) -> None:
    async with store.begin() as tx:
        await tx.insert_file(File("file-1", PROJECT, "a.jsonl", "fine-tune", 3, "0" * 64, "files/x", 0.0))
        assert await tx.file("proj_other", "file-1") is None
        assert await tx.delete_file("proj_other", "file-1") is None
        assert await tx.delete_file(PROJECT, "file-1") == "files/x"
        assert await tx.file(PROJECT, "file-1") is None


async def test_checkpoints_keep_the_newest_and_the_newest_run_owns_a_step(store: Store) -> None:
    await insert(store, new_job(1))
    async with store.begin() as tx:
        for epoch, step in ((1, 20), (1, 40), (2, 40), (2, 60), (2, 80)):
            await tx.put_checkpoint("ftjob-1", epoch, step, f"runs/{epoch}/{step}", "name", {"train_loss": 1.0}, rules=CheckpointSpec())
        kept = await tx.checkpoints("ftjob-1")
    assert [(c.epoch, c.step) for c in kept] == [(2, 80), (2, 60), (2, 40)]


async def test_a_model_is_found_by_its_project_and_by_those_it_is_shared_with(store: Store) -> None:
    await insert(store, new_job(1))
    async with store.begin() as tx:
        await tx.insert_project("proj_2", "org-1", "second")
        await tx.insert_project("proj_3", "org-else", "third")
        assert await tx.projects_of("org-1", ["proj_2", "proj_3", "proj_4"]) == {"proj_2"}
        for step in (1, 2):
            await tx.put_checkpoint("ftjob-1", 1, step, f"runs/{step}", f"ft:m:ckpt-step-{step}", {}, rules=CheckpointSpec())
        for name in ("ft:m:ckpt-step-1", "ft:m:ckpt-step-2"):
            (made,) = await tx.put_permissions(name, ["proj_2"])
            assert await tx.put_permissions(name, ["proj_2"]) == [made]
        await tx.name_last_checkpoint("ftjob-1", "ft:m")
        await tx.insert_tuned_model("ft:m", PROJECT, "org-1", "ftjob-1")
        assert {model.id: model.prefix for model in await tx.shared_models("proj_2")} == {
            "ft:m": "models/ftjob-1/0",
            "ft:m:ckpt-step-1": "runs/1",
        }
        assert await tx.shared_models(PROJECT) == await tx.shared_models("proj_3") == []
        assert await tx.model_named("proj_3", "ft:m") is await tx.model_named(PROJECT, "ft:m:ckpt-step-2") is None
        model = await tx.model_named(PROJECT, "ft:m")
        assert model == await tx.model_named("proj_2", "ft:m")
        assert model is not None
        assert await tx.forget_model(model) == ["runs/2"]
        assert await tx.model_named(PROJECT, "ft:m") is await tx.model_named("proj_2", "ft:m") is None
        assert [checkpoint.step for checkpoint in await tx.checkpoints("ftjob-1")] == [1]
        (left,) = (await tx.list_permissions("ft:m:ckpt-step-1", project_id=None, after=None, limit=5, ascending=True)).items
        assert await tx.delete_permission("ft:m", left.id) is False
        assert await tx.delete_permission("ft:m:ckpt-step-1", left.id) is True
        assert await tx.shared_models("proj_2") == []


async def test_the_clock_is_the_databases(store: Store) -> None:
    async with store.read() as tx:
        assert isinstance(tx.time, float)
        assert sa.inspect(tx.connection.sync_connection).dialect.name in store.url


async def test_a_cancelled_transaction_holds_no_lock(store: Store) -> None:
    """Wherever in it the cancellation strikes; the cancelled tasks are kept, as a log that holds their errors keeps them."""
    cancelled: list[asyncio.Task[None]] = []

    async def write(number: int) -> None:
        async with store.begin() as tx:
            await tx.insert_job(new_job(number), f"f{number}", [Notice("Created")])

    for number in range(150):
        task = asyncio.create_task(write(number))
        await asyncio.sleep(number * 0.00005)
        task.cancel()
        cancelled.append(task)
    await asyncio.gather(*cancelled, return_exceptions=True)
    assert any(task.cancelled() for task in cancelled)
    async with asyncio.timeout(5):
        await write(1000)
