"""Grades one sample.

Called by the service's graders routes; made to be called by a run on Ray as well. Knows no transport and no project.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

from trainers.graders.check import check_offered, formula_of
from trainers.graders.endpoint import Endpoint
from trainers.graders.formula import FormulaError
from trainers.graders.model_grader import ask_for_label, ask_for_score, cosine
from trainers.graders.outcome import Errors, Outcome, Score, Unscored
from trainers.graders.python_grader import run_source
from trainers.graders.similarity import MAX_COMPARED, similarity
from trainers.graders.spec import (
    LabelModelGrader,
    MultiGrader,
    PythonGrader,
    ScoreModelGrader,
    SingleGrader,
    StringCheckGrader,
    TextSimilarityGrader,
)
from trainers.graders.template import Rendering, Sample
from trainers.graders.tools import Deadline, Tools


async def grade(grader: SingleGrader | MultiGrader, sample: Sample, tools: Tools) -> Outcome:
    """Grade one sample. Raises Refused, for reasons that no sample would change; all else is in the outcome."""
    check_offered(grader, tools)
    began = time.monotonic()
    work = _Work(sample, tools, Deadline.after(tools.timeout))
    outcome = await (_reckoned(grader, work) if isinstance(grader, MultiGrader) else _graded(grader, work))
    return replace(outcome, execution_time=time.monotonic() - began)


@dataclass(frozen=True)
class _Work:
    sample: Sample
    tools: Tools
    deadline: Deadline

    @property
    def endpoint(self) -> Endpoint:
        assert self.tools.endpoint is not None, "check_offered came first"
        return self.tools.endpoint

    @asynccontextmanager
    async def in_time(self) -> AsyncGenerator[None]:
        """End an endpoint's answer that takes longer than is left."""
        try:
            async with asyncio.timeout(self.deadline.left.total_seconds()):
                yield
        except TimeoutError:
            details = f"no answer within {self.tools.timeout.total_seconds():g} s"
            errors = Errors(unresponsive_reward_error=True, model_grader_server_error=True, model_grader_server_error_details=details)
            raise Unscored(errors) from None


async def _graded(grader: SingleGrader, work: _Work) -> Outcome:
    try:
        score = await _score(grader, work)
    except Unscored as unscored:
        return Outcome(0.0, unscored.errors, usage=unscored.usage)
    return Outcome(score.value, models=(score.model,) if score.model else (), usage=score.usage)


async def _reckoned(grader: MultiGrader, work: _Work) -> Outcome:
    """The formula's value over the parts' scores; 0 when one of them has none, for no number stands for a missing one."""
    try:
        formula = formula_of(grader)
    except FormulaError:
        return Outcome(0.0, Errors(formula_parse_error=True))
    outcomes = {name: await _graded(part, work) for name, part in grader.parts.items()}
    whole = _together(outcomes)
    try:
        return whole if whole.errors else replace(whole, reward=formula.value(whole.sub_rewards))
    except FormulaError:
        return replace(whole, errors=Errors(other_error=True))


def _together(parts: Mapping[str, Outcome]) -> Outcome:
    """All that is known of the parts, with no reward yet."""
    whole = Outcome(0.0, sub_rewards={name: part.reward for name, part in parts.items() if not part.errors})
    for part in parts.values():
        usage = {model: whole.usage.get(model, 0) + part.usage.get(model, 0) for model in (*whole.usage, *part.usage)}
        models = tuple(dict.fromkeys(whole.models + part.models))
        whole = replace(whole, errors=whole.errors | part.errors, usage=usage, models=models)
    return whole


async def _score(grader: SingleGrader, work: _Work) -> Score:
    """One grader's score. Raises Unscored."""
    match grader:
        case StringCheckGrader():
            return Score(await asyncio.to_thread(_compared, grader, work.sample))
        case TextSimilarityGrader():
            return await _similarity(grader, work)
        case PythonGrader():
            return Score(await run_source(grader.source, work.sample, work.tools.python, work.deadline.left))
        case ScoreModelGrader():
            async with work.in_time():
                return await ask_for_score(grader, work.sample, work.endpoint)
        case LabelModelGrader():
            async with work.in_time():
                return await ask_for_label(grader, work.sample, work.endpoint)


def _compared(grader: StringCheckGrader, sample: Sample) -> float:
    text, reference = _texts(grader, sample)
    match grader.operation:
        case "eq":
            return float(text == reference)
        case "ne":
            return float(text != reference)
        case "like":
            return float(reference in text)
        case "ilike":
            return float(reference.casefold() in text.casefold())


async def _similarity(grader: TextSimilarityGrader, work: _Work) -> Score:
    text, reference = await asyncio.to_thread(_texts, grader, work.sample)
    if max(len(text), len(reference)) > MAX_COMPARED:
        raise Unscored(Errors(truncated_observation_error=True))
    if grader.evaluation_metric == "cosine":
        async with work.in_time():
            return await cosine(text, reference, work.endpoint)
    return Score(await asyncio.to_thread(similarity, grader.evaluation_metric, text, reference))


def _texts(grader: StringCheckGrader | TextSimilarityGrader, sample: Sample) -> tuple[str, str]:
    rendering = Rendering(sample)
    return rendering.fill(grader.input), rendering.fill(grader.reference)
