"""Kills gateways and runs at random, while jobs are posted all the time; then counts what was lost and what was doubled.

`make chaos` runs it at full length, tests/faults/test_chaos.py shortened. Gateways (each with its scheduler) and runs are real
processes, database and storage are real. Runs are light ones of this machine and not Ray's: tests/faults/run_process.py.
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from service.logs import log_to
from tests.fake_run import until
from tests.faults.posting import JOBS, job_body, upload
from tests.faults.prepared import Prepared, prepare
from tests.faults.process import GatewayProcess, Site
from tests.faults.process_runtime import process_of
from tests.faults.tcp_proxy import TcpProxy, tcp_proxy
from tests.pg import running_postgres

UNFINISHED = 8
"""Jobs that are on their way at a time; a poster waits while there are more."""
GATEWAY, RUN = "gateway", "run"
PATIENCE = 120.0
"""Seconds for any recovery, on a machine that does other things besides."""


@dataclass
class Tally:
    """What came of it."""

    kills: Counter[str] = field(default_factory=Counter[str])
    recoveries: list[float] = field(default_factory=list[float])
    lost: list[str] = field(default_factory=list[str])
    doubled: list[str] = field(default_factory=list[str])
    accepted: int = 0
    ends: Counter[str] = field(default_factory=Counter[str])
    runs: int = 0

    def __str__(self) -> str:
        p50, p99 = statistics.median(self.recoveries), statistics.quantiles(self.recoveries, n=100, method="inclusive")[98]
        kills, ends = (", ".join(f"{count} {name}" for name, count in counter.items()) for counter in (self.kills, self.ends))
        return "\n".join(
            [
                f"kills         {self.kills.total()} ({kills})",
                f"jobs          {self.accepted} accepted, {self.runs} runs ({ends})",
                f"lost          {len(self.lost)}",
                f"doubled       {len(self.doubled)}",
                f"recovery      p50 {p50:.1f} s, p99 {p99:.1f} s, worst {max(self.recoveries):.1f} s",
            ]
        )


class Posters:
    """Threads that post jobs, each under a key of its own, and under the same key until it is accepted; some keys twice."""

    def __init__(self, site: Site, body: dict[str, Any], threads: int, seed: int) -> None:
        self._site, self._body, self._seed = site, body, seed
        self.accepted: dict[str, str] = {}
        self.doubled: list[str] = []
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._post_on, args=(number,)) for number in range(threads)]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """No further keys; those that were begun are accepted first."""
        self._over.set()
        for thread in self._threads:
            thread.join(PATIENCE)
            assert not thread.is_alive()

    def _post_on(self, number: int) -> None:
        dice, gateways = random.Random(self._seed + number), itertools.cycle(self._site.gateways.values())
        for count in itertools.count():
            if self._over.is_set():
                return
            key = f"{number}-{count}"
            self.accepted[key] = self._accepted(key, gateways)
            again = dice.choice(list(self.accepted)) if dice.random() < 0.2 else key
            if again != key and self._accepted(again, gateways) != self.accepted[again]:
                self.doubled.append(again)
            self._over.wait(dice.uniform(0, 0.5))
            while not self._over.is_set() and self._unfinished() > UNFINISHED:
                self._over.wait(0.2)

    def _accepted(self, key: str, gateways: Iterator[GatewayProcess]) -> str:
        while True:
            with suppress(httpx.TransportError), next(gateways).http() as client:
                answer = client.post(JOBS, json=self._body | {"metadata": {"key": key}}, headers={"idempotency-key": key})
                if answer.status_code == 200:
                    return answer.json()["id"]
                assert answer.status_code == 503, answer.text
            time.sleep(0.1)

    def _unfinished(self) -> int:
        return sum(job.finished_at is None for job in self._site.jobs().values())


@dataclass
class Chaos:
    """One loop of kills."""

    site: Site
    front: TcpProxy
    dice: random.Random
    tally: Tally = field(default_factory=Tally)

    def loop(self, kills: int) -> None:
        """Kill, wait for the recovery, and again."""
        while self.tally.kills.total() < kills:
            time.sleep(self.dice.uniform(0, 1.0))
            victims = [self._gateway, self._run] if self.dice.random() < 0.8 else [self._both]
            seconds = self.dice.choice(victims)()
            if seconds is not None:
                self.tally.recoveries.append(seconds)
                jobs = self.site.jobs().values()
                ended = sum(job.finished_at is not None for job in jobs)
                say(f"kill {self.tally.kills.total()}/{kills}: back after {seconds:.1f} s; {len(jobs)} jobs, {ended} ended")

    def _gateway(self) -> float | None:
        """A supervisor starts it again at once, and now and then it is killed while it starts."""
        gateway = self.dice.choice(list(self.site.gateways.values()))
        began = time.monotonic()
        self._killed(gateway)
        gateway.launch()
        if self.dice.random() < 0.2:
            time.sleep(self.dice.uniform(0, 1.5))
            self._killed(gateway)
            gateway.launch()
        until("a gateway that answers", gateway.answers, PATIENCE, pause=0.05)
        return time.monotonic() - began

    def _killed(self, gateway: GatewayProcess) -> None:
        gateway.kill()
        self.tally.kills[GATEWAY] += 1

    def _run(self) -> float | None:
        """Back means that the job's next run has started, or that the job had ended."""
        job_id, epoch = self._strike()
        began = time.monotonic()

        def back() -> bool:
            job = self.site.jobs()[job_id]
            return job.finished_at is not None or (job.epoch > epoch and job.status == "running")

        if not job_id:
            return None
        until(f"the next run of {job_id}", back, PATIENCE, pause=0.05)
        return time.monotonic() - began

    def _both(self) -> float | None:
        """The run dies while nobody looks."""
        self._strike()
        return self._gateway()

    def _strike(self) -> tuple[str, int]:
        """kill -9 a run that lives; its job and epoch, or none when none lives."""
        alive = [home for home in self.site.runs.glob("*") if not (home / "exit").exists() and process_of(home) is not None]
        if not alive:
            return "", 0
        home = self.dice.choice(sorted(alive))
        if (process := process_of(home)) is not None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
                self.tally.kills[RUN] += 1
        job_id, _, epoch = home.name.rpartition("-")
        return job_id, int(epoch)


