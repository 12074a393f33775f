"""Rows 24, 25 and 40: SQLite is locked, damaged, on a full disk; a migration is killed midway on either database."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from service.store import Store, engine
from service.store.tables import metadata
from tests.faults.posting import JOBS, job_body, post, upload
from tests.faults.process import ROOT, Site
from tests.gateway import running_gateway
from tests.small_disk import small_disk_at

STATEMENTS = (2, 7, 13, 21, 30, 39)
"""Of a migration from nothing, at which it is killed."""


def test_24_sqlite_is_locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process holds the write lock for longer than a request waits for it, which is a second here and ten otherwise."""
    monkeypatch.setattr(engine, "WAIT_SECONDS", 1)
    with running_gateway(tmp_path) as gateway, gateway.http() as client:
        body = job_body(upload(client))
        with closing(sqlite3.connect(gateway.settings.data_dir / "tunesmith.db", isolation_level=None)) as other:
            other.execute("BEGIN EXCLUSIVE")
            answer = client.post(JOBS, json=body, headers={"idempotency-key": "k"})
            assert (answer.status_code, int(answer.headers["retry-after"]) > 0) == (503, True)
            assert client.get(JOBS).status_code == 200, "readers do not wait for a writer"
            other.execute("ROLLBACK")
        job_id = post(client, body, "k")
        assert [job["id"] for job in client.get(JOBS).json()["data"]] == [job_id]


def test_24_a_corrupt_page(new_site: Callable[..., Site]) -> None:
    site = new_site()
    gateway = site.gateway().start()
    with gateway.http() as client:
        upload(client)
    assert gateway.terminate() == 0
    database = gateway.data_dir / "tunesmith.db"
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    sound = database.read_bytes()
    database.write_bytes(sound[:8192] + os.urandom(4096) + sound[12288:])
    said = len(gateway.log())
    gateway.launch()
    assert gateway.gone() == 2
    lines = gateway.log()[said:].splitlines()
    assert [line for line in lines if line.startswith("tunesmith: ")] == lines[-1:], lines
    assert lines[-1].startswith("tunesmith: the database is damaged (")
    assert "restore it from a backup" in lines[-1]
    database.write_bytes(sound)
    gateway.start()
    with gateway.http() as client:
        assert len(client.get("/v1/files").json()["data"]) == 1


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk_at(tmp_path / "disk", megabytes=8) as disk:
        yield disk


def test_25_the_database_on_a_full_disk(new_site: Callable[..., Site], small_disk: Path) -> None:
    """Jobs are posted until the disk is full: each refusal says so, and what was accepted is there once there is room."""
    database = small_disk / "jobs.db"
    filler = small_disk / "filler"
    filler.write_bytes(bytes(4_000_000))
    site = new_site(f"sqlite+aiosqlite:///{database}", FAULTS_CPUS="0")  # the jobs stay queued
    gateway = site.gateway().start()
    with gateway.http() as client:
        body = job_body(upload(client), metadata={f"{n}": "x" * 500 for n in range(16)})
        accepted: list[str] = []
        for number in range(2000):
            answer = client.post(JOBS, json=body, headers={"idempotency-key": f"k{number}"})
            if answer.status_code != 200:
                break
            accepted.append(answer.json()["id"])
        assert answer.status_code in (503, 507), answer.text
        assert accepted
        assert client.get(JOBS).status_code == 200, "what there is can be read"
        filler.unlink()
        accepted.append(post(client, body, f"k{number}"))
        for job_id in accepted:
            assert client.post(f"{JOBS}/{job_id}/cancel").status_code == 200
    assert gateway.terminate() == 0
    with closing(sqlite3.connect(database)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert {row[0] for row in connection.execute("SELECT id FROM jobs")} == set(accepted)


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
async def test_40_a_migration_is_killed_midway(request: pytest.FixtureRequest, kind: str, tmp_path: Path) -> None:
    urls = [
        request.getfixturevalue("new_postgres_database")() if kind == "postgresql" else f"sqlite+aiosqlite:///{tmp_path}/{number}.db"
        for number in STATEMENTS
    ]
    pairs = [word for url, number in zip(urls, STATEMENTS, strict=True) for word in (url, str(number))]
    done = subprocess.run([sys.executable, "-m", "tests.faults.killed_migration", *pairs], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == len(STATEMENTS), done.stderr
    for url in urls:
        store = Store(url)
        await store.migrate()
        async with store._engine.connect() as connection:
            assert await connection.run_sync(difference) == []
        await store.close()


def difference(connection: Any) -> list[Any]:
    return compare_metadata(MigrationContext.configure(connection, opts={"compare_type": True}), metadata)
