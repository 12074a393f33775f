"""Gateways as processes that a test may kill, stop and continue, on one database, one object store and one set of runs.

`Site` is what outlives them all and says afterwards whether all is well; `GatewayProcess` is one of them.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import sqlalchemy as sa

from service.jobs import FINAL
from service.store import tables as t
from tests.fake_run import until
from tests.faults.process_runtime import live_runs, process_of
from tests.faults.run_process import chain
from tests.soundness import assert_manifests, assert_one_end, assert_untold, rows
from trainers.storage import Storage, open_storage

ROOT = Path(__file__).parents[2]
LEASE = 1.5
"""Seconds: a lease that runs out within a test's patience."""
QUICK = {
    "TUNESMITH_HEARTBEAT": "PT0.3S",
    "TUNESMITH_LEASE_TTL": f"PT{LEASE}S",
    "TUNESMITH_RETRY_BACKOFF": "PT0.1S",
    "TUNESMITH_CANCEL_GRACE": "PT1S",
    "TUNESMITH_SWEEP_INTERVAL": "PT0.3S",
    "TUNESMITH_MIN_FREE_BYTES": "0",
    "TUNESMITH_QUOTA_REQUESTS_PER_MINUTE": "unlimited",
}


@dataclass
class Site:
    """What gateways share, below one directory. `database_url` None is SQLite, which has one gateway at a time."""

    directory: Path
    database_url: str | None
    storage_url: str
    catalogue: Path
    settings: dict[str, str] = field(default_factory=dict[str, str])
    gateways: dict[str, GatewayProcess] = field(default_factory=dict[str, "GatewayProcess"])

    @property
    def runs(self) -> Path:
        return self.directory / "runs"

    @property
    def storage(self) -> Storage:
        return open_storage(self.storage_url)

    @property
    def database(self) -> str:
        return self.database_url or f"sqlite:///{self.directory / 'one' / 'tunesmith.db'}"

    def gateway(self, name: str = "one") -> GatewayProcess:
        """The gateway of that name, made at first use, not started."""
        if name not in self.gateways:
            self.gateways[name] = GatewayProcess(self, self.directory / name)
        return self.gateways[name]

    def rows(self, query: sa.Select[Any]) -> list[Any]:
        """What the database says, past every gateway."""
        return rows(self.database, query)

    def change(self, statement: sa.Update) -> None:
        """Change the database, past every gateway."""
        engine = sa.create_engine(self.database)
        with engine.begin() as connection:
            connection.execute(statement)
        engine.dispose()

    def jobs(self) -> dict[str, Any]:
        """Each job's row by its id."""
        return {row.id: row for row in self.rows(sa.select(t.jobs))}

    def started(self, job_id: str) -> list[str]:
        """Every run of the job that was ever started."""
        return sorted(home.name for home in self.runs.glob(f"{job_id}-*"))

    def key(self) -> str:
        return next(self.directory.glob("*/api-key")).read_text().strip()

    def end(self) -> None:
        """Stop every gateway, and every run that a failed test has left."""
        for gateway in self.gateways.values():
            gateway.end()
        for home in self.runs.glob("*"):
            if (process := process_of(home)) is not None:
                os.killpg(process.pid, signal.SIGKILL)

    # What must hold after every fault

    def assert_sound(self, accepted: list[str], status: str | None = "succeeded") -> None:
        """No accepted job lost, one end each, whole results by the run that counts, nothing left behind, no secret told.

        Gateways must be stopped. `status` is the one that every job must have; None takes any that is final.
        """
        jobs = self.jobs()
        assert set(accepted) <= set(jobs), "an accepted job is lost"
        for job_id in accepted:
            job = jobs[job_id]
            assert job.status == status if status else job.status in {s.value for s in FINAL}, (job_id, job.status, job.reason, job.error)
            self._assert_one_end(job)
        assert_manifests(self.storage)
        self._assert_nothing_left()
        self._assert_nothing_told()

    def _assert_one_end(self, job: Any) -> None:
        assert_one_end(self.database, job)
        if job.status == "succeeded":
            published = self.storage.get(f"models/{job.id}/{job.epoch}/adapter/adapter_model.safetensors").decode()
            assert published == chain(job.id, job.resolved["steps"]), "not what an undisturbed job publishes"
            kept = self.rows(sa.select(t.checkpoints.c.epoch).where(t.checkpoints.c.job_id == job.id))
            assert all(row.epoch <= job.epoch for row in kept)

    def _assert_nothing_left(self) -> None:
        assert live_runs(self.runs) == []
        for gateway in self.gateways.values():
            assert list((gateway.data_dir / "spool").glob("*")) == []
        if self.storage_url.startswith("file://"):
            assert list((Path(self.storage_url.removeprefix("file://")) / ".incoming").glob("*")) == []

    def _assert_nothing_told(self) -> None:
        secrets = {self.key(), *(self.storage.get(info.key).decode() for info in self.storage.list("runs/") if info.key.endswith("/token"))}
        assert_untold(secrets, [*self.directory.glob("*/gateway.log*"), *self.runs.glob("*/log")])


