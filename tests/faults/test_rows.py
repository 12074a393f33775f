"""Every row of the table of faults has a test that bears its number, wherever it lies."""

from __future__ import annotations

import re
from pathlib import Path

TESTS = Path(__file__).parents[1]


def rows_with_a_test() -> set[int]:
    """Numbers of the rows that a test function is named by."""
    named = re.compile(r"^(?:async )?def test_(\d\d)_\w+\(", re.MULTILINE)
    return {int(number) for path in TESTS.rglob("test_*.py") for number in named.findall(path.read_text())}


def test_every_row_has_a_test() -> None:
    assert rows_with_a_test() == set(range(1, 41))


def test_every_row_stands_in_the_table() -> None:
    table = (Path(__file__).parent / "README.md").read_text()
    listed: set[int] = set()
    for cell in re.findall(r"^\| ([-\d, ]+) \|", table, re.MULTILINE):
        for span in cell.split(", "):
            first, _, last = span.partition("-")
            listed |= set(range(int(first), int(last or first) + 1))
    assert listed == set(range(1, 41))
