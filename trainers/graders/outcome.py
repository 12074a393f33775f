"""What becomes of a grading: a score, or OpenAI's fourteen words for why there is none. Frozen values; knows no grader."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields


def sendable(text: str) -> str:
    """What others wrote, fit to be sent on: half a surrogate pair, which JSON can escape and UTF-8 can't hold, becomes a question mark."""
    return text.encode("utf-8", "replace").decode()


@dataclass(frozen=True)
class Errors:
    """What went wrong, under OpenAI's names; docs/graders.md says when each is set."""

    formula_parse_error: bool = False
    sample_parse_error: bool = False
    truncated_observation_error: bool = False
    unresponsive_reward_error: bool = False
    invalid_variable_error: bool = False
    other_error: bool = False
    python_grader_server_error: bool = False
    python_grader_server_error_type: str | None = None
    python_grader_runtime_error: bool = False
    python_grader_runtime_error_details: str | None = None
    model_grader_server_error: bool = False
    model_grader_refusal_error: bool = False
    model_grader_parse_error: bool = False
    model_grader_server_error_details: str | None = None

    def __or__(self, other: Errors) -> Errors:
        """All that went wrong on either side; of two texts the first."""
        return Errors(**{entry.name: getattr(self, entry.name) or getattr(other, entry.name) for entry in fields(self)})

    def __bool__(self) -> bool:
        return self != Errors()


class Unscored(Exception):
    """This sample has no score from this grader; holds why."""

    def __init__(self, errors: Errors, usage: Mapping[str, int] | None = None) -> None:
        super().__init__(errors, usage)
        self.errors = errors
        self.usage = usage or {}


class Refused(ValueError):
    """This grader can't be used here, whatever the sample: `field` (dotted path) and what to do about it."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(field, message)
        self.field, self.message = field, message


@dataclass(frozen=True)
class Score:
    """A number, and what a model that was asked for it spent."""

    value: float
    model: str | None = None
    """The model that answered, by its own word."""
    usage: Mapping[str, int] = field(default_factory=dict)
    """Tokens by model."""


@dataclass(frozen=True)
class Outcome:
    """All that is known after one sample was graded. `reward` is 0 where `errors` says anything."""

    reward: float
    errors: Errors = Errors()
    execution_time: float = 0.0
    """Seconds."""
    sub_rewards: Mapping[str, float] = field(default_factory=dict)
    """Scores of a multi grader's parts, those that there are."""
    models: tuple[str, ...] = ()
    usage: Mapping[str, int] = field(default_factory=dict)
    """Tokens by model."""
