"""Watching a job: one live line on a terminal, otherwise its events line by line, until it has ended.

Used by `jobs watch`, `jobs create --watch` and, for its lines, `jobs events --follow`. What happens comes from the
job's stream, see feed.py; it survives a service that is away for a while.
"""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn

import typer

from service.cli import views
from service.cli.connection import Service
from service.cli.feed import PATIENCE, Feed
from service.cli.output import ExitCode, Format, Row, duration, facts, on_terminal, plain, say, show_data
from service.cli.screen import console
from service.cli.times import clock

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

OUTCOME = {"succeeded": ExitCode.OK, "failed": ExitCode.FAILED, "cancelled": ExitCode.CANCELLED}
"""Exit code of a watch by the job's last status."""
PAST = 20
"""Events of the past that a watch begins with."""


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


def watch_to_end(service: Service, job_id: str, output: Format, *, patience: float = PATIENCE) -> NoReturn:
    """Watch, tell the end, and leave with its exit code; on Ctrl-C leave with 0."""
    flags = service.target.flags
    try:
        job = watch(service, job_id, patience=patience)
    except KeyboardInterrupt:
        detached(job_id, flags)
        raise typer.Exit(ExitCode.OK) from None
    outcome = conclude(job, flags)
    if output is Format.TABLE:
        typer.echo(plain(job["fine_tuned_model"] or job["status"]))
    else:
        show_data(job, output)
    raise typer.Exit(outcome)


def watch(service: Service, job_id: str, *, patience: float = PATIENCE) -> dict[str, Any]:
    """The job once it has ended. Raises Ended when the service stays away, KeyboardInterrupt on Ctrl-C."""
    with screen() as shown:
        for message in Feed(service, job_id, -PAST, patience, shown.note).messages():
            if message.event == "event":
                shown.event(message.data)
            elif message.event == "progress":
                shown.state(_job(message.data))
            elif message.event == "done":
                return message.data
    raise AssertionError("a feed ends with the job's end")


def _job(ours: dict[str, Any]) -> dict[str, Any]:
    """What a watch shows of a job, from its `tunesmith` part."""
    eta = views.part(ours, "progress").get("eta_seconds")
    return {"tunesmith": ours, "estimated_finish": time.time() + eta if eta is not None and ours["phase"] == "running" else None}


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
