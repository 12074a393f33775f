"""How jobs, events and checkpoints look in tables: from the wire's objects to cells. Pure.

Used by `jobs …` and its watch. What a job's error means for its owner (`next_step`) is told here too.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, cast

from service.cli.output import Column, Row, duration
from service.cli.times import age, clock, when

NEXT_STEP = {
    "data": "Correct the file, try it with `tunesmith files check`, and create the job again.",
    "config": "Change the named setting and create the job again.",
    "resource": "Ask for less (a smaller batch_size or max_length) or for larger workers, and create the job again.",
    "infrastructure": "Nothing is wrong with the job itself: create it again.",
    "service": "Tell the operator of the service; its log knows more under the job's id.",
}
"""What to do about a failure, by its cause."""
SHOWN_FAULTS = 5
ENDED = ("succeeded", "failed", "cancelled")


def part(row: Row, *path: str) -> dict[str, Any]:
    """The object at a path of fields; empty when there is none."""
    value: Any = row
    for name in path:
        value = cast("Row", value).get(name) if isinstance(value, Mapping) else None
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def ours(job: Row) -> dict[str, Any]:
    """Tunesmith's own part of a job; empty when another service answers."""
    return part(job, "tunesmith")


def phase(job: Row) -> str:
    """The exact phase."""
    return ours(job).get("phase") or job["status"]


def progress(job: Row) -> dict[str, Any]:
    """How far the run is."""
    return part(job, "tunesmith", "progress")


def steps(job: Row) -> str:
    """Share and count of the steps done, e.g. `45% 27/60`."""
    step, total = progress(job).get("step") or 0, progress(job).get("total_steps")
    return f"{100 * step // total}% {step}/{total}" if total else str(step or "-")


def eta(job: Row) -> str:
    """Time left, while it runs."""
    finish = job.get("estimated_finish")
    return "-" if finish is None else duration(finish - time.time())


def loss(job: Row) -> str:
    """The latest training loss."""
    value = progress(job).get("loss")
    return "" if value is None else f"{value:.4f}"


JOBS: list[Column] = [
    ("ID", lambda job: job["id"]),
    ("MODEL", lambda job: job["model"]),
    ("PHASE", phase),
    ("PROGRESS", steps),
    ("ETA", eta),
    ("AGE", lambda job: age(job["created_at"])),
    ("TUNED MODEL", lambda job: job.get("fine_tuned_model")),
]


def _took(attempt: Row) -> str:
    return duration((attempt["ended_at"] or time.time()) - attempt["started_at"])


def _why(attempt: Row) -> str:
    where = "" if attempt["rank"] is None else f" (rank {attempt['rank']})"
    return f"{attempt['code']}: {attempt['message']}{where}" if attempt["code"] else ""


ATTEMPTS: list[Column] = [
    ("RUN", lambda attempt: attempt["epoch"]),
    ("STARTED", lambda attempt: when(attempt["started_at"])),
    ("TOOK", _took),
    ("STEPS", lambda attempt: f"{attempt['resumed_step'] or 0} to {attempt['last_step']}"),
    ("OUTCOME", lambda attempt: attempt["outcome"] or "goes on"),
    ("WHY", _why),
]
CREATED: list[Column] = [
    ("id", lambda job: job["id"]),
    ("phase", phase),
    ("model", lambda job: job["model"]),
    ("seed", lambda job: job["seed"]),
]
EVENTS: list[Column] = [
    ("TIME", lambda event: clock(event["created_at"])),
    ("LEVEL", lambda event: event["level"]),
    ("MESSAGE", lambda event: event["message"]),
]
CHECKPOINTS: list[Column] = [
    ("STEP", lambda checkpoint: checkpoint["step_number"]),
    ("TRAIN LOSS", lambda checkpoint: _number(checkpoint, "train_loss")),
    ("VALID LOSS", lambda checkpoint: _number(checkpoint, "full_valid_loss") or _number(checkpoint, "valid_loss")),
    ("CREATED", lambda checkpoint: when(checkpoint["created_at"])),
    ("MODEL", lambda checkpoint: checkpoint["fine_tuned_model_checkpoint"]),
]


def _number(checkpoint: Row, name: str) -> str:
    value = part(checkpoint, "metrics").get(name)
    return "" if value is None else f"{value:.4f}"


