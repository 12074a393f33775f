"""`make demo`: trains a small model on real tweets through the whole service and shows before and after.

Starts the embedded stack on a temporary data directory, does everything through the `tunesmith` command and the
official `openai` client, and stops what it started, also on Ctrl-C. The adapter stays in ./tunesmith-demo.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
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
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
TWEETS = ROOT / "examples" / "tweets"
TUNESMITH = Path(sys.executable).parent / "tunesmith"
MODEL = "smollm2-135m-instruct"
EPOCHS, BATCH_SIZE, LEARNING_RATE = 1, 8, 5e-4
VALIDATION_ROWS = 40
console = Console()


@dataclass(frozen=True)
class Service:
    """A running stack."""

    data_dir: Path
    base_url: str
    key_file: Path

    @property
    def client(self) -> OpenAI:
        """The official client; only its address and key are ours."""
        return OpenAI(base_url=self.base_url, api_key=self.key_file.read_text().strip())

    @property
    def base_model(self) -> Path:
        """Directory of the base model's files."""
        return next((self.data_dir / "objects" / "base" / MODEL).glob("*/config.json")).parent


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--to", type=Path, default=Path("tunesmith-demo"), help="where the adapter is put")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with running_service() as service:
            demonstrate(service, given.to)
    except KeyboardInterrupt:
        console.print("[yellow]Stopped; everything that was started is stopped too.")
        return 130
    except subprocess.CalledProcessError as error:
        console.print(f"[red]`{' '.join(map(str, error.cmd))}` ended with {error.returncode}. {error.stderr or ''}")
        return 1
    return 0


@contextmanager
def running_service() -> Iterator[Service]:
    """The embedded stack on a temporary data directory, stopped and removed at the end."""
    with tempfile.TemporaryDirectory(prefix="tunesmith-demo-", ignore_cleanup_errors=True) as scratch:
        data_dir = Path(scratch)
        console.print(f"[bold]1. The base model[/] {MODEL}")
        tunesmith("models", "pull", MODEL, "--data-dir", str(data_dir))
        console.print("[bold]2. The service[/] gateway, scheduler and a local Ray head")
        try:
            tunesmith("up", "--detach", "--port", "0", "--grpc-port", "0", "--data-dir", str(data_dir))
            status = json.loads(tunesmith("status", "-o", "json", "--data-dir", str(data_dir), quiet=True))
            yield Service(data_dir, status["base_url"], Path(status["api_key_file"]))
        finally:
            tunesmith("down", "--data-dir", str(data_dir))


def tunesmith(*arguments: str, quiet: bool = False) -> str:
    """Run the command; what it wrote to standard output. Ctrl-C reaches this process alone, which then cleans up."""
    command = [str(TUNESMITH), *arguments]
    done = subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, start_new_session=True)
    if not quiet and done.stdout.strip():
        console.print(f"[dim]{done.stdout.rstrip()}", highlight=False)
    return done.stdout


def demonstrate(service: Service, to: Path) -> None:
    """Upload, train, fetch, score, and say how to do it by hand."""
    client = service.client
    training = client.files.create(file=TWEETS / "tweets-train.jsonl", purpose="fine-tune")
    validation = client.files.create(file=("tweets-valid.jsonl", _validation_rows()), purpose="fine-tune")
    job = client.fine_tuning.jobs.create(
        model=MODEL,
        training_file=training.id,
        validation_file=validation.id,
        suffix="tweets",
        seed=1,
        method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": EPOCHS, "batch_size": BATCH_SIZE}}},
        extra_body={"tunesmith": {"training": {"learning_rate": LEARNING_RATE}}},
    )
    console.print(f"[bold]3. The job[/] {job.id}: {EPOCHS} epoch over {training.bytes:,} bytes of tweets")
    began = time.monotonic()
    finished = follow(client, job.id)
    seconds = time.monotonic() - began
    if finished.status != "succeeded":
        raise SystemExit(f"The job ended as {finished.status}: {finished.error.message if finished.error else ''}")
    console.print("[bold]4. The adapter")
    tunesmith("artifacts", "download", job.id, "--to", str(to), "--data-dir", str(service.data_dir), quiet=True)
    adapter = to / "adapter"
    before, after = scores(service.base_model, adapter)
    show(client, job.id, before, after, seconds, adapter)
    by_hand()


