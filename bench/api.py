"""How fast the gateway answers by itself: jobs are stored, none is started.

For SQLite and PostgreSQL, with a thousand and with a hundred thousand stored jobs: requests/s, p50 and p99 of create, get, list and
events, and of an event's way to 200 watchers. Client, gateway and database share the machine, so the figures compare with each
other, not with a cluster's. Prints a table and writes bench/results/api.json.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import secrets
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import aiohttp
import sqlalchemy as sa
from rich.console import Console
from rich.table import Table
from sqlalchemy.ext.asyncio import create_async_engine

from service.jobs import JobStatus, Notice
from service.store import Store
from service.store import tables as t
from tests.pg import running_postgres

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"
TUNESMITH = Path(sys.executable).parent / "tunesmith"
MODEL = "smollm2-135m-instruct"
ROWS = ROOT / "examples" / "tweets" / "tweets-test.jsonl"
CONNECTIONS = 16
WATCHERS = 200
EVENTS = 50
"""Events that the watchers are sent."""
COPIES = 500
"""Rows of one INSERT."""
console = Console()
Ask = Callable[[aiohttp.ClientSession], Awaitable[None]]


@dataclass(frozen=True)
class Figure:
    """One operation at one size; times in milliseconds."""

    database: str
    jobs: int
    operation: str
    per_second: float
    p50: float
    p99: float


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, nargs="+", default=[1_000, 100_000])
    parser.add_argument("--databases", nargs="+", choices=("sqlite", "postgresql"), default=["sqlite", "postgresql"])
    parser.add_argument("--requests", type=int, default=1000, help="of each operation")
    given = parser.parse_args()
    figures: list[Figure] = []
    for database in given.databases:
        for jobs in given.jobs:
            console.print(f"{database}, {jobs:,} jobs")
            figures += _measured(database, jobs, given.requests)
    _show(figures)
    return 0


def _measured(database: str, jobs: int, requests: int) -> list[Figure]:
    server = running_postgres(durable=True) if database == "postgresql" else nullcontext(None)
    with (
        tempfile.TemporaryDirectory(prefix="tunesmith-api-", ignore_cleanup_errors=True) as scratch,
        server as url,
        _gateway(Path(scratch) / "data", url) as (base_url, key, database_url),
    ):
        return asyncio.run(_measure(base_url, key, database_url, database, jobs, requests))


@contextmanager
def _gateway(data_dir: Path, database_url: str | None) -> Iterator[tuple[str, str, str]]:
    """A real gateway whose Ray cluster is away, so that nothing starts: address, key, database."""
    environment = os.environ | {
        "TUNESMITH_RAY_ADDRESS": "http://127.0.0.1:9",
        "TUNESMITH_QUOTA_REQUESTS_PER_MINUTE": "unlimited",
        "TUNESMITH_LOG_LEVEL": "warning",
        **({"TUNESMITH_DATABASE_URL": database_url} if database_url else {}),
    }
    subprocess.run([TUNESMITH, "models", "pull", MODEL, "--data-dir", data_dir], check=True, stdout=subprocess.DEVNULL, env=environment)
    command = [sys.executable, "-m", "service.gateway", "--data-dir", str(data_dir), "--port", "0", "--grpc-port", "0"]
    process = subprocess.Popen([*command, "--log-file", str(data_dir / "gateway.log")], env=environment)
    try:
        state = data_dir / "stack.json"
        while not state.exists():
            if process.poll() is not None:
                raise SystemExit(f"the gateway ended with status {process.returncode}")
            time.sleep(0.1)
        facts = json.loads(state.read_text())
        yield (
            facts["base_url"],
            Path(facts["api_key_file"]).read_text().strip(),
            database_url or f"sqlite+aiosqlite:///{data_dir}/tunesmith.db",
        )
    finally:
        process.terminate()
        process.wait(60)


async def _measure(base_url: str, key: str, database_url: str, database: str, jobs: int, requests: int) -> list[Figure]:
    headers = {"authorization": f"Bearer {key}"}
    connector = aiohttp.TCPConnector(limit=WATCHERS + CONNECTIONS)
    async with aiohttp.ClientSession(headers=headers, connector=connector, timeout=aiohttp.ClientTimeout(total=120)) as http:
        file_id, first = await _first_job(http, base_url)
        await _fill(database_url, first, jobs)
        body = {"model": MODEL, "training_file": file_id}
        asks: dict[str, Ask] = {
            "create": lambda http: _ask(http, "POST", f"{base_url}/fine_tuning/jobs", json=body),
            "get": lambda http: _ask(http, "GET", f"{base_url}/fine_tuning/jobs/{first}"),
            "list (20)": lambda http: _ask(http, "GET", f"{base_url}/fine_tuning/jobs"),
            "events (20)": lambda http: _ask(http, "GET", f"{base_url}/fine_tuning/jobs/{first}/events"),
        }
        figures = []
        for operation, ask in asks.items():
            seconds, times = await _load(http, ask, requests)
            figures.append(_figure(database, jobs, operation, len(times) / seconds, times))
        seconds, times = await _fan_out(http, f"{base_url}/fine_tuning/jobs/{first}/stream", database_url, first)
        return [*figures, _figure(database, jobs, f"event to {WATCHERS} watchers", len(times) / seconds, times)]


async def _first_job(http: aiohttp.ClientSession, base_url: str) -> tuple[str, str]:
    """A file, and a job on it that is queued for good."""
    form = aiohttp.FormData({"purpose": "fine-tune"})
    form.add_field("file", ROWS.read_bytes(), filename="rows.jsonl")
    async with http.post(f"{base_url}/files", data=form) as answer:
        file_id = (await answer.json())["id"]
    async with http.post(f"{base_url}/fine_tuning/jobs", json={"model": MODEL, "training_file": file_id}) as answer:
        job_id = (await answer.json())["id"]
    while True:
        async with http.get(f"{base_url}/fine_tuning/jobs/{job_id}") as answer:
            if (await answer.json())["status"] == "queued":
                return file_id, job_id
        await asyncio.sleep(0.2)


async def _fill(database_url: str, job_id: str, jobs: int) -> None:
    """Copies of the job as finished ones, with its events."""
    engine = create_async_engine(database_url)
    async with engine.begin() as connection:
        job = dict((await connection.execute(sa.select(t.jobs).where(t.jobs.c.id == job_id))).mappings().one())
        events = [dict(row) for row in (await connection.execute(sa.select(t.events).where(t.events.c.job_id == job_id))).mappings()]
    job |= {"status": JobStatus.CANCELLED.value, "finished_at": job["created_at"], "reason": ""}
    job = {name: sa.null() if value is None else value for name, value in job.items() if name != "n"}
    for start in range(0, jobs, COPIES):
        ids = [f"ftjob-{secrets.token_hex(12)}" for _ in range(min(COPIES, jobs - start))]
        copies = [event | {"job_id": copy, "id": f"ftevent-{secrets.token_hex(12)}"} for copy in ids for event in events]
        async with engine.begin() as connection:
            await connection.execute(sa.insert(t.jobs).values([job | {"id": copy} for copy in ids]))
            await connection.execute(sa.insert(t.events), copies)
    await engine.dispose()


async def _ask(http: aiohttp.ClientSession, method: str, url: str, **options: Any) -> None:
    async with http.request(method, url, **options) as answer:
        await answer.read()
        if answer.status != 200:
            raise SystemExit(f"{method} {url}: HTTP {answer.status}: {(await answer.text())[:300]}")


async def _load(http: aiohttp.ClientSession, ask: Ask, requests: int) -> tuple[float, list[float]]:
    """Seconds in all, and of each request, over CONNECTIONS at a time."""
    times: list[float] = []

    async def client(count: int) -> None:
        for _ in range(count):
            began = time.perf_counter()
            await ask(http)
            times.append(time.perf_counter() - began)

    began = time.perf_counter()
    await asyncio.gather(*(client(requests // CONNECTIONS) for _ in range(CONNECTIONS)))
    return time.perf_counter() - began, times


async def _fan_out(http: aiohttp.ClientSession, url: str, database_url: str, job_id: str) -> tuple[float, list[float]]:
    """Seconds from an event's commit, by another process than the gateway, to each watcher."""
    sent: dict[str, float] = {}
    times: list[float] = []
    ready = asyncio.Semaphore(0)

    async def watch() -> None:
        seen = 0
        async with http.get(url, headers={"accept": "text/event-stream"}) as answer:
            ready.release()
            async for line in answer.content:
                if line.startswith(b"data:") and b'"sent ' in line:
                    times.append(time.perf_counter() - sent[json.loads(line[5:])["message"]])
                    seen += 1
                    if seen == EVENTS:
                        return

    watchers = [asyncio.create_task(watch()) for _ in range(WATCHERS)]
    for _ in watchers:
        await ready.acquire()
    await asyncio.sleep(1)
    began = time.perf_counter()
    await _tell(database_url, job_id, sent)
    await asyncio.gather(*watchers)
    return time.perf_counter() - began, times


async def _tell(database_url: str, job_id: str, sent: dict[str, float]) -> None:
    """Write events as another gateway would."""
    store = Store(database_url)
    for number in range(EVENTS):
        message = f"sent {number}"
        async with store.begin() as tx:
            job = await tx.any_job(job_id, lock=True)
            await tx.apply(job, job, [Notice(message)])
            sent[message] = time.perf_counter()
        await asyncio.sleep(0.2)
    await store.close()


def _figure(database: str, jobs: int, operation: str, per_second: float, times: list[float]) -> Figure:
    cuts = statistics.quantiles(times, n=100)
    return Figure(database, jobs, operation, per_second, 1000 * cuts[49], 1000 * cuts[98])


def _show(figures: list[Figure]) -> None:
    table = Table("database", "stored jobs", "operation", "a second", "p50 ms", "p99 ms", title="The gateway alone")
    for one in figures:
        table.add_row(one.database, f"{one.jobs:,}", one.operation, f"{one.per_second:,.0f}", f"{one.p50:.1f}", f"{one.p99:.1f}")
    console.print(table)
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "api.json").write_text(json.dumps([asdict(one) for one in figures], indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
