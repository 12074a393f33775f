"""The methods, and the few torch-free parts of `trainers` that the service's data check uses.

Adding a method is one file in `methods/` and one line here. Importing this loads neither torch nor
the tokenizer; `open_tokenizer` loads what it needs when called.
"""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

from trainers.method import Encoded, Fault, Method, Row, shape_of
from trainers.methods.supervised import Supervised
from trainers.tokenised import DATASET_FORMAT, DatasetWriter

if TYPE_CHECKING:
    from trainers.chat import ChatTokenizer

__all__ = [
    "DATASET_FORMAT",
    "METHODS",
    "DatasetWriter",
    "Encoded",
    "Fault",
    "Method",
    "Row",
    "get",
    "open_tokenizer",
    "shape_of",
    "tokenizer_fingerprint",
]

METHODS: dict[str, Method] = {
    "supervised": Supervised(),
}


def get(name: str) -> Method:
    """The method of this name. Raises ValueError naming those there are."""
    if name not in METHODS:
        raise ValueError(f"unknown method {name!r}; known: {', '.join(METHODS)}")
    return METHODS[name]


def open_tokenizer(directory: Path, today: date | None = None) -> ChatTokenizer:
    """The chat tokenizer of a model's directory, see chat.ChatTokenizer.open. Raises chat.TokenizerUnusable, a ValueError."""
    from trainers.chat import ChatTokenizer

    return ChatTokenizer.open(directory, today)


def tokenizer_fingerprint(directory: Path, today: date | None = None) -> str:
    """sha256 over all that decides how a conversation becomes tokens, see chat.tokenizer_fingerprint."""
    from trainers.chat import tokenizer_fingerprint

    return tokenizer_fingerprint(directory, today)
