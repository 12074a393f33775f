"""Shapes of graders' requests and answers; the graders themselves are in trainers/graders/spec.py."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from service.rest.wire.shared import Answer
from trainers.graders.spec import Grader
from trainers.spec import Frozen


class ValidateGraderRequest(Frozen):
    """A grader to check."""

    grader: Grader = Field(description="The grader; docs/graders.md describes each type.")


class RunGraderRequest(Frozen):
    """A grader and what it shall grade."""

    grader: Grader = Field(description="The grader; docs/graders.md describes each type.")
    model_sample: str = Field(
        max_length=2**20, description="A model's output. `sample.output_text` is this text, `sample.output_json` what it says as JSON."
    )
    item: dict[str, Any] | None = Field(default=None, description="The dataset's row, which `item` refers to.")


class ValidatedGrader(Answer):
    """A grader that can grade here."""

    grader: Grader = Field(description="The grader as it was given.")


class GraderErrors(Answer):
    """Why there is no reward."""

    formula_parse_error: bool = Field(description="calculate_output can't be read.")
    sample_parse_error: bool = Field(description="The grader asks for sample.output_json, and the sample is not JSON.")
    truncated_observation_error: bool = Field(description="A text or an answer was too long to be graded whole.")
    unresponsive_reward_error: bool = Field(description="There was no answer in time.")
    invalid_variable_error: bool = Field(description="A reference leads to nothing.")
    other_error: bool = Field(description="calculate_output has no finite value for these scores.")
    python_grader_server_error: bool = Field(description="The service could not run the source.")
    python_grader_server_error_type: str | None
    python_grader_runtime_error: bool = Field(description="The source failed, or returned no finite number.")
    python_grader_runtime_error_details: str | None
    model_grader_server_error: bool = Field(description="The endpoint failed.")
    model_grader_refusal_error: bool = Field(description="The model refused to answer.")
    model_grader_parse_error: bool = Field(description="The model's answer has no score or label in it.")
    model_grader_server_error_details: str | None


class GraderRunMetadata(Answer):
    """All about the grading but its result."""

    name: str
    type: str
    errors: GraderErrors
    execution_time: float = Field(description="Seconds.")
    scores: dict[str, float] = Field(description="The scores of a multi grader's parts.")
    sampled_model_name: str | None = Field(description="The model that was asked, by its own word; null when none or several were.")
    token_usage: int | None = Field(description="Tokens that models took, where they say.")


class GraderRun(Answer):
    """What a sample is worth."""

    reward: float = Field(description="The score; 0 where `metadata.errors` says anything.")
    sub_rewards: dict[str, float] = Field(description="The scores of a multi grader's parts, those that there are.")
    metadata: GraderRunMetadata
    model_grader_token_usage_per_model: dict[str, int]