def run(prepared: Prepared, directory: Path, database_url: str | None, *, kills: int, seed: int, gateways: int) -> Tally:
    """The whole loop, and what is left of it. Raises AssertionError when an end is not sound."""
    with site_of(prepared, directory, database_url, gateways) as (site, front):
        chaos = Chaos(site, front, random.Random(seed))
        with site.gateway("one").http() as client:
            body = job_body(upload(client), epochs=2, every=4)
        posters = Posters(site, body, threads=3, seed=seed)
        try:
            chaos.loop(kills)
        finally:
            posters.stop()
        accepted, tally = posters.accepted, chaos.tally
        with suppress(AssertionError):  # those that have no end then are lost
            until("every end", lambda: all(job.finished_at for job in site.jobs().values()), PATIENCE, pause=0.2)
        for gateway in site.gateways.values():
            gateway.terminate()
        jobs = site.jobs()
        keys = Counter(job.spec["metadata"]["key"] for job in jobs.values())
        tally.accepted = len(accepted)
        tally.lost = [job_id for job_id in accepted.values() if job_id not in jobs or jobs[job_id].finished_at is None]
        tally.doubled = posters.doubled + [key for key, count in keys.items() if count > 1]
        tally.ends = Counter(f"failed: {job.error['code']}" if job.error else job.status for job in jobs.values())
        tally.runs = sum(job.epoch for job in jobs.values())
        if not tally.lost:
            assert set(jobs) == set(accepted.values())
            site.assert_sound(list(jobs), status=None)
        return tally


@contextmanager
def site_of(prepared: Prepared, directory: Path, database_url: str | None, gateways: int) -> Iterator[tuple[Site, TcpProxy]]:
    """Gateways that answer, behind one address for runs; everything is ended with the block."""
    with tcp_proxy() as front:
        # What is measured is the service: a backoff that doubles with each kill of the same job would be most of it, and by chance
        # some job is struck three times before its first step, which is what quarantine is for.
        patient = {"TUNESMITH_MAX_RETRIES": "12", "TUNESMITH_QUARANTINE_AFTER": "12", "TUNESMITH_RETRY_BACKOFF": "PT0.001S"}
        site = prepared.site(directory, database_url, TUNESMITH_REPORT_ADDRESS=front.address, **patient)
        try:
            for name in ("one", "two")[:gateways]:
                host, _, port = site.gateway(name).start().rpc_address.rpartition(":")
                front.targets.append((host, int(port)))
            yield site, front
        finally:
            site.end()


def say(line: str) -> None:
    """Progress."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main() -> int:
    """Entry point; 1 when a job was lost or doubled."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--postgres", action="store_true", help="PostgreSQL and two gateways, in place of SQLite and one")
    given = parser.parse_args()
    log_to(None, "error")
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tunesmith-chaos-")))
        for name in ("prepared", "site"):
            (scratch / name).mkdir()
        url = stack.enter_context(running_postgres(durable=True)) if given.postgres else None
        tally = run(
            prepare(scratch / "prepared"), scratch / "site", url, kills=given.kills, seed=given.seed, gateways=2 if given.postgres else 1
        )
        say(f"seed          {given.seed}, {'PostgreSQL, 2 gateways' if url else 'SQLite, 1 gateway'}\n{tally}")
    return 1 if tally.lost or tally.doubled else 0


if __name__ == "__main__":
    sys.exit(main())
