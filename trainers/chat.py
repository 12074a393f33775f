"""Conversations as tokens, through the model's own tokenizer and chat template. No torch, no transformers.

Renders as transformers' `apply_chat_template` does (sandboxed Jinja with the same filters and globals)
and finds which tokens an assistant wrote. Knows nothing of files or rows. Called by the methods when
data is encoded, and by evaluation and the examples for prompts.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
import jinja2.exceptions
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.utils
import numpy as np
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Encoding, Tokenizer

from trainers.method import Encoded, Fault

Message = Mapping[str, Any]
Span = tuple[int, int]
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


class EncodeError(ValueError):
    """A conversation can't be encoded; `fault` says why."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault)
        self.fault = fault

    def __str__(self) -> str:
        return self.fault.message


class TokenizerUnusable(ValueError):
    """The model's directory has no tokenizer or chat template that can be used."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages in OpenAI's form and the tools they may call."""

    messages: Sequence[Message]
    tools: Sequence[Mapping[str, Any]] | None = None


class ChatTokenizer:
    """A tokenizer with its chat template. Open it once and encode in batches: those use all cores."""

    def __init__(self, tokenizer: Tokenizer, template: str, special_tokens: Mapping[str, str], eos_ids: frozenset[int]) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self.tokenizer = tokenizer
        self.eos_ids = eos_ids
        """Tokens that end generation."""
        self._special_tokens = dict(special_tokens)
        environment = _environment()
        try:
            self._template = environment.from_string(template)
            literals = _literals(environment, template)
        except jinja2.TemplateError as error:
            raise TokenizerUnusable(f"the chat template does not compile: {error}") from error
        added = tokenizer.get_added_tokens_decoder().values()
        self._control_tokens = tuple(token.content for token in added if token.special)
        self._control = _any_of(self._control_tokens)
        # Tokens the template writes between turns are control tokens even where the tokenizer does not call them
        # special. An assistant may write them: "<think>" is one of them.
        written = [token.content for token in added if not token.special and not token.content.isspace() and token.content in literals]
        self._control_outside_assistant = _any_of((*self._control_tokens, *written))

    @classmethod
    def open(cls, directory: Path) -> ChatTokenizer:
        """The tokenizer in a model's directory. Raises TokenizerUnusable when it or its chat template is missing."""
        config = _read_json(directory / "tokenizer_config.json")
        try:
            tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
        except Exception as error:  # the Rust side raises plain Exception for a missing or broken file
            raise TokenizerUnusable(f"tokenizer.json can't be read: {error}") from error
        special = _special_tokens(config)
        return cls(tokenizer, _read_template(directory, config), special, _eos_ids(directory, tokenizer, special))

    def encode(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] | None = None) -> Encoded:
        """A whole conversation as tokens; weights are above 0 on what assistants wrote, their end of turn included.

        `weight: 0` on an assistant message takes its turn out of the loss. Raises EncodeError.
        """
        result = self.encode_batch([Conversation(messages, tools)])[0]
        if isinstance(result, Fault):
            raise EncodeError(result)
        return result

    def encode_batch(self, conversations: Sequence[Conversation]) -> list[Encoded | Fault]:
        """`encode` for many conversations at once; a fault stands in the place of one that can't be encoded."""
        rendered = [self._render_spans(conversation) for conversation in conversations]
        texts = [item[0] for item in rendered if not isinstance(item, Fault)]
        encodings = iter(self.tokenizer.encode_batch(texts, add_special_tokens=False))
        return [item if isinstance(item, Fault) else _label(next(encodings), item[1]) for item in rendered]

    def prompt(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] | None = None) -> list[int]:
        """Token ids of the conversation so far and the header of the assistant's next turn."""
        return self.tokenizer.encode(self.render(messages, tools, generation_prompt=True), add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of the ids, special tokens left out."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=True)

    def render(
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] | None = None, *, generation_prompt: bool = False
    ) -> str:
        """The conversation as text. Raises jinja2.TemplateError where the template refuses it."""
        return self._render([_for_template(message) for message in messages], tools, generation_prompt)

    def _render(self, messages: list[dict[str, Any]], tools: Sequence[Mapping[str, Any]] | None, generation_prompt: bool) -> str:
        return self._template.render(
            messages=messages, tools=tools or None, documents=None, add_generation_prompt=generation_prompt, **self._special_tokens
        )

    def _render_spans(self, conversation: Conversation) -> tuple[str, list[Span]] | Fault:
        """The conversation's text and the character spans [start, end) that carry loss."""
        try:
            messages = [_for_template(message) for message in conversation.messages]
            self._refuse_control_tokens(messages, conversation.tools)
            text = self._render(messages, conversation.tools, False)
            trained = [i for i, message in enumerate(conversation.messages) if message["role"] == "assistant" and message.get("weight", 1)]
            return text, [self._turn(text, messages, i, conversation.tools) for i in trained]
        except EncodeError as error:
            return error.fault
        except jinja2.TemplateError as error:
            return Fault("messages", "template", f"the model's chat template refuses this conversation: {error}", _TEMPLATE_HINT)
        except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
            # A template is a program of its own; what it trips over is the row as it sees it.
            return Fault("messages", "template", f"the model's chat template fails on this conversation: {error}", _TEMPLATE_HINT)

    def _turn(self, text: str, messages: list[dict[str, Any]], index: int, tools: Sequence[Mapping[str, Any]] | None) -> Span:
        """Where in `text` the assistant's turn lies, from after its header to its end-of-turn token."""
        before = self._render(messages[:index], tools, True)
        through = text if index == len(messages) - 1 else self._render(messages[: index + 1], tools, False)
        if not (text.startswith(before) and text.startswith(through) and len(before) <= len(through)):
            raise EncodeError(
                Fault(
                    f"messages[{index}]",
                    "template_not_prefix_stable",
                    "the model's chat template renders the turns before this one differently once it is added, "
                    "so the tokens of this turn can't be told from the prompt",
                    "Set weight 0 on this message, or split the conversation into one row for each trained turn.",
                )
            )
        turn = text[len(before) : len(through)].rstrip()
        ends_with_control = turn.endswith(self._control_tokens)
        return len(before), len(before) + len(turn) if ends_with_control else len(through)

    def _refuse_control_tokens(self, messages: list[dict[str, Any]], tools: Sequence[Mapping[str, Any]] | None) -> None:
        for i, message in enumerate(messages):
            pattern = self._control if message["role"] == "assistant" else self._control_outside_assistant
            for key, value in message.items():
                _refuse(pattern, value, f"messages[{i}].{key}")
        _refuse(self._control_outside_assistant, tools, "tools")


