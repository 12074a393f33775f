"""What `jobs create` shows before it asks: the service's estimate, or what can be told without one.

The estimate is the service's. Of a file that is not uploaded yet it is made from counts: the check runs here, with the
service's own code, when the base model lies in the data directory. Nothing is uploaded for it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from service.cli import jobfile, views
from service.cli.check import report_on, show_report
from service.cli.connection import Service
from service.cli.files import readable
from service.cli.local import Local
from service.cli.output import Column, Ended, ExitCode, Format, Row, duration, facts, plain, say, show_data, show_one, size

if TYPE_CHECKING:
    from service.data_report import DataReport
    from service.jobs import JobSpec

COUNTS = ("rows", "tokens", "trained_tokens", "longest")


@dataclass(frozen=True)
class Plan:
    """A job that is about to be created."""

    service: Service
    spec: JobSpec
    files: Mapping[str, Row]
    """What is known of each file, by field."""
    estimate: Row | None
    """The service's answer; None where it could not be asked."""

    def lines(self) -> list[str]:
        """For a person, on the way to the question."""
        estimated = [(name, cell(self.estimate)) for name, cell in ESTIMATE] if self.estimate else []
        return facts([("service", self.service.target.base_url), *_asked(self), *estimated])


def make(service: Service, body: jobfile.Body, spec: JobSpec, data_dir: Path | None, *, check: bool | None, form: Format) -> Plan:
    """The plan of a request. `check` False leaves files unread; True insists, None takes what can be had.

    Raises Ended when a file does not pass; its report is then shown in `form`.
    """
    paths = jobfile.local_paths(body)
    files = {name: _local(path, spec) if name in paths else _uploaded(service, body[name]) for name, path in _named(body).items()}
    if check is False:
        return Plan(service, spec, files, None)
    if not paths:
        return Plan(service, spec, files, _estimate(service, body, insist=bool(check), form=form))
    reports = _reports(service, body, spec, paths, data_dir, insist=bool(check), form=form)
    if reports is None:
        return Plan(service, spec, files, None)
    counted = {name: {**files[name], **{count: report[count] for count in COUNTS}} for name, report in reports.items()}
    data = {name.removesuffix("_file"): {count: report[count] for count in COUNTS} for name, report in reports.items()}
    stand_in = body | dict.fromkeys(paths, "file-local")
    return Plan(service, spec, counted, _estimate(service, stand_in | {"data": data}, insist=bool(check), form=form))


def show(plan: Plan, form: Format) -> None:
    """The estimate, which there is, on standard output. Raises Ended when the cluster can't hold the job."""
    assert plan.estimate is not None
    show_one(plan.estimate, [("model", lambda row: row["model"]), *ESTIMATE], form)
    if views.part(plan.estimate, "placement").get("fits") is False:
        raise Ended(ExitCode.FAILED, f"it does not fit: {views.part(plan.estimate, 'placement').get('reason')}")


def _named(body: jobfile.Body) -> dict[str, Path]:
    return {name: Path(body[name]) for name in jobfile.FILES if body.get(name)}


def _estimate(service: Service, body: jobfile.Body, *, insist: bool, form: Format) -> Row | None:
    try:
        with service.errors():
            estimate = service.post("/fine_tuning/jobs/estimate", {name: value for name, value in body.items() if value is not None})
    except Ended as ended:
        if insist or ended.code is not ExitCode.AWAY:
            raise
        say(f"There is no estimate: {plain(ended.message)}")
        return None
    if not estimate["ok"]:
        _refuse_data(estimate, form)
    return estimate


def _refuse_data(estimate: Row, form: Format) -> None:
    """Raises Ended, with the report of the file that does not pass."""
    if form is not Format.TABLE:
        show_data(estimate, form)
    for name in ("training", "validation"):
        report = _report(views.part(estimate, name)) if estimate.get(name) else None
        if report is not None and not report.ok:
            if form is Format.TABLE:
                show_report(report, form)
            raise Ended(ExitCode.FAILED, f"the {name} file can't be trained on; nothing was created")


