"""Rows 20 to 23: PostgreSQL goes away, loses an answer, undoes a transaction, has no connection left."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa

from service.store import Store, StoreUnavailable, engine
from service.store import tables as t
from tests.fake_run import until
from tests.faults.posting import JOBS, ended, job_body, post, upload
from tests.faults.process import LEASE, Site
from tests.faults.process_runtime import process_of
from tests.faults.tcp_proxy import tcp_proxy
from tests.gateway import Gateway, running_gateway
from tests.pg import PostgresServer, new_database, postgres_server


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    """One that these tests may stop."""
    with postgres_server() as running:
        yield running


def assert_away(answer: httpx.Response) -> None:
    """The refusal of a service whose database is away: the client may ask again, and is told when."""
    assert answer.status_code == 503, answer.text
    assert int(answer.headers["retry-after"]) > 0
    assert "SELECT" not in answer.text


def step(site: Site, job_id: str) -> int:
    return site.jobs()[job_id].progress["step"] or 0


def test_20_postgres_is_restarted(new_site: Callable[..., Site], server: PostgresServer) -> None:
    site = new_site(new_database(server.url), FAULTS_STEP_SECONDS="0.05")
    gateway = site.gateway().start()
    with gateway.http() as client:
        file = upload(client)
        job_id = post(client, job_body(file, epochs=6), "k")
        until("the run", lambda: step(site, job_id) > 8, pause=0.1)
        server.stop()
        assert_away(client.get(JOBS))
        assert_away(client.post(JOBS, json=job_body(file)))
        assert process_of(site.runs / f"{job_id}-1") is not None, "training goes on"
        server.start()
        ended(client, job_id)
    assert site.started(job_id) == [f"{job_id}-1"]
    gateway.end()
    site.assert_sound([job_id])


def test_21_postgres_is_away_for_three_leases(new_site: Callable[..., Site], server: PostgresServer) -> None:
    """One run dies meanwhile, and is resumed once; the other one waits with its reports, and is left alone."""
    site = new_site(new_database(server.url), FAULTS_STEP_SECONDS="0.05")
    gateway = site.gateway().start()
    with gateway.http() as client:
        file = upload(client)
        lives, dies = (post(client, job_body(file, epochs=6), key) for key in ("lives", "dies"))
        until("both runs", lambda: min(step(site, lives), step(site, dies)) > 8, pause=0.1)
        server.stop()
        dead = process_of(site.runs / f"{dies}-1")
        assert dead is not None
        os.killpg(dead.pid, signal.SIGKILL)
        back = time.monotonic() + 3 * LEASE
        while time.monotonic() < back:
            assert_away(client.get(f"{JOBS}/{lives}"))
            time.sleep(0.3)
        server.start()
        for job_id in (lives, dies):
            ended(client, job_id)
    assert site.started(lives) == [f"{lives}-1"]
    assert site.started(dies) == [f"{dies}-1", f"{dies}-2"]
    [resumed] = site.rows(sa.select(t.runs.c.resumed_step).where(t.runs.c.job_id == dies, t.runs.c.epoch == 2))
    assert resumed.resumed_step >= 8
    gateway.end()
    site.assert_sound([lives, dies])


def test_22_the_reply_to_a_commit_is_lost(new_site: Callable[..., Site], postgres_url: str) -> None:
    """Of a post, a claim and a report, one after the other: each is read again, and nothing is done twice."""
    address, _, name = postgres_url.rpartition("@")[2].partition("/")
    with tcp_proxy(address) as proxy:
        site = new_site(f"postgresql+psycopg://postgres@{proxy.address}/{name}")
        gateway = site.gateway().start()
        with gateway.http() as client:
            file = upload(client)
            proxy.lose_commit_of("INSERT INTO jobs")
            assert_away(client.post(JOBS, json=job_body(file), headers={"idempotency-key": "k"}))
            [accepted] = site.jobs()
            assert post(client, job_body(file), "k") == accepted
            ended(client, accepted)
            jobs = [accepted]
            for number, statement in enumerate(("INSERT INTO runs", "UPDATE runs SET"), 1):
                proxy.lose_commit_of(statement)
                jobs.append(post(client, job_body(file), f"k{number}"))
                ended(client, jobs[-1])
                assert proxy.lost == number + 1
        assert set(site.jobs()) == set(jobs)
        assert all(site.started(job_id) == [f"{job_id}-1"] for job_id in jobs)
        gateway.end()
        site.assert_sound(jobs)


@pytest.fixture
def gateway(tmp_path: Path, postgres_url: str) -> Iterator[Gateway]:
    with running_gateway(tmp_path, database_url=postgres_url) as running:
        yield running


@contextmanager
def refusing(gateway: Gateway, sqlstate: str, times: int) -> Iterator[Callable[[], int]]:
    """A database that undoes the next posts of jobs, so many times; yields how many it has seen."""
    trigger = f"""
        CREATE SEQUENCE seen;
        CREATE FUNCTION undo() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            IF nextval('seen') <= {times} THEN RAISE EXCEPTION 'undone' USING ERRCODE = '{sqlstate}'; END IF; RETURN NEW;
        END $$;
        CREATE TRIGGER undone BEFORE INSERT ON jobs FOR EACH ROW EXECUTE FUNCTION undo();
    """
    database = sa.create_engine(str(gateway.settings.database_url), isolation_level="AUTOCOMMIT")
    with database.connect() as connection:
        connection.exec_driver_sql(trigger)
        yield lambda: connection.exec_driver_sql("SELECT last_value FROM seen").scalar_one()
        connection.exec_driver_sql("DROP TRIGGER undone ON jobs; DROP FUNCTION undo; DROP SEQUENCE seen")
    database.dispose()


def test_23_undone_transactions_are_tried_three_times_more(gateway: Gateway) -> None:
    with gateway.http() as client:
        body = job_body(upload(client))
        for sqlstate in ("40001", "40P01"):
            with refusing(gateway, sqlstate, times=3) as seen:
                job_id = post(client, body, sqlstate)
                assert seen() == 4
            with refusing(gateway, sqlstate, times=99) as seen:
                assert_away(client.post(JOBS, json=body, headers={"idempotency-key": f"not {sqlstate}"}))
                assert seen() == 4
            assert [job["id"] for job in client.get(JOBS, params={"limit": 1}).json()["data"]] == [job_id]
        assert len(client.get(JOBS).json()["data"]) == 2


def test_23_no_connection_is_left(gateway: Gateway) -> None:
    pool: Any = gateway.parts.store._engine.sync_engine.pool
    pool._timeout = 0.3

    async def held() -> tuple[int, int]:
        """What clients are told while every connection is in use, and once one is free again."""
        async with AsyncExitStack() as stack:
            for _ in range(20):
                await stack.enter_async_context(gateway.parts.store.read())
            busy = await asyncio.to_thread(ask)
        return busy, await asyncio.to_thread(ask)

    def ask() -> int:
        with gateway.http() as client:
            answer = client.get(JOBS)
            if answer.status_code != 200:
                assert_away(answer)
            return answer.status_code

    assert gateway.do(held()) == (503, 200)


async def test_13_a_process_stopped_within_a_transaction_loses_its_locks(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the scheduler that takes over would wait for the rows that the stopped one has locked."""
    monkeypatch.setattr(engine, "IDLE_SECONDS", 0.3)
    store, other = Store(postgres_url), Store(postgres_url)
    await store.migrate()

    async def lock(tx: Any) -> None:
        await tx.connection.execute(sa.select(t.projects).with_for_update())

    async with store.begin() as tx:
        await tx.insert_project("proj_1", "org-1", "one")

    async def stop_within_it() -> None:
        async with store.begin() as stopped:
            await lock(stopped)
            async with asyncio.timeout(30), other.begin() as tx:
                await lock(tx)
            await lock(stopped)

    with pytest.raises(StoreUnavailable):
        await stop_within_it()
    await store.close()
    await other.close()