@dataclass
class GatewayProcess:
    """One gateway of a site: its own data directory, the same ports at every start."""

    site: Site
    data_dir: Path
    environment: dict[str, str] = field(default_factory=dict[str, str])
    process: subprocess.Popen[bytes] | None = None

    def launch(self, **environment: str) -> None:
        """Start it; return at once."""
        self.data_dir.mkdir(parents=True, exist_ok=True)
        own = {name: value for name, value in os.environ.items() if not name.startswith("TUNESMITH_")}
        shared = {
            "TUNESMITH_STORAGE_URL": self.site.storage_url,
            "TUNESMITH_CATALOGUE": str(self.site.catalogue),
            "FAULTS_RUNS": str(self.site.runs),
        }
        if self.site.database_url:
            shared["TUNESMITH_DATABASE_URL"] = self.site.database_url
        command = [
            sys.executable,
            "-m",
            "tests.faults.gateway_process",
            "--data-dir",
            str(self.data_dir),
            "--port",
            "0",
            "--grpc-port",
            "0",
        ]
        with (self.data_dir / "gateway.log").open("ab") as log:
            env = own | QUICK | shared | self.site.settings | self.environment | environment
            self.process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=env)

    def start(self, **environment: str) -> GatewayProcess:
        """Start it, and wait until it answers."""
        self.launch(**environment)
        until("a gateway that answers", self.answers)
        return self

    def answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.log()[-3000:]
        try:
            state = json.loads((self.data_dir / "stack.json").read_text())
            return state["pid"] == self.process.pid and httpx.get(f"{self.url}/healthz", timeout=5).status_code == 200
        except (OSError, ValueError, httpx.HTTPError):
            return False

    def answers_at_all(self) -> bool:
        """Whether it still takes connections."""
        try:
            return bool(httpx.get(f"{self.url}/healthz", timeout=5))
        except httpx.HTTPError:
            return False

    @property
    def url(self) -> str:
        return str(json.loads((self.data_dir / "stack.json").read_text())["base_url"]).removesuffix("/v1")

    @property
    def rpc_address(self) -> str:
        return str(json.loads((self.data_dir / "stack.json").read_text())["grpc_address"])

    def log(self) -> str:
        return (self.data_dir / "gateway.log").read_text(errors="replace")

    def signal(self, number: int) -> None:
        """Send it a signal."""
        assert self.process is not None
        self.process.send_signal(number)

    def kill(self) -> None:
        """kill -9, and wait until it is gone."""
        self.signal(signal.SIGKILL)
        self.gone()

    def terminate(self) -> int:
        """SIGTERM; its exit status."""
        self.signal(signal.SIGTERM)
        return self.gone()

    def gone(self) -> int:
        """Wait for its end; its exit status."""
        assert self.process is not None
        return self.process.wait(60)

    def end(self) -> None:
        """Stop it, whatever its state."""
        if self.process is None or self.process.poll() is not None:
            return
        with suppress(ProcessLookupError):
            self.signal(signal.SIGCONT)
        try:
            self.terminate()
        except subprocess.TimeoutExpired:
            self.kill()

    def http(self) -> httpx.Client:
        """A plain client with the key; close it."""
        return httpx.Client(base_url=self.url, headers={"authorization": f"Bearer {self.site.key()}"}, timeout=30)