def _reports(
    service: Service, body: jobfile.Body, spec: JobSpec, paths: Mapping[str, Path], data_dir: Path | None, *, insist: bool, form: Format
) -> dict[str, Row] | None:
    """The reports of all files, None when the base model is not here. Raises Ended when one does not pass."""
    try:
        local = Local.of(data_dir)
        local.model_dir(spec.model)
    except Ended as ended:
        if insist:
            raise Ended(ended.code, ended.message, f"{ended.next_step} Or upload the file first and name its id.".strip()) from None
        return None
    found: dict[str, Row] = {}
    for name in _named(body):
        report = _checked_here(name, paths[name], spec, local) if name in paths else _checked_there(service, body[name], name, spec)
        found[name] = report.model_dump(mode="json")
        if not report.ok:
            reports = {"training": found.get("training_file"), "validation": found.get("validation_file")}
            _refuse_data({"object": "fine_tuning.job.estimate", "ok": False, **reports}, form)
    return found


def _checked_here(name: str, path: Path, spec: JobSpec, local: Local) -> DataReport:
    ours = {"training": spec.tunesmith.training.model_dump(include={"max_length", "overlong"}), "data": spec.tunesmith.data.model_dump()}
    return report_on(path, local, spec.model, spec.method.type, "training_file" if name == "training_file" else "validation_file", ours)


def _checked_there(service: Service, file_id: str, name: str, spec: JobSpec) -> DataReport:
    body = {"model": spec.model, "method": spec.method.type, "purpose": name}
    ours = spec.tunesmith.model_dump(mode="json", include={"training", "data"})
    return _report(service.post(f"/files/{file_id}/check", body | ours)["report"])


def _report(answered: Row) -> DataReport:
    from service.data_report import DataReport

    return DataReport.model_validate_json(json.dumps(answered))


def _uploaded(service: Service, file_id: str) -> Row:
    file = service.client.files.retrieve(file_id)
    return {"name": f"{file.id} ({plain(file.filename)})", "bytes": file.bytes}


def _local(path: Path, spec: JobSpec) -> Row:
    return {"name": plain(path), "path": path, "bytes": readable(path), **_lines(path, spec)}


def _lines(path: Path, spec: JobSpec) -> Row:
    """The rows of a file of JSON Lines; nothing of another, for only the data check can count its rows."""
    from service.formats.detect import detect
    from service.formats.rows import Unreadable

    with path.open("rb") as lines:
        try:
            if detect(lines.peek(1), spec.tunesmith.data.format) != "jsonl":
                return {}
        except Unreadable:
            return {}
        return {"rows": sum(1 for line in lines if line.strip())}


def _read_as(spec: JobSpec) -> str | None:
    """How the files are read, None when nothing was said of it."""
    data = spec.tunesmith.data
    columns = data.mapping.model_dump(exclude_none=True, exclude={"roles"}) if data.mapping else {}
    told = [*([data.format] if data.format != "auto" else []), *(f"{field} = {plain(column)}" for field, column in columns.items())]
    return ", ".join(told) or None


def _asked(plan: Plan) -> list[tuple[str, object]]:
    """What was asked for, with what is known of it."""
    spec, resolved = plan.spec, views.part(plan.estimate or {}, "resolved") or _guessed(plan)
    hyper, ours, training = spec.method.hyperparameters, spec.tunesmith, spec.tunesmith.training
    factor = 1.0 if hyper.learning_rate_multiplier == "auto" else hyper.learning_rate_multiplier
    steps = resolved.get("steps")
    return [
        ("model", spec.model),
        *((name.replace("_", " "), _file_facts(file)) for name, file in plan.files.items()),
        ("method", spec.method.type),
        ("read as", _read_as(spec)),
        ("epochs", _auto(hyper.n_epochs, resolved.get("n_epochs"))),
        ("batch size", _auto(hyper.batch_size, resolved.get("batch_size"))),
        ("steps", None if steps is None else f"{steps:,}" if plan.estimate else f"about {steps:,}"),
        ("learning rate", f"{training.learning_rate * factor:g}, {training.schedule}, warm-up {training.warmup_ratio:g}"),
        ("max length", f"{training.max_length:,} tokens; longer rows: {training.overlong}"),
        ("adapter", views.adapter(ours.adapter.model_dump())),
        ("resources", views.resources(ours.resources.model_dump())),
        ("priority", ours.priority or None),
        ("seed", spec.seed),
        ("suffix", spec.suffix),
    ]


