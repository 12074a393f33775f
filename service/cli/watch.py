"""Watching a job: one live line on a terminal, otherwise its events line by line, until it has ended.

Used by `jobs watch`, `jobs create --watch` and, for its events, `jobs events --follow`. Survives a
service that is away for a while: the job goes on without it, and so does the watch.
"""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any, NoReturn

import typer

from service.cli import views
from service.cli.connection import Service
from service.cli.output import Ended, ExitCode, Format, Row, duration, facts, on_terminal, plain, say, show_data
from service.cli.screen import console
from service.cli.times import clock

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

OUTCOME = {"succeeded": ExitCode.OK, "failed": ExitCode.FAILED, "cancelled": ExitCode.CANCELLED}
"""Exit code of a watch by the job's last status."""
PATIENCE = 300.0
"""Seconds a service may be away before a watch gives up."""
ANSWER_TIMEOUT = 30.0


@dataclass
class Events:
    """A job's events, each of them once."""

    service: Service
    job_id: str
    at_most: int | None = None
    """How many of the past are told at first; all unless given."""
    _last: str | None = field(default=None, init=False)

    def fresh(self) -> list[dict[str, Any]]:
        """Those that came since the last call, oldest first."""
        found: list[dict[str, Any]] = []
        listed = self.service.client.fine_tuning.jobs.list_events(self.job_id, limit=min(100, self.at_most or 100))
        for event in islice(listed, self.at_most if self._last is None else None):
            if event.id == self._last:
                break
            found.append(event.to_dict())
        self._last = found[0]["id"] if found else self._last
        return found[::-1]


class Screen:
    """Where a watch is seen: without a terminal, the events as lines."""

    def event(self, event: Row) -> None:
        """Something happened."""
        say(event_line(event))

    def state(self, job: Row) -> None:
        """How far it is."""

    def note(self, text: str) -> None:
        """Something about the watch itself."""
        say(text)


class LiveScreen(Screen):
    """On a terminal: one line that changes, with messages above it. Metrics are in the line already."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task: TaskID = progress.add_task("", total=None, facts="")
        self._noted = ""

    def event(self, event: Row) -> None:
        if event["type"] != "metrics":
            self._progress.console.print(event_line(event), soft_wrap=True)

    def state(self, job: Row) -> None:
        done = views.progress(job)
        total = done.get("total_steps")
        self._progress.update(self._task, description=stage(job), completed=done.get("step") or 0, total=total, facts=numbers(job))

    def note(self, text: str) -> None:
        if text != self._noted:
            self._noted = text
            self._progress.console.print(text, soft_wrap=True)


def event_line(event: Row) -> str:
    """An event as a line."""
    level = "" if event["level"] == "info" else f"{event['level']}: "
    return f"{clock(event['created_at'])}  {level}{plain(event['message'])}"


def stage(job: Row) -> str:
    """Where the job is, in words; while it waits, for what."""
    phase, reason = views.phase(job), plain(views.ours(job).get("reason"))
    if phase == "running" and not reason:
        return plain(views.progress(job).get("stage")) or "running"
    return f"{phase}: {reason}" if reason else phase


def numbers(job: Row) -> str:
    """Step, loss, speed and time left, as far as known."""
    done = views.progress(job)
    total, speed = done.get("total_steps"), done.get("tokens_per_second")
    finish = job.get("estimated_finish")
    known = [
        f"{done.get('step') or 0}/{total}" if total else "",
        f"loss {views.loss(job)}" if views.loss(job) else "",
        f"{speed:,.0f} tok/s" if speed is not None else "",
        f"ETA {duration(finish - time.time())}" if finish is not None else "",
    ]
    return "  ".join(part for part in known if part)


@contextmanager
def screen() -> Generator[Screen]:
    """What fits standard error."""
    if not on_terminal():
        yield Screen()
        return
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn
    from rich.table import Column

    def text(content: str) -> TextColumn:
        return TextColumn(content, markup=False, table_column=Column(no_wrap=True, overflow="ellipsis"))

    columns = (SpinnerColumn(), text("{task.description}"), BarColumn(bar_width=20), text("{task.fields[facts]}"))
    with Progress(*columns, console=console(), transient=True) as progress:
        yield LiveScreen(progress)


def watch_to_end(service: Service, job_id: str, output: Format, *, interval: float = 1.0, patience: float = PATIENCE) -> NoReturn:
    """Watch, tell the end, and leave with its exit code; on Ctrl-C leave with 0."""
    flags = service.target.flags
    try:
        job = watch(service, job_id, interval=interval, patience=patience)
    except KeyboardInterrupt:
        detached(job_id, flags)
        raise typer.Exit(ExitCode.OK) from None
    outcome = conclude(job, flags)
    if output is Format.TABLE:
        typer.echo(plain(job["fine_tuned_model"] or job["status"]))
    else:
        show_data(job, output)
    raise typer.Exit(outcome)


def watch(service: Service, job_id: str, *, interval: float = 1.0, patience: float = PATIENCE) -> dict[str, Any]:
    """The job once it has ended. Raises Ended when the service stays away, KeyboardInterrupt on Ctrl-C."""
    quick = Service(service.client.with_options(max_retries=0, timeout=ANSWER_TIMEOUT), service.target)
    events = Events(quick, job_id, at_most=20)
    answered = time.monotonic()
    with screen() as shown:
        while True:
            try:
                job = _look(quick, job_id, events, shown)
                answered = time.monotonic()
                if job["status"] in OUTCOME:
                    return job
            except Ended as ended:
                if ended.code is not ExitCode.AWAY or time.monotonic() - answered > patience:
                    raise
                shown.note("the service does not answer; the job goes on without it, and this watch tries again")
            time.sleep(interval)


def _look(service: Service, job_id: str, events: Events, shown: Screen) -> dict[str, Any]:
    with service.errors():
        # The job first: when it has ended, the events read after it are all there will be.
        job = service.client.fine_tuning.jobs.retrieve(job_id).to_dict()
        for event in events.fresh():
            shown.event(event)
    shown.state(job)
    return job


def conclude(job: Row, flags: str) -> ExitCode:
    """Tell how a job ended and what to do next; the exit code that says so."""
    took = duration(job["finished_at"] - job["created_at"]) if job.get("finished_at") else ""
    outcome = OUTCOME[job["status"]]
    say(f"{job['id']} {job['status']}{' after ' + took if took else ''}")
    if outcome is ExitCode.OK:
        tokens = job.get("trained_tokens")
        for line in facts([("tuned model", job.get("fine_tuned_model")), ("trained tokens", None if tokens is None else f"{tokens:,}")]):
            say(line)
        say(f"Download it: tunesmith artifacts download {job['id']} --to adapter{flags}")
    for line in views.failure(job):
        say(plain(line))
    return outcome


def detached(job_id: str, flags: str) -> None:
    """What Ctrl-C in a watch says."""
    say(f"\nDetached; the job goes on. Come back: tunesmith jobs watch {job_id}{flags}")
    say(f"Stop the job:                      tunesmith jobs cancel {job_id}{flags}")
