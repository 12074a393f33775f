"""What the service costs: R = (post to adapter in storage, warm service) / (bare script to adapter), the same job.

Both sides train the same rows with the same settings and must end with the same adapter, byte for byte. They take
turns, so that a noisy machine is noisy for both. Prints a table and writes bench/results/overhead.json.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openai import OpenAI
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
ROWS = ROOT / "examples" / "tweets" / "tweets-train.jsonl"
TUNESMITH = Path(sys.executable).parent / "tunesmith"
MODEL = "smollm2-135m-instruct"
RESULTS = ROOT / "bench" / "results"
SEED = 7
console = Console()


@dataclass(frozen=True)
class Round:
    """One turn of both sides, in seconds."""

    service: float
    bare: float
    same_adapter: bool

    @property
    def ratio(self) -> float:
        """R of this turn."""
        return self.service / self.bare


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=100, help="rows of the job: about a minute of training on 2 cores")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tunesmith-overhead-", ignore_cleanup_errors=True) as scratch:
        rows = Path(scratch) / "rows.jsonl"
        rows.write_bytes(b"".join(ROWS.read_bytes().splitlines(keepends=True)[: given.rows]))
        with running_service(Path(scratch) / "data") as client:
            measured = [_round(client, Path(scratch), rows, number) for number in range(1, given.rounds + 1)]
    _show(measured, given.rows)
    return 0 if all(one.same_adapter for one in measured) else 1


@contextmanager
def running_service(data_dir: Path) -> Iterator[OpenAI]:
    """The embedded stack with the base model, stopped at the end."""
    where = ("--data-dir", str(data_dir))
    subprocess.run([TUNESMITH, "models", "pull", MODEL, *where], check=True, stdout=subprocess.DEVNULL)
    try:
        subprocess.run([TUNESMITH, "up", "--detach", "--port", "0", "--grpc-port", "0", *where], check=True, stdout=subprocess.DEVNULL)
        status = json.loads(subprocess.run([TUNESMITH, "status", "-o", "json", *where], check=True, capture_output=True).stdout)
        yield OpenAI(base_url=status["base_url"], api_key=Path(status["api_key_file"]).read_text().strip())
    finally:
        subprocess.run([TUNESMITH, "down", *where], check=False, stdout=subprocess.DEVNULL)


def _round(client: OpenAI, scratch: Path, rows: Path, number: int) -> Round:
    console.print(f"round {number}: service", end="")
    job, service = _through_service(client, rows)
    console.print(f" {service:.1f} s, bare script", end="")
    bare, adapter = _bare(scratch, rows, job)
    console.print(f" {bare:.1f} s")
    return Round(service, bare, adapter == _adapter_sha256(client, job["id"]))


def _through_service(client: OpenAI, rows: Path) -> tuple[dict[str, Any], float]:
    """The finished job, and the seconds from the post of its file to its success."""
    began = time.perf_counter()
    file = client.files.create(file=rows, purpose="fine-tune")
    job = client.fine_tuning.jobs.create(
        model=MODEL,
        training_file=file.id,
        seed=SEED,
        method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 1, "batch_size": 8}}},
    )
    while job.status not in ("succeeded", "failed", "cancelled"):
        time.sleep(0.1)
        job = client.fine_tuning.jobs.retrieve(job.id)
    seconds = time.perf_counter() - began
    if job.status != "succeeded":
        raise SystemExit(f"the job ended as {job.status}: {job.error}")
    return job.model_dump(), seconds


def _bare(scratch: Path, rows: Path, job: dict[str, Any]) -> tuple[float, str]:
    """Seconds and the adapter's hash of a fresh process that does the same job."""
    record = _run_record(scratch, job["id"])
    order = {key: record["spec"][key] for key in ("seed", "resolved", "tunesmith")}
    order |= {"model_ref": record["spec"]["base_model"], "rows": str(rows)}
    path = scratch / "job.json"
    path.write_text(json.dumps(order))
    threads = record["spec"]["tunesmith"]["resources"]["cpus_per_worker"]
    command = [sys.executable, str(ROOT / "bench" / "bare.py"), "--objects", str(scratch / "data" / "objects"), "--job", str(path)]
    began = time.perf_counter()
    done = subprocess.run(
        [*command, "--threads", str(threads)],
        check=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(threads)},
    )
    return time.perf_counter() - began, json.loads(done.stdout.splitlines()[-1])["adapter_sha256"]


def _run_record(scratch: Path, job_id: str) -> dict[str, Any]:
    path = next((scratch / "data" / "objects" / "models" / job_id).glob("*/RUN.json"))
    return json.loads(path.read_text())


def _adapter_sha256(client: OpenAI, job_id: str) -> str:
    listed = client.get(f"/fine_tuning/jobs/{job_id}/artifacts", cast_to=dict[str, Any])["data"]
    return next(item["sha256"] for item in listed if item["name"] == "adapter/adapter_model.safetensors")


def _show(measured: list[Round], rows: int) -> None:
    table = Table("round", "service s", "bare s", "R", "same adapter", title=f"One job of {rows} rows through the warm service")
    for number, one in enumerate(measured, 1):
        table.add_row(str(number), f"{one.service:.1f}", f"{one.bare:.1f}", f"{one.ratio:.2f}", "yes" if one.same_adapter else "NO")
    median = statistics.median(one.ratio for one in measured)
    table.add_row("median", "", "", f"{median:.2f}", "")
    console.print(table)
    RESULTS.mkdir(parents=True, exist_ok=True)
    rounds = [{"service_seconds": one.service, "bare_seconds": one.bare, "ratio": one.ratio} for one in measured]
    result = {"rows": rows, "rounds": rounds, "median_ratio": median, "same_adapter": all(one.same_adapter for one in measured)}
    (RESULTS / "overhead.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
