"""`tunesmith jobs create`: gather what is asked, show the plan, ask, upload what is local, create."""

from __future__ import annotations

import secrets
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Option

from service.cli import jobfile, views
from service.cli import plan as planning
from service.cli.connection import Service, connected
from service.cli.files import upload_file
from service.cli.options import BaseUrl, DataDir, FileFormat, FileMapping, Output
from service.cli.output import Ended, ExitCode, Format, ask, epilog, on_terminal, say, show_one
from service.cli.watch import watch_to_end

EPILOG = epilog(
    "tunesmith jobs create --model smollm2-135m-instruct --training-file train.jsonl --watch",
    "tunesmith jobs create -f job.yaml --epochs 2 --set tunesmith.training.warmup_ratio=0.1 -y",
    "tunesmith jobs create -f job.yaml --dry-run -o json | jq .time",
    "tunesmith jobs create --model smollm2-135m-instruct --training-file faq.csv --map prompt=question --map completion=answer",
)


FIELDS = {
    "model": "model",
    "training_file": "training_file",
    "validation_file": "validation_file",
    "suffix": "suffix",
    "seed": "seed",
    "method": "method.type",
    "format": "tunesmith.data.format",
    "learning_rate": "tunesmith.training.learning_rate",
    "max_length": "tunesmith.training.max_length",
    "rank": "tunesmith.adapter.r",
    "alpha": "tunesmith.adapter.alpha",
    "workers": "tunesmith.resources.workers",
    "gpus_per_worker": "tunesmith.resources.gpus_per_worker",
    "priority": "tunesmith.priority",
}
"""The field of the request that each option sets."""
HYPERPARAMETERS = {"epochs": "n_epochs", "batch_size": "batch_size", "learning_rate_multiplier": "learning_rate_multiplier"}
"""The same for options below `method.<type>.hyperparameters`."""
JobFile = Annotated[
    Path | None, Option("--file", "-f", metavar="JOB.YAML", help="Job in the wire's form, YAML or JSON; options win over it.")
]
Metadata = Annotated[list[str] | None, Option("--metadata", metavar="KEY=VALUE", help="To find the job by; may be repeated.")]
Setting = Annotated[
    list[str] | None, Option("--set", metavar="FIELD=VALUE", help="Any field by its dotted path, as YAML; may be repeated.")
]


def create(
    ctx: typer.Context,
    file: JobFile = None,
    model: Annotated[str | None, Option(help="Base model.")] = None,
    training_file: Annotated[str | None, Option(metavar="PATH|FILE_ID", help="A local file is uploaded first.")] = None,
    validation_file: Annotated[str | None, Option(metavar="PATH|FILE_ID", help="Scored during training, never trained on.")] = None,
    format: FileFormat = None,
    mapping: FileMapping = None,
    suffix: Annotated[str | None, Option(help="Part of the tuned model's name.")] = None,
    seed: Annotated[int | None, Option(help="Same seed, same job; drawn unless given.")] = None,
    metadata: Metadata = None,
    method: Annotated[str | None, Option(help="Objective; supervised unless given.")] = None,
    epochs: Annotated[str | None, Option(metavar="N|auto", help="Passes over the training file.")] = None,
    batch_size: Annotated[str | None, Option(metavar="N|auto", help="Rows of one step.")] = None,
    learning_rate_multiplier: Annotated[str | None, Option(metavar="X|auto", help="Factor on the learning rate.")] = None,
    learning_rate: Annotated[float | None, Option(help="Peak learning rate.")] = None,
    max_length: Annotated[int | None, Option(help="Longest row in tokens.")] = None,
    rank: Annotated[int | None, Option("--rank", "-r", help="Rank of the adapter.")] = None,
    alpha: Annotated[int | None, Option(help="Scale of the adapter.")] = None,
    workers: Annotated[int | None, Option(help="Workers of the run.")] = None,
    gpus_per_worker: Annotated[int | None, Option(help="GPUs of each worker; 0 trains on the processor.")] = None,
    priority: Annotated[int | None, Option(help="Higher is run first.")] = None,
    setting: Setting = None,
    check: Annotated[
        bool | None,
        Option(
            "--check/--no-check",
            help="Read the files first and show the estimate; unless given, where the base model is at hand.",
            show_default=False,
        ),
    ] = None,
    dry_run: Annotated[bool, Option("--dry-run", help="Print what the job would take, and create and upload nothing.")] = False,
    yes: Annotated[bool, Option("--yes", "-y", help="Do not ask.")] = False,
    watch: Annotated[bool, Option("--watch", help="Watch the job until it has ended; the exit code tells how.")] = False,
    output: Output = Format.TABLE,
    base_url: BaseUrl = None,
    data_dir: DataDir = None,
) -> None:
    """Create a fine-tuning job.

    Shows the plan with the service's estimate and, on a terminal, asks before anything is uploaded or
    created. A local file is counted here where its base model has been pulled into the data directory.
    With --dry-run the estimate is all there is; exit code 1 when the data is faulty or the job can't fit.
    """
    body = asked(file, ctx.params)
    spec = jobfile.checked(body)
    with connected(base_url, data_dir) as service:
        plan = planning.make(service, body, spec, data_dir, check=dry_run or check, form=output)
        if dry_run:
            planning.show(plan, output)
            return
        job = _create(service, body, plan, confirm=not yes)
        if watch:
            say(f"created {job['id']}")
            watch_to_end(service, job["id"], output)
        say(f"Watch it: tunesmith jobs watch {job['id']}{service.target.flags}")
        show_one(job, views.CREATED, output)


