"""`tunesmith jobs create`: gather what is asked, show the plan, ask, upload what is local, create."""

from __future__ import annotations

import math
import secrets
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Option

from service.cli import jobfile, views
from service.cli.check import report_on, show_report
from service.cli.connection import Service, connected
from service.cli.files import readable, upload_file
from service.cli.local import Local
from service.cli.options import BaseUrl, DataDir, Output
from service.cli.output import Ended, ExitCode, Format, Row, ask, epilog, facts, on_terminal, plain, say, show_one, size
from service.cli.watch import watch_to_end

if TYPE_CHECKING:
    from service.jobs import JobSpec

EPILOG = epilog(
    "tunesmith jobs create --model smollm2-135m-instruct --training-file train.jsonl --watch",
    "tunesmith jobs create -f job.yaml --epochs 2 --set tunesmith.training.warmup_ratio=0.1 -y",
)


FIELDS = {
    "model": "model",
    "training_file": "training_file",
    "validation_file": "validation_file",
    "suffix": "suffix",
    "seed": "seed",
    "method": "method.type",
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
    workers: Annotated[int | None, Option(help="Data-parallel workers.")] = None,
    gpus_per_worker: Annotated[int | None, Option(help="GPUs of each worker; 0 trains on the processor.")] = None,
    priority: Annotated[int | None, Option(help="Higher is run first.")] = None,
    setting: Setting = None,
    check: Annotated[bool, Option("--check", help="Check local files first, as `tunesmith files check` does.")] = False,
    yes: Annotated[bool, Option("--yes", "-y", help="Do not ask.")] = False,
    watch: Annotated[bool, Option("--watch", help="Watch the job until it has ended; the exit code tells how.")] = False,
    output: Output = Format.TABLE,
    base_url: BaseUrl = None,
    data_dir: DataDir = None,
) -> None:
    """Create a fine-tuning job.

    Shows the plan and, on a terminal, asks before anything is uploaded or created.
    """
    body = asked(file, ctx.params)
    spec = jobfile.checked(body)
    with connected(base_url, data_dir) as service:
        job = _create(service, body, spec, Local.of(data_dir) if check else None, confirm=not yes)
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
        body["metadata"] = jobfile.section(body, "metadata") | pairs(options["metadata"])
    for field, value in pairs(options["setting"] or [], "--set").items():
        jobfile.put(body, field, jobfile.parse(value, f"--set {field}"))
    return body


def _put_hyperparameter(body: jobfile.Body, name: str, value: object) -> None:
    kind = jobfile.section(body, "method").get("type") or "supervised"
    jobfile.put(body, "method.type", kind)
    jobfile.put(body, f"method.{kind}.hyperparameters.{name}", value)
    # An option wins over the file, also where the file gives the number in OpenAI's older place.
    jobfile.section(body, "hyperparameters").pop(name, None)


def pairs(given: Sequence[str], option: str = "--metadata") -> dict[str, str]:
    """`KEY=VALUE` words as a mapping. Raises Ended."""
    found: dict[str, str] = {}
    for word in given:
        key, equals, value = word.partition("=")
        if not key or not equals:
            raise Ended(ExitCode.USAGE, f"'{word}' is not KEY=VALUE", f"Write {option} key=value.")
        found[key] = value
    return found


def _create(service: Service, body: jobfile.Body, spec: JobSpec, local: Local | None, *, confirm: bool) -> dict[str, Any]:
    """`local` is given when local files are to be checked first."""
    paths = jobfile.local_paths(body)
    files: dict[str, Row] = {}
    for name in jobfile.FILES:
        if body.get(name):
            files[name] = _local_facts(name, paths[name], spec, local) if name in paths else _uploaded_facts(service, body[name])
    for line in plan(service.target.base_url, spec, files):
        say(line)
    if confirm and sys.stdin.isatty() and on_terminal() and not ask("Create this job?"):
        raise Ended(ExitCode.FAILED, "nothing was created")
    uploaded = {name: upload_file(service, path)["id"] for name, path in paths.items()}
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


def _uploaded_facts(service: Service, file_id: str) -> Row:
    file = service.client.files.retrieve(file_id)
    return {"name": f"{file.id} ({plain(file.filename)})", "bytes": file.bytes}


def _local_facts(name: str, path: Path, spec: JobSpec, local: Local | None) -> Row:
    """What can be told of a local file: its rows; with a check its tokens too. Raises Ended when it does not pass."""
    found = {"name": plain(path), "bytes": readable(path), "upload": True}
    if local is None:
        with path.open("rb") as lines:
            return found | {"rows": sum(1 for line in lines if line.strip())}
    training = spec.tunesmith.training.model_dump(include={"max_length", "overlong"})
    report = report_on(
        path, local, spec.model, spec.method.type, "training_file" if name == "training_file" else "validation_file", training
    )
    if not report.ok:
        show_report(report, Format.TABLE)
        raise Ended(ExitCode.FAILED, f"{path} can't be trained on; nothing was uploaded")
    return found | {"rows": report.rows, "tokens": report.tokens}


def plan(base_url: str, spec: JobSpec, files: Mapping[str, Row]) -> list[str]:
    """What will be done, in lines."""
    from service.resolve import auto_batch_size, auto_epochs

    rows: int | None = files["training_file"].get("rows")
    hyper, ours = spec.method.hyperparameters, spec.tunesmith
    epochs = hyper.n_epochs if hyper.n_epochs != "auto" else auto_epochs(rows) if rows else None
    batch = hyper.batch_size if hyper.batch_size != "auto" else auto_batch_size(rows) if rows else None
    steps = epochs * math.ceil(rows / batch) if rows and epochs and batch else None
    factor = 1.0 if hyper.learning_rate_multiplier == "auto" else hyper.learning_rate_multiplier
    training = ours.training
    return facts(
        [
            ("service", base_url),
            ("model", spec.model),
            *((name.replace("_", " "), _file_facts(file)) for name, file in files.items()),
            ("method", spec.method.type),
            ("epochs", _auto(hyper.n_epochs, epochs)),
            ("batch size", _auto(hyper.batch_size, batch)),
            ("steps", f"about {steps:,}" if steps else None),
            ("learning rate", f"{training.learning_rate * factor:g}, {training.schedule}, warm-up {training.warmup_ratio:g}"),
            ("max length", f"{training.max_length:,} tokens; longer rows: {training.overlong}"),
            ("adapter", views.adapter(ours.adapter.model_dump())),
            ("resources", views.resources(ours.resources.model_dump())),
            ("priority", ours.priority or None),
            ("seed", spec.seed),
            ("suffix", spec.suffix),
        ]
    )


def _file_facts(file: Row) -> str:
    known = [size(file["bytes"])]
    known += [f"{file[name]:,} {name}" for name in ("rows", "tokens") if file.get(name) is not None]
    return f"{file['name']}: {', '.join(known)}{'; will be uploaded' if file.get('upload') else ''}"


def _auto(asked: object, resolved: object) -> str:
    if asked != "auto":
        return str(asked)
    return f"auto (here {resolved})" if resolved else "auto (decided when the data is checked)"
