"""Conversations as tokens, through the model's own tokenizer and chat template. No torch, no transformers.

Gives the tokens of transformers' `apply_chat_template` and finds which of them an assistant wrote. Knows
nothing of rows. Called by the methods when data is encoded, and by evaluation and the examples for prompts.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Encoding, Tokenizer

from trainers.chat_template import ChatTemplate, TemplateError
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

    def __init__(self, tokenizer: Tokenizer, template: ChatTemplate, eos_ids: frozenset[int]) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self.tokenizer = tokenizer
        self.eos_ids = eos_ids
        """Tokens that end generation."""
        self._template = template
        added, own = tokenizer.get_added_tokens_decoder().values(), template.literals
        self._control_tokens = tuple(token.content for token in added if token.special)
        self._control = _any_of(self._control_tokens)
        # Tokens the template writes between turns are control tokens even where the tokenizer does not call them
        # special. An assistant may write them: "<think>" is one of them.
        written = [token.content for token in added if not token.special and not token.content.isspace() and token.content in own]
        self._control_outside_assistant = _any_of((*self._control_tokens, *written))

    @classmethod
    def open(cls, directory: Path, today: date | None = None) -> ChatTokenizer:
        """The tokenizer in a model's directory. Raises TokenizerUnusable when it or its chat template is missing.

        `today` is what a template that asks for the date is told, the present day unless given.
        """
        config = _read_json(directory / "tokenizer_config.json")
        try:
            tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
        except Exception as error:  # the Rust side raises plain Exception for a missing or broken file
            raise TokenizerUnusable(f"tokenizer.json can't be read: {error}") from error
        special = _special_tokens(config)
        try:
            template = ChatTemplate(_read_template(directory, config), special, today or date.today())
        except (TemplateError, RecursionError) as error:
            raise TokenizerUnusable(f"the chat template does not compile: {error}") from error
        return cls(tokenizer, template, _eos_ids(directory, tokenizer, special))

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
        """The conversation as text. Raises chat_template.TemplateError where the template refuses it."""
        return self._render([_for_template(message) for message in messages], tools, generation_prompt)

    def _render(self, messages: list[dict[str, Any]], tools: Sequence[Mapping[str, Any]] | None, generation_prompt: bool) -> str:
        return self._template.render(messages, tools, generation_prompt)

    def _render_spans(self, conversation: Conversation) -> tuple[str, list[Span]] | Fault:
        """The conversation's text and the character spans [start, end) that carry loss."""
        try:
            messages = [_for_template(message) for message in conversation.messages]
            self._refuse_control_tokens(messages, conversation.tools)
            text = self._render(messages, conversation.tools, False)
            _refuse_half_characters(text)
            trained = [i for i, message in enumerate(conversation.messages) if message["role"] == "assistant" and message.get("weight", 1)]
            return text, [self._turn(text, messages, i, conversation.tools) for i in trained]
        except EncodeError as error:
            return error.fault
        except TemplateError as error:
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


def tokenizer_fingerprint(directory: Path, today: date | None = None) -> str:
    """sha256 over all that decides how a conversation becomes tokens; absent files count as absent.

    That is the model's files, the libraries that read them and, where a template asks for it, the date.
    """
    digest = hashlib.sha256(f"tokenizers {version('tokenizers')}, jinja2 {version('jinja2')}\n".encode())
    dated = False
    for name in TOKENIZER_FILES:
        path = directory / name
        content = path.read_bytes() if path.is_file() else None
        dated = dated or (content is not None and b"strftime_now" in content)
        digest.update(f"{name}:{None if content is None else len(content)}\n".encode() + (content or b""))
    digest.update(f"{today or date.today()}\n".encode() if dated else b"")
    return digest.hexdigest()


_TEMPLATE_HINT = "Check the order of the roles and that the base model's template knows tools, if the row uses them."


def _label(encoding: Encoding, spans: list[Span]) -> Encoded:
    """Tokens and weights; a token belongs to the span in which it starts."""
    ids = np.array(encoding.ids, dtype=np.uint32)
    weights = np.zeros(len(ids), dtype=np.float32)
    for start, end in spans:
        weights[_first_from(encoding, start) : _first_from(encoding, end)] = 1.0
    weights[:1] = 0.0  # nothing comes before the first token to predict it from
    return Encoded(ids, weights)


def _first_from(encoding: Encoding, position: int) -> int:
    """The first token that starts at this character or after it. Looking up two of them beats copying all offsets out of Rust."""
    token = encoding.char_to_token(position)
    if token is None:  # the end of the text, or a character that became no token
        return next((i for i, (start, _) in enumerate(encoding.offsets) if start >= position), len(encoding))
    while token < len(encoding) and _start(encoding, token) < position:
        token += 1
    return token


def _start(encoding: Encoding, token: int) -> int:
    chars = encoding.token_to_chars(token)
    assert chars is not None, "special tokens are in the text, so every token has a place there"
    return chars[0]


def _refuse_half_characters(text: str) -> None:
    """Raise EncodeError for a lone surrogate. The JSON of a row can't hold one, but the JSON within a call's arguments can."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        message = "the text holds half of a surrogate pair, which is no character"
        raise EncodeError(Fault("messages", "lone_surrogate", message, "Look at the arguments of tool calls.")) from error


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
        template = next((item.get("template") for item in template if isinstance(item, dict) and item.get("name") == "default"), None)
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
        ids.update(item for item in (value if isinstance(value, list) else [value]) if isinstance(item, int))
    own = tokenizer.token_to_id(special["eos_token"]) if "eos_token" in special else None
    return frozenset(ids | ({own} if own is not None else set()))