def _validation_rows() -> bytes:
    """The last rows of the training file, to watch the loss by; the held-out tweets are only scored at the end."""
    return b"".join((TWEETS / "tweets-train.jsonl").read_bytes().splitlines(keepends=True)[-VALIDATION_ROWS:])


def follow(client: OpenAI, job_id: str) -> Any:
    """One live line until the job has ended; the job."""
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total} {task.fields[facts]}"))
    with Progress(*columns, console=console) as line:
        task = line.add_task("waiting", total=None, facts="")
        while True:
            job = client.fine_tuning.jobs.retrieve(job_id)
            ours = (job.model_extra or {})["tunesmith"]
            progress = ours["progress"]
            stage = progress["stage"] if job.status == "running" else ours["reason"] or ours["phase"]
            line.update(
                task, description=stage or ours["phase"], completed=progress["step"], total=progress["total_steps"], facts=facts(progress)
            )
            if job.status in ("succeeded", "failed", "cancelled"):
                return job
            time.sleep(0.5)


def facts(progress: dict[str, Any]) -> str:
    """Loss, speed and time left, as far as known."""
    parts = []
    if progress["loss"] is not None:
        parts.append(f"loss {progress['loss']:.3f}")
    if progress["tokens_per_second"] is not None:
        parts.append(f"{progress['tokens_per_second']:.0f} tokens/s")
    if progress["eta_seconds"] is not None:
        minutes, seconds = divmod(int(progress["eta_seconds"]), 60)
        parts.append(f"ETA {minutes}:{seconds:02}")
    return ", ".join(parts)


def scores(base: Path, adapter: Path) -> tuple[float, float]:
    """Accuracy of the base model and of the tuned one on the held-out tweets."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    import score
    from transformers.utils import logging

    logging.disable_progress_bar()
    rows = score.read_rows(TWEETS / "tweets-test.jsonl")
    found = []
    with Progress(
        TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total} tweets"), console=console
    ) as line:
        for name, directory in (("base model", None), ("tuned model", adapter)):
            task = line.add_task(f"scoring the {name}", total=len(rows))
            tokenizer, model = score.load(base, directory)
            found.append(score.accuracy(tokenizer, model, rows, lambda done, total, task=task: line.update(task, completed=done)))
    return found[0], found[1]


def show(client: OpenAI, job_id: str, before: float, after: float, seconds: float, adapter: Path) -> None:
    """The result, as a table."""
    job = client.fine_tuning.jobs.retrieve(job_id)
    ours = (job.model_extra or {})["tunesmith"]
    training_seconds = job.finished_at - ours["started_at"] if job.finished_at else 0
    table = Table(title="Sentiment of 200 held-out tweets, first word exact", show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in (
        ("accuracy, base model", f"{before:.1%}"),
        ("accuracy, tuned model", f"[bold green]{after:.1%}"),
        ("from post to adapter", f"{seconds:.0f} s"),
        ("of it training and proving", f"{training_seconds} s"),
        ("tokens/s (non-padding)", f"{ours['progress']['tokens_per_second']:.0f}"),
        ("tuned model", str(job.fine_tuned_model)),
        ("adapter", str(adapter.absolute())),
    ):
        table.add_row(name, value)
    console.print(table)


def by_hand() -> None:
    """How to do the same without this script, with a service on the default port."""
    url, key = "http://127.0.0.1:8400/v1", "$(cat .tunesmith/api-key)"
    console.print("\n[bold]The same by hand[/], with the service started by `tunesmith up`:\n")
    console.print(
        f"""curl {url}/files -H "Authorization: Bearer {key}" -F purpose=fine-tune -F file=@examples/tweets/tweets-train.jsonl
curl {url}/fine_tuning/jobs -H "Authorization: Bearer {key}" -H "Content-Type: application/json" \\
     -d '{{"model": "{MODEL}", "training_file": "file-…"}}'

from openai import OpenAI
client = OpenAI(base_url="{url}", api_key=open(".tunesmith/api-key").read().strip())
file = client.files.create(file=open("examples/tweets/tweets-train.jsonl", "rb"), purpose="fine-tune")
job = client.fine_tuning.jobs.create(model="{MODEL}", training_file=file.id)
client.fine_tuning.jobs.retrieve(job.id).status
""",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )


if __name__ == "__main__":
    sys.exit(main())
