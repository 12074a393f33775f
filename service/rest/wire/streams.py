"""Shapes of a job's curves."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from service.rest.wire.shared import Answer


class JobMetrics(Answer):
    """What was measured at each step, in columns of equal length."""

    object: Literal["fine_tuning.job.metrics"] = "fine_tuning.job.metrics"
    fine_tuning_job_id: str
    total_rows: int = Field(description="Steps there are beyond `after_step`; more than the columns hold where rows were left out.")
    data: dict[str, list[float | int | None]] = Field(
        description=(
            "`step`, and for each of them train_loss, train_mean_token_accuracy, learning_rate, grad_norm, tokens_per_second, "
            "valid_loss, valid_mean_token_accuracy, full_valid_loss, full_valid_mean_token_accuracy; null where nothing was measured."
        )
    )
