"""What every format yields: rows with their numbers, or what is wrong with them. Knows no format.

The readers beside it and `service.jsonl` implement `Rows`; the data check (datasets.py) reads through it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol, TypeVar

from trainers.registry import Fault, Row

T = TypeVar("T")
MAX_ROW_BYTES = 8 * 2**20
"""A row is never held beyond this."""
Numbered = tuple[int, Row | Fault, int]
"""Number of a row from 1 (of a line, in JSON Lines), the row or its fault, and its size in bytes."""
BLANK_LINE = Fault("", "blank_line", "the line is blank", "Remove it.")


class Unreadable(Exception):
    """Nothing more can be read of the file: its fault, and the row at which that was found out."""

    def __init__(self, fault: Fault, row: int | None = None) -> None:
        super().__init__(fault, row)
        self.fault, self.row = fault, row


class Rows(Protocol):
    """The rows of a file in their order. Iterating raises Unreadable where the rest can't be read."""

    @property
    def columns(self) -> tuple[str, ...] | None:
        """Names of the columns that every row has; None where each row has its own."""
        ...

    @property
    def share(self) -> float | None:
        """How much of the file has been read, from 0 to 1; None where its bytes, read in order, tell that."""
        ...

    def __iter__(self) -> Iterator[Numbered]: ...


def numbered(items: Iterable[T | None]) -> Iterator[tuple[int, T | Fault]]:
    """Items with their numbers. A None is a blank line: a fault, except at the end of the file."""
    blank: range = range(0)
    for number, item in enumerate(items, 1):
        if item is None:
            blank = range(blank.start if blank else number, number + 1)
            continue
        for earlier in blank:
            yield earlier, BLANK_LINE
        blank = range(0)
        yield number, item
