"""Graders: say whether one can grade here, and grade one sample."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

from service.app.context import Context, require
from service.errors import invalid
from service.records import Caller
from trainers.graders.check import check
from trainers.graders.grade import grade
from trainers.graders.outcome import Outcome, Refused
from trainers.graders.spec import Grader
from trainers.graders.template import Sample


class GraderUses(Context):
    """What a caller can do with graders. Both cost the machine work, so both need the scope to change things."""

    async def validate_grader(self, caller: Caller, grader: Grader) -> None:
        """INVALID_REQUEST, naming the field, unless the grader could grade a sample here."""
        require(caller, "write")
        async with self.grading.slots.take():
            with _refusals():
                await check(grader, self.grading.tools)

    async def run_grader(self, caller: Caller, grader: Grader, sample: Sample) -> Outcome:
        """Grade one sample; what goes wrong with it is in the outcome."""
        require(caller, "write")
        async with self.grading.slots.take():
            with _refusals():
                return await grade(grader, sample, self.grading.tools)


@contextmanager
def _refusals() -> Generator[None]:
    try:
        yield
    except Refused as refused:
        raise invalid(refused.message, f"grader.{refused.field}") from refused
