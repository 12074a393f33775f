"""Which tokens of a batch are computed, and where its labels find theirs."""

from __future__ import annotations

import torch

from trainers.data import Batch
from trainers.packing import pack

PROMPT = [5, 6, 7, 8]


def batch(rows: list[list[int]], labelled: list[list[int]]) -> Batch:
    """Rows of token ids, and the positions of each that carry a label."""
    length = max(map(len, rows))
    ids, weights = torch.zeros(len(rows), length, dtype=torch.int64), torch.zeros(len(rows), length)
    for i, (row, positions) in enumerate(zip(rows, labelled, strict=True)):
        ids[i, : len(row)] = torch.tensor(row)
        weights[i, positions] = 1.0
    lengths = [len(row) for row in rows]
    return Batch(ids, torch.tensor(lengths), weights, sum(lengths), float(weights.sum()))


def read_back(some: Batch, *, share_prefix: bool) -> list[list[int]]:
    """For each label in row order, the tokens its prediction sees: by the layout, not by the batch."""
    packed, seen = pack(some, share_prefix=share_prefix), []
    layout = packed.layout
    for place in packed.kept[packed.sources].tolist():
        if place < layout.prefix:
            seen.append(packed.ids[: place + 1].tolist())
            continue
        row, offset = divmod(place - layout.prefix, layout.suffix)
        start = layout.prefix + row * layout.suffix
        seen.append(packed.ids[: layout.prefix].tolist() + packed.ids[start : start + offset + 1].tolist())
    return seen


def expected(some: Batch) -> list[list[int]]:
    return [some.input_ids[row, :position].tolist() for row, position in (some.weights > 0).nonzero().tolist()]


def test_every_label_sees_the_tokens_before_it_and_no_others() -> None:
    some = batch([[*PROMPT, 1, 2, 3], [*PROMPT, 4, 9], [*PROMPT, 1, 3, 3, 9]], [[5, 6], [4], [5, 7]])
    for share in (True, False):
        assert read_back(some, share_prefix=share) == expected(some)


def test_what_all_rows_begin_with_comes_once() -> None:
    some = batch([[*PROMPT, 1, 2], [*PROMPT, 4, 9]], [[5], [5]])
    packed = pack(some, share_prefix=True)
    assert packed.layout.prefix == len(PROMPT)
    assert packed.ids.tolist() == [*PROMPT, 1, 4]
    assert packed.positions.tolist() == [0, 1, 2, 3, 4, 4]


def test_tokens_after_the_last_label_are_left_out() -> None:
    some = batch([[1, 2, 3, 4, 5, 6], [3, 2, 1]], [[2], [1]])
    assert pack(some, share_prefix=True).ids.tolist() == [1, 2, 3, 2]


def test_equal_rows_and_labels_inside_the_prefix() -> None:
    some = batch([PROMPT, PROMPT, PROMPT], [[1, 2, 3], [3], [2]])
    assert read_back(some, share_prefix=True) == expected(some)
    assert pack(some, share_prefix=True).layout.tokens < 3 * 3


def test_a_prefix_too_short_to_be_worth_it_is_not_shared() -> None:
    rows = [[5, *range(10 * i + 10, 10 * i + 70)] for i in range(2)]
    assert pack(batch(rows, [[60], [60]]), share_prefix=True).layout.prefix == 0


def test_a_single_row_shares_nothing() -> None:
    some = batch([[*PROMPT, 1]], [[4]])
    packed = pack(some, share_prefix=True)
    assert (packed.layout.prefix, packed.layout.tokens) == (0, 4)


def test_places_that_predict_several_labels_are_kept_once() -> None:
    some = batch([[*PROMPT, 1], [*PROMPT, 2]], [[4], [4]])
    packed = pack(some, share_prefix=True)
    assert len(packed.kept.unique()) == len(packed.kept)
    assert len(packed.sources) == 2
