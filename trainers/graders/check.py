"""Says of a grader, without a sample and without running it, whether it can grade here.

`check` reads all that the grader holds; `check_offered` only asks for the tools, which grade.py does before each sample.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager

from trainers.graders.endpoint import Endpoint
from trainers.graders.formula import Formula, FormulaError, parse_formula
from trainers.graders.outcome import Refused
from trainers.graders.python_grader import check_source
from trainers.graders.spec import (
    ImagePart,
    LabelModelGrader,
    Message,
    MultiGrader,
    PythonGrader,
    ScoreModelGrader,
    SingleGrader,
    StringCheckGrader,
    TextPart,
    TextSimilarityGrader,
)
from trainers.graders.template import check_template
from trainers.graders.tools import Deadline, Tools


async def check(grader: SingleGrader | MultiGrader, tools: Tools) -> None:
    """Raises Refused, which names the field, for a template, formula or source that can't be read, or a tool that is not there."""
    check_offered(grader, tools)
    if isinstance(grader, MultiGrader):
        try:
            formula_of(grader)
        except FormulaError as error:
            raise Refused("calculate_output", f"'calculate_output' can't be reckoned: {error}.") from None
    deadline = Deadline.after(tools.timeout)
    for place, part in _parts(grader):
        with _at(place):
            for field, text in _templates(part):
                check_template(text, field)
            if isinstance(part, PythonGrader):
                await check_source(part.source, tools.python, deadline.left)


def check_offered(grader: SingleGrader | MultiGrader, tools: Tools) -> None:
    """Raises Refused when the grader asks for a model that nothing here answers for."""
    for place, part in _parts(grader):
        with _at(place):
            if isinstance(part, ScoreModelGrader | LabelModelGrader):
                _check_model(part, tools.endpoint)
            elif isinstance(part, TextSimilarityGrader) and part.evaluation_metric == "cosine":
                _check_embeddings(tools.endpoint)


def formula_of(grader: MultiGrader) -> Formula:
    """The grader's formula. Raises FormulaError, also for a name that is none of its parts'."""
    formula = parse_formula(grader.calculate_output)
    unknown = sorted(formula.names - set(grader.parts))
    if unknown:
        raise FormulaError(f"{unknown[0]!r} is no grader's name; known: {', '.join(grader.parts)}")
    return formula


def _parts(grader: SingleGrader | MultiGrader) -> Iterator[tuple[str, SingleGrader]]:
    """Each grader that scores, with the path to it."""
    if not isinstance(grader, MultiGrader):
        yield "", grader
    elif isinstance(grader.graders, dict):
        yield from ((f"graders.{name}.", part) for name, part in grader.graders.items())
    else:
        yield "graders.", grader.graders


@contextmanager
def _at(place: str) -> Generator[None]:
    """A refusal of a part names its field from the whole grader's root."""
    try:
        yield
    except Refused as refused:
        raise Refused(place + refused.field, refused.message) from None


def _templates(grader: SingleGrader) -> Iterator[tuple[str, str]]:
    """The grader's texts with references, each with its field."""
    if isinstance(grader, StringCheckGrader | TextSimilarityGrader):
        yield from (("input", grader.input), ("reference", grader.reference))
    elif isinstance(grader, ScoreModelGrader | LabelModelGrader):
        for number, message in enumerate(grader.input):
            yield from ((f"input[{number}].content", text) for text in _texts(message))


def _texts(message: Message) -> Iterator[str]:
    for part in message.content if isinstance(message.content, list) else [message.content]:
        if isinstance(part, str):
            yield part
        elif isinstance(part, TextPart):
            yield part.text
        elif isinstance(part, ImagePart):
            yield part.image_url


def _check_model(grader: ScoreModelGrader | LabelModelGrader, endpoint: Endpoint | None) -> None:
    if endpoint is None:
        next_step = "set TUNESMITH_GRADER_BASE_URL and TUNESMITH_GRADER_MODELS"
        raise Refused("type", f"{grader.type} graders are off, because no endpoint is configured: {next_step}.")
    if grader.model not in endpoint.models:
        known = ", ".join(endpoint.models) or "none"
        raise Refused("model", f"The model '{grader.model}' may not grade; TUNESMITH_GRADER_MODELS allows: {known}.")


def _check_embeddings(endpoint: Endpoint | None) -> None:
    if endpoint is None or endpoint.embedding_model is None:
        raise Refused(
            "evaluation_metric",
            "The metric cosine is off, because no endpoint makes embeddings: set TUNESMITH_GRADER_BASE_URL and "
            "TUNESMITH_GRADER_EMBEDDING_MODEL, or choose another metric.",
        )
