"""Templates: text in which `{{item.x}}` and `{{sample.output_text}}` stand for values. References only, nothing is executed.

Pure. `Sample` is what the references lead into; every grader reads its sample through it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from trainers.graders.outcome import Errors, Refused, Unscored

MAX_RENDERED = 2**20
"""Characters of a text after its references were filled in."""
MAX_DEPTH = 100
_REFERENCE = re.compile(r"\s*(item|sample)((?:\.[\w-]+|\[\d{1,9}\])*)\s*")
_STEP = re.compile(r"\.([\w-]+)|\[(\d+)\]")
_SAMPLE = ("output_text", "output_json")
Path = tuple[str | int, ...]


@dataclass(frozen=True)
class Sample:
    """What is graded: a model's output, and the dataset's item that led to it."""

    output_text: str
    item: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def output_json(self) -> Any:
        """The output read as JSON; raises Unscored (sample_parse_error) when it is none."""
        try:
            value = json.loads(self.output_text, parse_constant=_no_constant)
            if _too_deep(value):
                raise ValueError(f"more than {MAX_DEPTH} levels")
            json.dumps(value, ensure_ascii=False).encode()  # half a surrogate pair, which can be escaped, is no text
        except (ValueError, RecursionError):
            raise Unscored(Errors(sample_parse_error=True)) from None
        return value

    def at(self, path: Path) -> Any:
        """The value a reference leads to; raises Unscored (invalid_variable_error) when there is none."""
        if path[0] == "item":
            return _walk(self.item, path[1:])
        if path[1] == "output_text":
            return _walk(self.output_text, path[2:])
        return _walk(self.output_json, path[2:])


def check_template(text: str, field: str) -> None:
    """Raises Refused, which names `field`, when `text` holds a reference that no sample could fill."""
    if () in _pieces(text):
        known = "{{item.NAME}}, {{sample.output_text}} and {{sample.output_json.NAME}}"
        raise Refused(field, f"'{field}' holds a reference in double braces that is none of {known}.")


class Rendering:
    """Fills in the texts of one grading, which together have at most MAX_RENDERED characters."""

    def __init__(self, sample: Sample) -> None:
        self._sample = sample
        self._left = MAX_RENDERED
        self._known: dict[Path, str] = {}

    def fill(self, text: str) -> str:
        """`text` with values in place of its references: strings as they are, others as JSON.

        Raises Unscored: invalid_variable_error, sample_parse_error, or truncated_observation_error when it becomes too long.
        """
        parts: list[str] = []
        for piece in _pieces(text):
            part = piece if isinstance(piece, str) else self._value(piece)
            self._left -= len(part)
            if self._left < 0:
                raise Unscored(Errors(truncated_observation_error=True))
            parts.append(part)
        return "".join(parts)

    def _value(self, path: Path) -> str:
        if not path:
            raise Unscored(Errors(invalid_variable_error=True))
        if path not in self._known:
            value = self._sample.at(path)
            self._known[path] = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        return self._known[path]


def _pieces(text: str) -> Iterator[str | Path]:
    """Plain text and references in turn; an empty path for what stands in braces and is no reference."""
    end = 0
    while (start := text.find("{{", end)) >= 0:
        yield text[end:start]
        end = text.find("}}", start)
        if end < 0:
            yield ()
            return
        yield _path(text[start + 2 : end])
        end += 2
    yield text[end:]


def _path(words: str) -> Path:
    match = _REFERENCE.fullmatch(words)
    if match is None:
        return ()
    path: Path = (match[1], *(int(index) if index else name for name, index in _STEP.findall(match[2])))
    known = len(path) > 1 and isinstance(path[1], str) and (path[0] == "item" or path[1] in _SAMPLE)
    return path if known else ()


def _walk(value: Any, path: Path) -> Any:
    try:
        for step in path:
            if not isinstance(value, list if isinstance(step, int) else dict):
                raise LookupError(step)
            value = value[step]
    except LookupError:
        raise Unscored(Errors(invalid_variable_error=True)) from None
    return value


def _too_deep(value: Any) -> bool:
    """Whether `value` nests deeper than MAX_DEPTH: writing it again would use up the stack."""
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [below for node in level for below in (node.values() if isinstance(node, dict) else node if isinstance(node, list) else ())]
    return bool(level)


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")
