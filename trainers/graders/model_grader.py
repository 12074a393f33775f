"""Graders that ask a model: a score, a label, or how near two embeddings are.

Builds the question and reads the answer; endpoint.py carries both. Called by grade.py.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Mapping
from typing import Any

from trainers.graders.endpoint import Endpoint, EndpointFailed
from trainers.graders.outcome import Errors, Score, Unscored, sendable
from trainers.graders.spec import AudioPart, ImagePart, LabelModelGrader, Message, Part, ScoreModelGrader
from trainers.graders.template import Rendering, Sample

_STEP = {
    "type": "object",
    "properties": {"description": {"type": "string"}, "conclusion": {"type": "string"}},
    "required": ["description", "conclusion"],
    "additionalProperties": False,
}


async def ask_for_score(grader: ScoreModelGrader, sample: Sample, endpoint: Endpoint) -> Score:
    """The model's number, cut to the grader's range. Raises Unscored."""
    result, model, usage = await _ask(grader, sample, endpoint, {"type": "number"})
    if isinstance(result, bool) or not isinstance(result, int | float) or not math.isfinite(result):
        raise Unscored(Errors(model_grader_parse_error=True), usage)
    low, high = grader.bounds
    return Score(float(min(max(result, low), high)), model, usage)


async def ask_for_label(grader: LabelModelGrader, sample: Sample, endpoint: Endpoint) -> Score:
    """1 when the model's label is a passing one, else 0. Raises Unscored."""
    result, model, usage = await _ask(grader, sample, endpoint, {"type": "string", "enum": grader.labels})
    if result not in grader.labels:
        raise Unscored(Errors(model_grader_parse_error=True), usage)
    return Score(float(result in grader.passing_labels), model, usage)


async def cosine(text: str, reference: str, endpoint: Endpoint) -> Score:
    """Cosine of the angle between the texts' embeddings. Raises Unscored."""
    try:
        answer = await endpoint.embed([text, reference])
    except EndpointFailed as error:
        raise _unanswered(error) from error
    model = endpoint.embedding_model or ""
    usage = _usage(answer, model)
    try:
        one, other = ([float(number) for number in entry["embedding"]] for entry in answer["data"])
        lengths = math.hypot(*one) * math.hypot(*other)
        value = sum(a * b for a, b in zip(one, other, strict=True)) / lengths
    except (KeyError, TypeError, ValueError, ArithmeticError):
        value = math.nan
    if not math.isfinite(value):
        raise Unscored(Errors(model_grader_parse_error=True), usage)
    return Score(min(1.0, max(-1.0, value)), model, usage)


async def _ask(
    grader: ScoreModelGrader | LabelModelGrader, sample: Sample, endpoint: Endpoint, wanted: dict[str, Any]
) -> tuple[Any, str, dict[str, int]]:
    """The model's `result`, the model by its own word, and the tokens it took."""
    try:
        answer = await endpoint.chat(await asyncio.to_thread(question, grader, sample, wanted))
    except EndpointFailed as error:
        raise _unanswered(error) from error
    model = sendable(answer["model"]) if isinstance(answer.get("model"), str) else grader.model
    usage = _usage(answer, model)
    return _result(answer, usage), model, usage


def question(grader: ScoreModelGrader | LabelModelGrader, sample: Sample, wanted: dict[str, Any]) -> dict[str, Any]:
    """The chat completion's body: the messages with references filled in, and OpenAI's form of answer, reasons first."""
    schema = {
        "type": "object",
        "properties": {"steps": {"type": "array", "items": _STEP}, "result": wanted},
        "required": ["steps", "result"],
        "additionalProperties": False,
    }
    rendering = Rendering(sample)
    return {
        "model": grader.model,
        "messages": [_message(message, rendering) for message in grader.input],
        "response_format": {"type": "json_schema", "json_schema": {"name": "grade", "strict": True, "schema": schema}},
        **_sampling(grader),
    }


def _sampling(grader: ScoreModelGrader | LabelModelGrader) -> dict[str, Any]:
    """The sampling parameters under the names of chat completions."""
    if isinstance(grader, LabelModelGrader) or grader.sampling_params is None:
        return {}
    given = grader.sampling_params.model_dump(exclude_none=True)
    return {"max_completion_tokens" if name == "max_completions_tokens" else name: value for name, value in given.items()}


def _message(message: Message, rendering: Rendering) -> dict[str, Any]:
    content = message.content
    if isinstance(content, str):
        return {"role": message.role, "content": rendering.fill(content)}
    return {"role": message.role, "content": [_part(part, rendering) for part in (content if isinstance(content, list) else [content])]}


def _part(part: str | Part, rendering: Rendering) -> dict[str, Any]:
    """A part of a message, from the words of OpenAI's responses to those of its chat completions."""
    if isinstance(part, AudioPart):
        return {"type": "input_audio", "input_audio": part.input_audio.model_dump()}
    if isinstance(part, ImagePart):
        detail = {"detail": part.detail} if part.detail else {}
        return {"type": "image_url", "image_url": {"url": rendering.fill(part.image_url), **detail}}
    return {"type": "text", "text": rendering.fill(part if isinstance(part, str) else part.text)}


def _result(answer: Mapping[str, Any], usage: dict[str, int]) -> Any:
    """`result` of the object that the model wrote, or the bare value where the endpoint does not hold models to a form."""
    try:
        choice = answer["choices"][0]
        if choice["message"].get("refusal") or choice.get("finish_reason") == "content_filter":
            raise Unscored(Errors(model_grader_refusal_error=True), usage)
        written = json.loads(choice["message"]["content"])
        return written["result"] if isinstance(written, dict) else written
    except (KeyError, IndexError, TypeError, AttributeError, ValueError, RecursionError):
        raise Unscored(Errors(model_grader_parse_error=True), usage) from None


def _usage(answer: Mapping[str, Any], model: str) -> dict[str, int]:
    used = answer.get("usage")
    total = used.get("total_tokens") if isinstance(used, dict) else None
    return {model: total} if isinstance(total, int) and total >= 0 else {}


def _unanswered(error: EndpointFailed) -> Unscored:
    return Unscored(Errors(model_grader_server_error=True, model_grader_server_error_details=str(error)))