def tokenizer_fingerprint(directory: Path) -> str:
    """sha256 over the files that decide how a conversation becomes tokens; absent files count as absent."""
    digest = hashlib.sha256()
    for name in TOKENIZER_FILES:
        path = directory / name
        content = path.read_bytes() if path.is_file() else None
        digest.update(f"{name}:{None if content is None else len(content)}\n".encode() + (content or b""))
    return digest.hexdigest()


_TEMPLATE_HINT = "Check the order of the roles and that the base model's template knows tools, if the row uses them."


def _label(encoding: Encoding, spans: list[Span]) -> Encoded:
    """Tokens and weights; a token belongs to the span in which it starts."""
    ids = np.array(encoding.ids, dtype=np.uint32)
    weights = np.zeros(len(ids), dtype=np.float32)
    if spans:
        starts = np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2)[:, 0]
        for first, last in np.searchsorted(starts, np.array(spans)):
            weights[first:last] = 1.0
        weights[:1] = 0.0  # nothing comes before the first token to predict it from
    return Encoded(ids, weights)


def _for_template(message: Message) -> dict[str, Any]:
    """An OpenAI message as templates expect it: no nulls, no weight, text parts joined, tool arguments as objects."""
    plain = {key: value for key, value in message.items() if value is not None and key != "weight"}
    if plain["role"] == "developer":  # OpenAI's newer name of the system turn; open models know only the older
        plain["role"] = "system"
    if isinstance(plain.get("content"), list):
        plain["content"] = "".join(part["text"] for part in plain["content"])
    if "tool_calls" in plain:
        plain["tool_calls"] = [_tool_call(call) for call in plain["tool_calls"]]
        plain.setdefault("content", "")
    return plain


