"""`tunesmith jobs …`: list, get, watch, cancel, pause, resume, events, checkpoints. `create`, `logs` and `metrics` stand elsewhere."""

from __future__ import annotations

from itertools import islice
from typing import Annotated, Any

import typer

from service.cli import create, jobfile, run_output, views
from service.cli.connection import connected
from service.cli.feed import FURTHEST, PATIENCE, Feed
from service.cli.options import BaseUrl, DataDir, JobId, Limit, Output
from service.cli.output import ExitCode, Format, epilog, exit_codes, plain, say, show_one, show_rows, show_stream
from service.cli.watch import event_line, watch_to_end

app = typer.Typer(help="Fine-tuning jobs.", no_args_is_help=True)
app.command("create", epilog=create.EPILOG)(create.create)
app.command("logs", epilog=run_output.LOGS_EPILOG)(run_output.logs)
app.command("metrics", epilog=run_output.METRICS_EPILOG)(run_output.metrics)


@app.command("list", epilog=epilog("tunesmith jobs list", "tunesmith jobs list --metadata team=search -n 5 -o json"))
def list_jobs(
    metadata: Annotated[
        list[str] | None, typer.Option("--metadata", metavar="KEY=VALUE", help="Only jobs with this pair; may be repeated.")
    ] = None,
    limit: Limit = 20,
    output: Output = Format.TABLE,
    base_url: BaseUrl = None,
    data_dir: DataDir = None,
) -> None:
    """List jobs, newest first: phase, progress, time left, age."""
    wanted: dict[str, Any] = {"limit": min(limit, 100)} | ({"metadata": jobfile.pairs(metadata, "--metadata")} if metadata else {})
    with connected(base_url, data_dir) as service:
        found = islice(service.client.fine_tuning.jobs.list(**wanted), limit)
        show_rows([job.to_dict() for job in found], views.JOBS, output)


@app.command(epilog=epilog("tunesmith jobs get ftjob-abc123", "tunesmith jobs get ftjob-abc123 -o yaml"))
def get(job: JobId, output: Output = Format.TABLE, base_url: BaseUrl = None, data_dir: DataDir = None) -> None:
    """Show one job: what it was asked, what "auto" became, how far it is, and why it failed."""
    with connected(base_url, data_dir) as service:
        found = service.client.fine_tuning.jobs.retrieve(job).to_dict()
    show_one(found, views.JOB, output)
    if output is Format.TABLE and (attempts := views.ours(found).get("attempts")):
        typer.echo("\nattempts")
        show_rows(attempts, views.ATTEMPTS, output)
    if output is Format.TABLE and (lines := views.failure(found)):
        typer.echo("\nerror")
        for line in lines:
            typer.echo(plain(line))


@app.command("watch", epilog=epilog("tunesmith jobs watch ftjob-abc123") + "\n\n" + exit_codes())
def watch_job(
    job: JobId,
    patience: Annotated[float, typer.Option(min=0, help="Seconds the service may be away before the watch gives up.")] = PATIENCE,
    output: Output = Format.TABLE,
    base_url: BaseUrl = None,
    data_dir: DataDir = None,
) -> None:
    """Watch a job until it has ended; Ctrl-C detaches and leaves it running.

    One live line shows stage, step, loss, tokens/s and time left; while the job waits, what it waits
    for. Without a terminal the job's events come as lines. The exit code tells how the job ended.
    """
    with connected(base_url, data_dir) as service:
        watch_to_end(service, job, output, patience=patience)


@app.command(epilog=epilog("tunesmith jobs cancel ftjob-abc123"))
def cancel(job: JobId, output: Output = Format.TABLE, base_url: BaseUrl = None, data_dir: DataDir = None) -> None:
    """Cancel a job. It is cancelled once its processes are gone; its checkpoints go with it."""
    with connected(base_url, data_dir) as service:
        cancelled = service.client.fine_tuning.jobs.cancel(job).to_dict()
        if cancelled["status"] != "cancelled":
            say(f"{job} is being stopped. See it end: tunesmith jobs watch {job}{service.target.flags}")
    show_one(cancelled, views.CREATED, output)


@app.command(epilog=epilog("tunesmith jobs pause ftjob-abc123"))
def pause(job: JobId, output: Output = Format.TABLE, base_url: BaseUrl = None, data_dir: DataDir = None) -> None:
    """Pause a job: its run writes a checkpoint and leaves, and its devices are free. Resume it when you like."""
    with connected(base_url, data_dir) as service:
        paused = service.client.fine_tuning.jobs.pause(job).to_dict()
        if paused["status"] != "paused":
            say(f"{job} is being paused. See whether its run has left: tunesmith jobs get {job}{service.target.flags}")
    show_one(paused, views.CREATED, output)


@app.command(epilog=epilog("tunesmith jobs resume ftjob-abc123"))
def resume(job: JobId, output: Output = Format.TABLE, base_url: BaseUrl = None, data_dir: DataDir = None) -> None:
    """Resume a paused job: it waits for its workers and goes on from its last checkpoint."""
    with connected(base_url, data_dir) as service:
        resumed = service.client.fine_tuning.jobs.resume(job).to_dict()
        say(f"{job} is queued again. See it go on: tunesmith jobs watch {job}{service.target.flags}")
    show_one(resumed, views.CREATED, output)


@app.command(epilog=epilog("tunesmith jobs events ftjob-abc123", "tunesmith jobs events ftjob-abc123 --follow -o json"))
def events(
    job: JobId,
    follow: Annotated[bool, typer.Option("--follow", help="Go on until the job has ended; JSON then comes as one object a line.")] = False,
    limit: Limit = 1000,
    output: Output = Format.TABLE,
    base_url: BaseUrl = None,
    data_dir: DataDir = None,
) -> None:
    """Show what happened to a job, oldest first."""
    with connected(base_url, data_dir) as service:
        if not follow:
            newest_first = islice(service.client.fine_tuning.jobs.list_events(job, limit=min(100, limit)), limit)
            show_rows([event.to_dict() for event in newest_first][::-1], views.EVENTS, output)
            return
        try:
            _follow(Feed(service, job, -min(limit, FURTHEST), note=say), output)
        except KeyboardInterrupt:
            raise typer.Exit(ExitCode.OK) from None


def _follow(feed: Feed, output: Format) -> None:
    for message in feed.messages():
        if message.event != "event":
            continue
        if output is Format.TABLE:
            typer.echo(event_line(message.data))
        else:
            show_stream(message.data, output)


@app.command(epilog=epilog("tunesmith jobs checkpoints ftjob-abc123"))
def checkpoints(job: JobId, limit: Limit = 100, output: Output = Format.TABLE, base_url: BaseUrl = None, data_dir: DataDir = None) -> None:
    """List a job's complete checkpoints, newest first."""
    with connected(base_url, data_dir) as service:
        found = islice(service.client.fine_tuning.jobs.checkpoints.list(job, limit=min(limit, 100)), limit)
        show_rows([checkpoint.to_dict() for checkpoint in found], views.CHECKPOINTS, output)