def _guessed(plan: Plan) -> Row:
    """From the lines of a local file, where the service has not been asked."""
    from service.resolve import auto_batch_size, auto_epochs

    rows: int | None = plan.files["training_file"].get("rows")
    if not rows:
        return {}
    hyper = plan.spec.method.hyperparameters
    epochs = auto_epochs(rows) if hyper.n_epochs == "auto" else hyper.n_epochs
    batch = auto_batch_size(rows) if hyper.batch_size == "auto" else hyper.batch_size
    return {"n_epochs": epochs, "batch_size": batch, "steps": epochs * math.ceil(rows / batch)}


def _file_facts(file: Row) -> str:
    known = [size(file["bytes"])]
    known += [f"{file[name]:,} {name}" for name in ("rows", "tokens") if file.get(name) is not None]
    return f"{file['name']}: {', '.join(known)}{'; will be uploaded' if 'path' in file else ''}"


def _auto(asked: object, resolved: object) -> str:
    if asked != "auto":
        return str(asked)
    return f"auto (here {resolved})" if resolved else "auto (decided when the data is checked)"


def _memory(estimate: Row) -> str:
    memory = views.part(estimate, "plan", "memory")
    if not memory:
        return ""
    parts = ", ".join(f"{name} {size(memory[name])}" for name in ("weights", "optimizer", "activations", "head") if memory[name] >= 10**6)
    has = f" of {size(memory['available'])}" if memory["available"] is not None else ""
    run = views.part(estimate, "plan").get("run_memory")
    beside = f", and {size(run)} once for the run" if run else ""
    return f"about {size(memory['total'])} a worker{has} ({parts}){beside}"


def _layout(estimate: Row) -> str:
    plan = views.part(estimate, "plan")
    if not plan:
        return ""
    micro = f", {plan['micro_batch']} rows at a time" if plan["micro_batch"] else ""
    return f"{plan['engine']} on {plan['workers']} {plan['device'].upper()} worker{'' if plan['workers'] == 1 else 's'}{micro}"


def _time(estimate: Row) -> str:
    time = views.part(estimate, "time")
    return f"{duration(time['low'])} to {duration(time['high'])}, without waiting in the queue" if time else ""


def _cost(estimate: Row) -> str:
    cost = views.part(estimate, "cost")
    return f"{_amount(cost['low'])} to {_amount(cost['high'])} {cost['currency']} ({cost['based_on']})" if cost else ""


def _amount(money: float) -> str:
    """Two places, and two digits of what would be nothing then."""
    return f"{money:.2f}" if money >= 0.1 else f"{money:.2g}"


def _data(estimate: Row) -> str:
    report = views.part(estimate, "training")
    cut = {"truncated_rows": "cut", "dropped_rows": "left out"}
    if not report:
        return ""
    told = [f"{report[name]:,} {name.replace('_', ' ')}" for name in COUNTS[:3]]
    return ", ".join(told + [f"{report[name]:,} {word}" for name, word in cut.items() if report[name]])


def _of(*path: str) -> Callable[[Row], object]:
    def cell(estimate: Row) -> object:
        value = views.part(estimate, *path[:-1]).get(path[-1])
        return "; ".join(cast("list[str]", value)) if isinstance(value, list) else value

    return cell


ESTIMATE: list[Column] = [
    ("data", _data),
    ("trained on", lambda row: f"{row['trained_tokens']:,} labelled tokens in {views.part(row, 'resolved')['steps']:,} steps"),
    ("layout", _layout),
    ("because", _of("plan", "reasons")),
    ("memory", _memory),
    ("cluster", _of("placement", "reason")),
    ("time", _time),
    ("based on", _of("time", "based_on")),
    ("cost", _cost),
    ("notes", lambda row: " ".join(cast("list[str]", row.get("notes") or []))),
]
