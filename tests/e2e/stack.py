"""Drives a whole embedded stack as a user does: the `tunesmith` command and the official client."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from openai import OpenAI
from openai.types.fine_tuning import FineTuningJob

TUNESMITH = Path(sys.executable).parent / "tunesmith"


@dataclass
class Stack:
    """One data directory and what runs on it."""

    data_dir: Path
    env: dict[str, str]

    def command(self, *arguments: str, check: bool = True, timeout: float = 180) -> subprocess.CompletedProcess[str]:
        """Run `tunesmith …` on this data directory."""
        command = [str(TUNESMITH), *arguments, "--data-dir", str(self.data_dir)]
        done = subprocess.run(command, env=os.environ | self.env, capture_output=True, text=True, timeout=timeout)
        if check and done.returncode != 0:
            raise AssertionError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}\n{self.log_tail()}")
        return done

    def up(self) -> None:
        """Start, or start again after a kill."""
        self.command("up", "--detach", "--port", "0", "--grpc-port", "0")

    def down(self) -> None:
        """Stop everything."""
        self.command("down", check=False)

    def status(self) -> dict[str, Any]:
        """What `tunesmith status -o json` says."""
        return json.loads(self.command("status", "-o", "json", check=False).stdout)

    def client(self, *, strict: bool = True) -> OpenAI:
        """The unmodified official client; strict: every answer is checked against its types."""
        status = self.status()
        key = Path(status["api_key_file"]).read_text().strip()
        return OpenAI(base_url=status["base_url"], api_key=key, _strict_response_validation=strict)

    def log_tail(self) -> str:
        """The end of the gateway's log."""
        log = self.data_dir / "logs" / "gateway.log"
        return log.read_text(errors="replace")[-4000:] if log.exists() else ""


def kill(pids: list[int]) -> None:
    """kill -9 each that is still there."""
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def processes_of(run_id: str) -> list[psutil.Process]:
    """Every living process that was started for this run."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("TUNESMITH_RUN_ID") == run_id and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def until(what: str, holds: Callable[[], Any], timeout: float = 120, pause: float = 0.2) -> Any:
    """Wait until `holds` gives something true, and give it."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        value = holds()
        if value:
            return value
        time.sleep(pause)
    raise AssertionError(f"{what} did not come within {timeout:.0f} s")


def ended(client: OpenAI, job_id: str, timeout: float = 500) -> FineTuningJob:
    """The job once it has ended, however."""
    return until(
        f"the end of {job_id}",
        lambda: (job := client.fine_tuning.jobs.retrieve(job_id)).status in ("succeeded", "failed", "cancelled") and job,
        timeout,
    )


def at_step(client: OpenAI, job_id: str, step: int, timeout: float = 120) -> None:
    """Wait until the job has done this many steps."""

    def there() -> bool:
        job = client.fine_tuning.jobs.retrieve(job_id)
        assert job.status not in ("failed", "cancelled"), job.error
        assert job.status != "succeeded", "the job ended before it could be disturbed"
        assert job.model_extra is not None
        return job.model_extra["tunesmith"]["progress"]["step"] >= step

    until(f"step {step}", there, timeout, pause=0.05)


def artifacts(client: OpenAI, job_id: str) -> dict[str, str]:
    """sha256 of each published file by its name."""
    answer = client.get(f"/fine_tuning/jobs/{job_id}/artifacts", cast_to=dict[str, Any])
    return {item["name"]: item["sha256"] for item in answer["data"]}