def _hyperparameter(name: str) -> Callable[[Row], object]:
    return lambda job: part(job, "hyperparameters").get(name)


def _learning_rate(job: Row) -> object:
    return part(job, "tunesmith", "resolved").get("learning_rate") or part(job, "tunesmith", "training").get("learning_rate")


def _speed(job: Row) -> str:
    value = progress(job).get("tokens_per_second")
    return "" if value is None else f"{value:,.0f}"


def _epoch(job: Row) -> object:
    return ours(job).get("epoch") or None


JOB: list[Column] = [
    ("id", lambda job: job["id"]),
    ("phase", phase),
    ("reason", lambda job: ours(job).get("reason")),
    ("queue position", lambda job: ours(job).get("queue_position")),
    ("model", lambda job: job["model"]),
    ("tuned model", lambda job: job.get("fine_tuned_model")),
    ("training file", lambda job: job["training_file"]),
    ("validation file", lambda job: job.get("validation_file")),
    ("result files", lambda job: ", ".join(job.get("result_files") or [])),
    ("method", lambda job: part(job, "method").get("type")),
    ("epochs", _hyperparameter("n_epochs")),
    ("batch size", _hyperparameter("batch_size")),
    ("learning rate", _learning_rate),
    ("adapter", lambda job: adapter(part(job, "tunesmith", "adapter"))),
    ("resources", lambda job: resources(part(job, "tunesmith", "resources"))),
    ("seed", lambda job: job.get("seed")),
    ("run", _epoch),
    ("stage", lambda job: progress(job).get("stage")),
    ("progress", steps),
    ("loss", loss),
    ("tokens/s", _speed),
    ("eta", lambda job: None if job.get("estimated_finish") is None else eta(job)),
    ("trained tokens", lambda job: None if job.get("trained_tokens") is None else f"{job['trained_tokens']:,}"),
    ("created", lambda job: when(job["created_at"])),
    ("started", lambda job: when(ours(job).get("started_at"))),
    ("finished", lambda job: when(job.get("finished_at"))),
    ("metadata", lambda job: ", ".join(f"{key}={value}" for key, value in part(job, "metadata").items())),
]


def adapter(spec: Row) -> str:
    """An adapter in one line."""
    targets = spec.get("target_modules")
    targets = ", ".join(cast("list[str]", targets)) if isinstance(targets, list) else targets
    if spec.get("type") == "full":
        return "full"
    return f"{spec.get('type')} r={spec.get('r')} alpha={spec.get('alpha')} dropout={spec.get('dropout')} on {targets}" if spec else ""


def resources(spec: Row) -> str:
    """A gang of workers in one line."""
    if not spec:
        return ""
    gpus, cpus = spec.get("gpus_per_worker"), spec.get("cpus_per_worker")
    each = [f"{gpus} GPU(s)"] if gpus else []
    each += [f"{cpus} core(s)"] if cpus else []
    gang = f"{spec.get('workers')} worker(s){' with ' + ' and '.join(each) + ' each' if each else ''}"
    shared = spec.get("sequence_parallel", 1)
    return f"{gang}, engine {spec.get('engine')}{f', {shared} share each row' if shared > 1 else ''}"


def failure(job: Row) -> list[str]:
    """Why a job failed: its message, the first faulty lines with their hints, and the next step."""
    error = part(job, "error")
    if not error:
        return []
    lines = [f"{error.get('code')}: {error.get('message')}"]
    report = part(job, "tunesmith", "error", "details", "report")
    faults: list[dict[str, Any]] = report.get("faults") or []
    unit = "line" if report.get("format") in (None, "jsonl") else "row"
    lines += [f"  {_fault(fault, unit)}" for fault in faults[:SHOWN_FAULTS]]
    if len(faults) > SHOWN_FAULTS:
        lines.append(f"  … `tunesmith jobs get {job['id']} -o json` lists {len(faults)}")
    next_step = NEXT_STEP.get(part(job, "tunesmith", "error").get("cause", ""))
    return [*lines, next_step] if next_step else lines


def _fault(fault: Row, unit: str) -> str:
    where = f"{unit} {fault['line']}" if fault.get("line") else "the file"
    field = f", {fault['path']}" if fault.get("path") else ""
    hint = f" {fault['hint']}" if fault.get("hint") else ""
    return f"{where}{field}: {fault.get('message')} [{fault.get('rule')}].{hint}"
