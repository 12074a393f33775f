"""How a row looks to the model: its tokens as text again, in parts that carry loss or do not.

Made from the tokens rather than from the row, so that it shows what will be trained on, whatever the method.
Called by the data check, in its process with limits.
"""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING

from service.data_report import PreviewRow, TextPart

if TYPE_CHECKING:
    from trainers.chat import ChatTokenizer
    from trainers.method import Encoded

MAX_TOKENS = 4096
"""Tokens of a row that are shown."""


def preview_row(line: int, row: Encoded, uncut: int, tokenizer: ChatTokenizer) -> PreviewRow:
    """The row of `line`, cut already; it had `uncut` tokens."""
    shown = row.cut(MAX_TOKENS)
    return PreviewRow(
        line=line,
        tokens=len(row),
        tokens_uncut=uncut,
        trained_tokens=int((row.weights > 0).sum()),
        truncated=uncut > len(row),
        parts=tuple(_parts(shown, tokenizer)),
        shortened=len(shown) < len(row),
    )


def _parts(row: Encoded, tokenizer: ChatTokenizer) -> list[TextPart]:
    """Each part is what the text grows by: decoded alone, some tokenizers drop a part's first space."""
    ids = [int(token) for token in row.input_ids]
    parts: list[TextPart] = []
    before, end = "", 0
    for trained, tokens in groupby(row.weights > 0):
        end += sum(1 for _ in tokens)
        text = tokenizer.tokenizer.decode(ids[:end], skip_special_tokens=False)
        parts.append(TextPart(text=text[len(before) :], trained=bool(trained)))
        before = text
    return parts
