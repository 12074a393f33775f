"""A model's chat template: Jinja in a sandbox, with the filters and globals that transformers gives it.

A template is a program that came with the model. Nothing it does here reaches further than its own text,
but it may run for ever: the data check renders in a process with limits. Called by chat.py.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import date, datetime, time
from typing import Any

import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.utils
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

__all__ = ["ChatTemplate", "TemplateError"]


class ChatTemplate:
    """A compiled template. `literals` is all text that it can write by itself, parts kept apart by NUL."""

    def __init__(self, source: str, special_tokens: Mapping[str, str], today: date) -> None:
        """`special_tokens` are variables of the template, by the names of tokenizer_config.json. Raises TemplateError."""
        environment = _environment(today)
        self._template = environment.from_string(source)
        self._special_tokens = dict(special_tokens)
        self.literals = _literals(environment, source)

    def render(self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None, generation_prompt: bool) -> str:
        """The conversation as text. Raises TemplateError where the template refuses it, and what Python raises where it fails."""
        return self._template.render(
            messages=messages, tools=tools or None, documents=None, add_generation_prompt=generation_prompt, **self._special_tokens
        )


class _GenerationBlock(jinja2.ext.Extension):
    """`{% generation %}` marks assistant text for transformers; here it renders its body and nothing else."""

    tags = {"generation"}  # noqa: RUF012  (Jinja's own way of declaring a tag)

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Namespace(jinja2.utils.Namespace):
    """Jinja's namespace without names that begin with an underscore, by which templates have left the sandbox."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # no `self`: a template may store an attribute of that name
        attributes = dict(*args[1:], **kwargs)
        for name in attributes:
            _refuse_private(name)
        jinja2.utils.Namespace.__init__(args[0], attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _refuse_private(name)
        super().__setitem__(name, value)


def _environment(today: date) -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlock, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise
    # One moment for a whole file: which rows come before midnight must not show in the tokens.
    environment.globals["strftime_now"] = datetime.combine(today, time()).strftime
    environment.globals["namespace"] = _Namespace
    return environment


def _refuse_private(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace can't hold {name!r}: names with an underscore first are private")


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: tuple[str, str] | None = None, sort_keys: bool = False
) -> str:
    # Jinja's own filter escapes HTML characters, which no template wants.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message: str) -> None:
    raise TemplateError(message)


def _literals(environment: ImmutableSandboxedEnvironment, source: str) -> str:
    tree = environment.parse(source)
    parts = [node.data for node in tree.find_all(jinja2.nodes.TemplateData)]
    parts += [node.value for node in tree.find_all(jinja2.nodes.Const) if isinstance(node.value, str)]
    return "\0".join(parts)
