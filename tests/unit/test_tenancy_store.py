"""Quotas, the audit log and keys in the store, on SQLite and on a real PostgreSQL."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from sqlalchemy.exc import DBAPIError

import service.store
from service import tenancy
from service.admission import Admission
from service.app.quota_checks import QuotaChecks
from service.errors import ErrorCode, TunesmithError
from service.jobs import Job, JobSpec, JobStatus, MethodSpec, advance
from service.quotas import Quotas
from service.records import AuditFilter, Caller, File
from service.store import Store
from service.store import tables as t
from trainers.spec import BaseModelRef, ResourceSpec, TunesmithSpec

PROJECT, ORGANIZATION = "proj_1", "org-1"
CALLER = Caller("k", PROJECT, ORGANIZATION, frozenset({"read", "write"}), request_id="req_1")
BASE = BaseModelRef(id="m", revision="1", prefix="base/m/1", licence="mit")


def new_job(number: int, resources: ResourceSpec | None = None) -> Job:
    tunesmith = TunesmithSpec(resources=resources or ResourceSpec())
    spec = JobSpec(model="m", training_file="file-1", seed=1, method=MethodSpec(type="supervised"), tunesmith=tunesmith)
    return Job(f"ftjob-{number}", PROJECT, ORGANIZATION, spec, JobStatus.VALIDATING, 1, 0.0, BASE)


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"sqlite+aiosqlite:///{tmp_path}/jobs.db" if request.param == "sqlite" else request.getfixturevalue("postgres_url")


@pytest.fixture
async def store(url: str) -> AsyncIterator[Store]:
    store = Store(url)
    await store.migrate()
    async with store.begin() as tx:
        await tx.insert_organization(ORGANIZATION, "ours")
        await tx.insert_project(PROJECT, ORGANIZATION, "default", Quotas(queued_jobs=3, stored_bytes=30))
    yield store
    await store.close()


class Checks(QuotaChecks):
    """The checks as a use case has them, of a gateway of its own."""

    def __init__(self, store: Store) -> None:
        self.admission = Admission(store, Quotas())


async def outcome(check: Awaitable[None]) -> ErrorCode | None:
    try:
        await check
    except TunesmithError as error:
        return error.code
    return None


async def test_the_last_places_of_a_quota_are_given_away_once_by_two_gateways(store: Store) -> None:
    other = Store(store.url)

    async def create(store: Store, number: int) -> None:
        job = new_job(number)
        async with store.begin() as tx:
            project = await Checks(store).locked_project(tx, CALLER)
            await Checks(store).check_new_job(tx, project, job.spec)
            await asyncio.sleep(0.01)
            await tx.insert_job(job, "f", [])

    answers = await asyncio.gather(*(outcome(create((store, other)[n % 2], n)) for n in range(12)))
    assert sorted(map(str, answers)) == ["None"] * 3 + ["quota_exceeded"] * 9
    async with store.read() as tx:
        assert (await tx.usage(PROJECT)).queued_jobs == 3
    await other.close()


async def test_the_last_bytes_are_given_away_once(store: Store) -> None:
    async def create(number: int) -> None:
        async with store.begin() as tx:
            project = await Checks(store).locked_project(tx, CALLER)
            await Checks(store).check_stored_bytes(tx, project, 10)
            await asyncio.sleep(0.01)
            await tx.insert_file(File(f"file-{number}", PROJECT, "a", "fine-tune", 10, "0" * 64, f"files/{number}", 0.0))

    answers = await asyncio.gather(*(outcome(create(n)) for n in range(8)))
    assert sorted(map(str, answers)) == ["None"] * 3 + ["quota_exceeded"] * 5
    async with store.begin() as tx:
        assert (await tx.usage(PROJECT)).stored_bytes == 30
        await tx.delete_file(PROJECT, next(f"file-{n}" for n, answer in enumerate(answers) if answer is None))
        assert (await tx.usage(PROJECT)).stored_bytes == 20


async def test_gpu_hours_are_those_of_this_month_and_of_runs_that_go_on(store: Store) -> None:
    now = 1_764_000_000.0  # 24 November 2025
    begin = 1_761_955_200.0  # 1 November 2025, 00:00 UTC
    gpus = ResourceSpec(workers=2, gpus_per_worker=4)

    async def run(number: int, created: float, ended: float | None, status: JobStatus, resources: ResourceSpec) -> None:
        async with store.begin() as tx:
            await tx.insert_job(replace(new_job(number, resources), epoch=1, status=status), "f", [])
            await tx.insert_run(f"ftjob-{number}", 1, "")
            await tx.update_run(f"ftjob-{number}", 1, created_at=created, ended_at=ended)

    await run(1, begin - 7200, begin - 3600, JobStatus.SUCCEEDED, gpus)  # of the month before
    await run(2, begin - 3600, begin + 3600, JobStatus.SUCCEEDED, gpus)  # one hour of this one: 8
    await run(3, now - 1800, None, JobStatus.RUNNING, gpus)  # goes on: 4
    await run(4, now - 7200, now - 3600, JobStatus.FAILED, ResourceSpec())  # no GPU
    await run(5, now - 7200, None, JobStatus.FAILED, gpus)  # its end was never noted, and nothing of it was heard: 0
    async with store.read() as tx:
        tx.time = now
        assert await tx.gpu_hours(PROJECT) == pytest.approx(12.0)
        assert await tx.gpu_hours("proj_other") == 0.0


async def test_nobody_changes_or_forgets_what_was_logged(store: Store) -> None:
    async with store.begin() as tx:
        await tx.audit(CALLER, "job.created", "ftjob-1", {"model": "m"})
    for statement in (sa.update(t.audit_logs).values(type="x"), sa.delete(t.audit_logs)):
        with pytest.raises(DBAPIError, match="append-only"):
            async with store.begin() as tx:
                await tx.connection.execute(statement)
    async with store.read() as tx:
        page = await tx.list_audit_logs(ORGANIZATION, AuditFilter(), after=None, limit=10)
        (entry,) = page.items
        assert (entry.type, entry.key_id, entry.request_id, entry.project_name) == ("job.created", "k", "req_1", "default")
        assert (await tx.list_audit_logs("org-other", AuditFilter(), after=None, limit=10)).items == []
        with pytest.raises(ValueError, match="after"):
            await tx.list_audit_logs("org-other", AuditFilter(), after=entry.id, limit=10)


async def test_a_change_and_its_log_are_written_together_or_not_at_all(store: Store) -> None:
    async def change_and_fail() -> None:
        async with store.begin() as tx:
            await tx.insert_project("proj_2", ORGANIZATION, "other")
            await tx.audit(tenancy.operator(ORGANIZATION), "project.created", "proj_2")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await change_and_fail()
    async with store.read() as tx:
        assert await tx.project(ORGANIZATION, "proj_2") is None
        assert (await tx.list_audit_logs(ORGANIZATION, AuditFilter(), after=None, limit=10)).items == []


async def test_things_made_at_the_same_moment_are_paged_without_a_gap(store: Store) -> None:
    async with store.begin() as tx:
        for number in range(7):
            await tx.insert_key(f"k{number}", PROJECT, "n", "0" * 64, ["read"])
    seen: list[str] = []
    async with store.read() as tx:
        while True:
            page = await tx.list_keys(PROJECT, after=seen[-1] if seen else None, limit=3)
            seen += [key.id for key in page.items]
            if not page.has_more:
                break
    assert seen == [f"k{number}" for number in reversed(range(7))]


async def test_a_project_of_another_organization_is_unknown(store: Store) -> None:
    async with store.read() as tx:
        assert await tx.project("org-other", PROJECT) is None
        assert (await tx.list_projects("org-other", after=None, limit=10, archived=True)).items == []
        with pytest.raises(ValueError, match="after"):
            await tx.list_projects("org-other", after=PROJECT, limit=10, archived=True)


async def test_projects_from_before_have_an_organization_and_the_default_quotas(url: str) -> None:
    store = Store(url)

    def to_the_first(connection: sa.Connection) -> None:
        config = Config()
        config.set_main_option("script_location", str(Path(service.store.__file__).parent / "migrations"))
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")

    async with store._engine.begin() as connection:
        await connection.run_sync(to_the_first)
        old = {"id": PROJECT, "organization_id": ORGANIZATION, "name": "old", "created_at": 5.0}
        await connection.execute(sa.text("INSERT INTO projects VALUES (:id, :organization_id, :name, :created_at)"), old)
    await store.migrate()
    async with store.read() as tx:
        assert [(o.id, o.created_at) for o in await tx.organizations()] == [(ORGANIZATION, 5.0)]
        found = await tx.project(ORGANIZATION, PROJECT)
        assert found is not None
        assert (found.archived_at, found.quotas) == (None, Quotas())
    await store.close()


async def test_advancing_a_job_frees_its_place(store: Store) -> None:
    async with store.begin() as tx:
        job = await tx.insert_job(new_job(1), "f", [])
        job = await tx.apply(job, advance(job, JobStatus.QUEUED))
        assert (await tx.usage(PROJECT)).queued_jobs == 1
        job = await tx.apply(job, advance(job, JobStatus.STARTING))
        assert ((await tx.usage(PROJECT)).queued_jobs, (await tx.usage(PROJECT)).running_jobs) == (0, 1)


async def test_what_was_used_is_written_when_the_gateway_stops(store: Store) -> None:
    made = await tenancy.new_admin_key(store, ORGANIZATION)
    admission = Admission(store, Quotas())
    task = asyncio.create_task(admission.run())
    assert (await admission.admit(made.value, "req_1")).request_id == "req_1"
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    async with store.read() as tx:
        key = await tx.api_key(PROJECT, made.id)
        assert key is not None
        assert key.last_used_at == pytest.approx(tx.time, abs=5)