def _tool_call(call: Mapping[str, Any]) -> dict[str, Any]:
    function = dict(call["function"])
    if isinstance(function.get("arguments"), str):
        function["arguments"] = json.loads(function["arguments"])
    return {**call, "function": function}


def _refuse(pattern: re.Pattern[str], value: Any, path: str) -> None:
    """Raise EncodeError when a control token stands in any string of `value`, keys included."""
    if isinstance(value, str):
        if found := pattern.search(value):
            raise EncodeError(
                Fault(
                    path,
                    "control_token",
                    f"the text contains the model's control token {found[0]}, which would change where turns begin and end",
                    "Remove the token or write it differently, for example with a space inside.",
                )
            )
    elif isinstance(value, Mapping):
        for key, item in value.items():
            _refuse(pattern, key, path)
            _refuse(pattern, item, f"{path}.{key}")
    elif isinstance(value, (list, tuple)):
        for i, item in enumerate(value):
            _refuse(pattern, item, f"{path}[{i}]")


def _any_of(tokens: Sequence[str]) -> re.Pattern[str]:
    longest_first = sorted(filter(None, tokens), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")


class _GenerationBlock(jinja2.ext.Extension):
    """`{% generation %}` marks assistant text for transformers; here it renders its body and nothing else."""

    tags = {"generation"}  # noqa: RUF012  (Jinja's own way of declaring a tag)

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _environment() -> ImmutableSandboxedEnvironment:
    """Jinja as transformers sets it up. The date is taken once: a check that runs past midnight stays consistent."""
    now = datetime.now()
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlock, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = now.strftime
    environment.globals["namespace"] = _Namespace
    return environment


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


def _refuse_private(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a namespace can't hold {name!r}: names with an underscore first are private")


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: tuple[str, str] | None = None, sort_keys: bool = False
) -> str:
    # Jinja's own filter escapes HTML characters, which no template wants.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)


def _literals(environment: ImmutableSandboxedEnvironment, template: str) -> str:
    """All text the template can write by itself, parts kept apart by NUL."""
    tree = environment.parse(template)
    parts = [node.data for node in tree.find_all(jinja2.nodes.TemplateData)]
    parts += [node.value for node in tree.find_all(jinja2.nodes.Const) if isinstance(node.value, str)]
    return "\0".join(parts)


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise TokenizerUnusable(f"{path.name} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise TokenizerUnusable(f"{path.name} is not a JSON object")
    return value


def _read_template(directory: Path, config: Mapping[str, Any]) -> str:
    path = directory / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    template = config.get("chat_template")
    if isinstance(template, list):  # an older form: several templates with names
        template = {item["name"]: item["template"] for item in template}.get("default")
    if not isinstance(template, str):
        raise TokenizerUnusable("the model has no chat template")
    return template


def _special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    """bos_token, eos_token, …: templates may name them."""
    found: dict[str, str] = {}
    for key, value in config.items():
        content = value.get("content") if isinstance(value, dict) else value
        if key.endswith("_token") and isinstance(content, str):
            found[key] = content
    return found


def _eos_ids(directory: Path, tokenizer: Tokenizer, special: Mapping[str, str]) -> frozenset[int]:
    ids: set[int] = set()
    for name in ("generation_config.json", "config.json"):
        value = _read_json(directory / name).get("eos_token_id")
        ids.update(value if isinstance(value, list) else [] if value is None else [value])
    own = tokenizer.token_to_id(special["eos_token"]) if "eos_token" in special else None
    return frozenset(ids | ({own} if own is not None else set()))


