"""Shapes of estimates and of checks of files."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from service.data_report import DataReport
from service.estimate import CostEstimate, Placement, PlanEstimate, TimeEstimate
from service.job_request import CheckFileRequest as CheckFileRequest
from service.job_request import EstimateJobRequest as EstimateJobRequest
from service.rest.wire.shared import Answer
from trainers.spec import Resolved


class JobEstimate(Answer):
    """What a job would take. When the data is faulty (`ok` is false) there are no numbers, only the reports."""

    object: Literal["fine_tuning.job.estimate"] = "fine_tuning.job.estimate"
    ok: bool = Field(description="Whether the data can be trained on.")
    model: str
    method: str = Field(description="Name of the method.")
    training_file: str
    validation_file: str | None
    training: DataReport | None = Field(description="The check of the training file; null when its counts were given.")
    validation: DataReport | None = Field(description="The check of the validation file, where there is one.")
    resolved: Resolved | None = Field(description="What every auto would become.")
    trained_tokens: int | None = Field(description="Labelled tokens of the whole job, all epochs.")
    plan: PlanEstimate | None = Field(description="How it would run, and in how much memory.")
    placement: Placement | None = Field(description="Whether the cluster can hold it.")
    time: TimeEstimate | None = Field(description="How long it would take, in seconds; null when nothing is known of the device.")
    cost: CostEstimate | None = Field(description="Null unless the operator has set a price.")
    notes: tuple[str, ...] = Field(description="Why a number is missing.")


class FileCheck(Answer):
    """What the data check found."""

    object: Literal["file.check"] = "file.check"
    file_id: str
    model: str
    method: str
    ok: bool = Field(description="Whether the file can be trained on.")
    summary: str = Field(description="One sentence for a person.")
    report: DataReport = Field(description="Every fault with line, field, rule and hint; counts; the preview.")
