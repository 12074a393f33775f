"""What a job of OpenAI's becomes here: the request that makes it again, what stays behind, or why it can't move. Pure.

Knows no service and no disk. Called by migrate.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from service.cli import jobfile, views
from service.cli.output import Column, Ended, Row

HYPERPARAMETERS = ("n_epochs", "batch_size", "learning_rate_multiplier")
ORIGIN = "migrated_from"
"""Key of the metadata that names the job at the source."""
MAX_PAIRS = 16
NOT_OFFERED = {
    "dpo": "preference tuning (dpo) is not offered here yet",
    "reinforcement": "reinforcement fine-tuning is not offered here yet, and its grader steers nothing without it",
}
UNSUCCESSFUL = ("cancelled", "failed")
NEVER_MOVES = (
    "Tuned weights do not move: OpenAI hands out none. Each job is trained anew here, on the base model that you choose.",
    "A learning rate multiplier is a factor on tunesmith.training.learning_rate here; OpenAI does not say what theirs multiplies.",
)


@dataclass(frozen=True)
class Move:
    """One job of the source, and what it becomes."""

    job: Row
    method: str
    request: dict[str, Any]
    """With the file ids of the source, and without a model when none was chosen."""
    why_not: str
    """Why it is not made again; empty when it can be."""
    notes: tuple[str, ...]
    """What is another than it was there."""

    @property
    def id(self) -> str:
        """Of the job at the source."""
        return self.job["id"]


def plan(job: Row, model: str | None, at_hand: Collection[str], *, named: bool) -> Move:
    """What `job` becomes on `model`. `at_hand` are the files that were downloaded; `named` says that it was asked for by its id."""
    notes: list[str] = []
    method: str = views.part(job, "method").get("type") or "supervised"
    request: dict[str, Any] = {"training_file": job["training_file"]} | ({"model": model} if model else {})
    if validation := job.get("validation_file"):
        if validation in at_hand:
            request["validation_file"] = validation
        else:
            notes.append(f"its validation file {validation} can't be had there any more and is left out")
    request["method"] = {"type": "supervised", "supervised": {"hyperparameters": _hyperparameters(job, notes)}}
    request |= {name: value for name, value in (("suffix", _suffix(job, notes)), ("seed", job.get("seed"))) if value is not None}
    if metadata := _metadata(job, notes):
        request["metadata"] = metadata
    if job.get("integrations"):
        notes.append("its integrations stay behind: operators allow them here")
    if job["status"] not in views.ENDED:
        notes.append(f"it is {job['status']} there: it would be trained at both")
    return Move(job, method, request, _why_not(job, method, request, at_hand, named=named), tuple(notes))


def _why_not(job: Row, method: str, request: dict[str, Any], at_hand: Collection[str], *, named: bool) -> str:
    if method != "supervised":
        return NOT_OFFERED.get(method, f"the method '{method}' is not offered here")
    if job["training_file"] not in at_hand:
        return f"its training file {job['training_file']} can't be had there any more"
    if job["status"] in UNSUCCESSFUL and not named:
        return f"it {'was ' if job['status'] == 'cancelled' else ''}{job['status']} there: name it with --jobs to make it again"
    try:
        files = {name: "file-local" for name in jobfile.FILES if name in request}
        jobfile.checked({"model": "not-chosen"} | request | files)
    except Ended as ended:
        return ended.message
    return ""


def _hyperparameters(job: Row, notes: list[str]) -> dict[str, Any]:
    """As the source resolved them; what is out of bounds here is left to the service."""
    from pydantic import ValidationError

    from trainers.spec import Hyperparameters

    there = views.part(job, "hyperparameters") | views.part(job, "method", "supervised", "hyperparameters")
    found: dict[str, Any] = {}
    for name in HYPERPARAMETERS:
        value = there.get(name)
        try:
            found[name] = getattr(Hyperparameters.model_validate({name: "auto" if value is None else value}), name)
        except ValidationError:
            found[name] = "auto"
            notes.append(f"its {name} of {value} is out of bounds here and becomes auto")
    return found


def _suffix(job: Row, notes: list[str]) -> str | None:
    """The suffix it was given, or else the one in the tuned model's name, ft:model:organization:suffix:id."""
    named = str(job.get("fine_tuned_model") or "").split(":")
    there: str = job.get("user_provided_suffix") or (named[3] if len(named) == 5 else "")
    suffix = re.sub(r"^[^A-Za-z0-9]+", "", re.sub(r"[^A-Za-z0-9._-]", "-", there))[:64]
    if suffix != there:
        notes.append(f"its suffix '{there}' becomes '{suffix}'")
    return suffix or None


def _metadata(job: Row, notes: list[str]) -> dict[str, str]:
    metadata: dict[str, str] = views.part(job, "metadata")
    if len(metadata) >= MAX_PAIRS and ORIGIN not in metadata:
        notes.append(f"its metadata is full, so that {ORIGIN} does not stand in it")
        return metadata
    return metadata | {ORIGIN: job["id"]}


def _here(name: str) -> Callable[[Row], object]:
    return lambda row: views.part(row, "request", "method", "supervised", "hyperparameters").get(name) if row["moves"] else "-"


def row(move: Move, here: str | None) -> Row:
    """A move as data; `here` is the id of the job that it has become."""
    return {
        "job": move.id,
        "status": move.job["status"],
        "model": move.job["model"],
        "fine_tuned_model": move.job.get("fine_tuned_model"),
        "method": move.method,
        "moves": not move.why_not,
        "why_not": move.why_not or None,
        "notes": list(move.notes),
        "request": move.request if not move.why_not else None,
        "here": here,
    }


COLUMNS: list[Column] = [
    ("JOB", lambda row: row["job"]),
    ("STATUS", lambda row: row["status"]),
    ("WAS", lambda row: row["model"]),
    ("BECOMES", lambda row: views.part(row, "request").get("model", "(choose --model)") if row["moves"] else "-"),
    ("METHOD", lambda row: row["method"]),
    ("EPOCHS", _here("n_epochs")),
    ("BATCH", _here("batch_size")),
    ("RATE X", _here("learning_rate_multiplier")),
    ("SUFFIX", lambda row: views.part(row, "request").get("suffix") or "-"),
    ("SEED", lambda row: views.part(row, "request").get("seed", "-")),
    ("PAIRS", lambda row: len(views.part(row, "request", "metadata")) or "-"),
    ("HERE", lambda row: row["here"] or "-"),
]