def asked(file: Path | None, options: Mapping[str, Any]) -> jobfile.Body:
    """The request: the job file, with the options over it. Raises Ended."""
    body = jobfile.read(file) if file else {}
    for option, field in FIELDS.items():
        if options[option] is not None:
            jobfile.put(body, field, options[option])
    for option, name in HYPERPARAMETERS.items():
        if options[option] is not None:
            _put_hyperparameter(body, name, jobfile.parse(options[option], f"--{option.replace('_', '-')}"))
    if options["metadata"]:
        body["metadata"] = jobfile.section(body, "metadata") | jobfile.pairs(options["metadata"], "--metadata")
    for field, column in jobfile.pairs(options["mapping"] or [], "--map").items():
        jobfile.put(body, f"tunesmith.data.mapping.{field}", column)
    for field, value in jobfile.pairs(options["setting"] or [], "--set").items():
        jobfile.put(body, field, jobfile.parse(value, f"--set {field}"))
    return body


def _put_hyperparameter(body: jobfile.Body, name: str, value: object) -> None:
    kind = jobfile.section(body, "method").get("type") or "supervised"
    jobfile.put(body, "method.type", kind)
    jobfile.put(body, f"method.{kind}.hyperparameters.{name}", value)
    # An option wins over the file, also where the file gives the number in OpenAI's older place.
    jobfile.section(body, "hyperparameters").pop(name, None)


def _create(service: Service, body: jobfile.Body, plan: planning.Plan, *, confirm: bool) -> dict[str, Any]:
    for line in plan.lines():
        say(line)
    if confirm and sys.stdin.isatty() and on_terminal() and not ask("Create this job?"):
        raise Ended(ExitCode.FAILED, "nothing was created")
    uploaded = {name: upload_file(service, path)["id"] for name, path in jobfile.local_paths(body).items()}
    try:
        return _post(service, body | uploaded)
    except BaseException:
        for name, file_id in uploaded.items():
            say(f"The file stays uploaded; use it again with --{name.replace('_', '-')} {file_id}")
        raise


def _post(service: Service, body: jobfile.Body) -> dict[str, Any]:
    known = {name: value for name, value in body.items() if name != "tunesmith" and value is not None}
    # With a key of its own a request that is sent again can't create a second job.
    headers = {"Idempotency-Key": secrets.token_hex(16)}
    extra = {"tunesmith": body["tunesmith"]} if body.get("tunesmith") else None
    make: Callable[..., Any] = service.client.fine_tuning.jobs.create
    job: dict[str, Any] = make(**known, extra_body=extra, extra_headers=headers).to_dict()
    return job
