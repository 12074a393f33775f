"""Tokenised datasets on disk, the order of rows, and batches."""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainers.data import MEGA_BATCH, Batch, Indices, Layout, Sampler, collate, micro_batches, pad
from trainers.method import Encoded
from trainers.tokenised import META, DatasetUnreadable, DatasetWriter, TokenisedDataset

LENGTHS = st.lists(st.integers(1, 2_000), min_size=1, max_size=400).map(lambda lengths: np.array(lengths, dtype=np.int64))


def row(ids: list[int], weights: list[float] | None = None) -> Encoded:
    given = weights if weights is not None else ([0.0] + [1.0] * len(ids))[: len(ids)]
    return Encoded(np.array(ids, dtype=np.uint32), np.array(given, dtype=np.float32))


def write(directory: Path, rows: list[Encoded]) -> TokenisedDataset:
    with DatasetWriter(directory) as writer:
        for each in rows:
            writer.append(each)
    return TokenisedDataset.open(directory)


ROWS = [row([1, 2, 3]), row([4]), row([70_000, 2**32 - 1], [0.0, 0.5]), row([5, 6, 7, 8], [0, 0, 1, 0])]


def test_what_is_written_is_read(tmp_path: Path) -> None:
    found = write(tmp_path / "d", ROWS)
    assert len(found) == 4
    assert found.lengths.tolist() == [3, 1, 2, 4]
    assert found.trained.tolist() == [2.0, 0.0, 0.5, 1.0]
    assert found.trained_tokens == 4
    for i, each in enumerate(ROWS):
        assert found.row(i).input_ids.tolist() == each.input_ids.tolist()
        assert found.row(i).weights.tolist() == each.weights.tolist()


def test_a_dataset_without_rows_can_be_read(tmp_path: Path) -> None:
    assert len(write(tmp_path, [])) == 0


def test_the_same_rows_are_the_same_bytes(tmp_path: Path) -> None:
    write(tmp_path / "a", ROWS)
    write(tmp_path / "b", ROWS)
    assert [p.read_bytes() for p in sorted((tmp_path / "a").iterdir())] == [p.read_bytes() for p in sorted((tmp_path / "b").iterdir())]


def test_leaving_by_an_error_or_discarding_leaves_nothing_that_reads_as_complete(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="a row has tokens"):
        write(tmp_path / "broken", [ROWS[0], row([])])
    with DatasetWriter(tmp_path / "discarded") as writer:
        writer.append(ROWS[0])
        writer.discard()
    for name in ("broken", "discarded"):
        with pytest.raises(DatasetUnreadable):
            TokenisedDataset.open(tmp_path / name)
    assert list((tmp_path / "discarded").iterdir()) == []


@pytest.mark.parametrize("name", ["ids.u32", "weights.f16", "rows"])
def test_a_cut_or_missing_file_is_found(tmp_path: Path, name: str) -> None:
    write(tmp_path, ROWS)
    path = tmp_path / name
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DatasetUnreadable, match=name):
        TokenisedDataset.open(tmp_path)
    path.unlink()
    with pytest.raises(DatasetUnreadable, match=name):
        TokenisedDataset.open(tmp_path)


@pytest.mark.parametrize("meta", ["", "[]", "{}", '{"format": 0}', '{"format": 1}', '{"format": 1, "rows": null}'])
def test_a_damaged_meta_file_is_found(tmp_path: Path, meta: str) -> None:
    write(tmp_path, ROWS)
    (tmp_path / META).write_text(meta)
    with pytest.raises(DatasetUnreadable):
        TokenisedDataset.open(tmp_path)


@settings(deadline=None)
@given(LENGTHS, st.integers(1, 64), st.integers(0, 2**31 - 1), st.integers(1, 3))
def test_every_row_comes_once_an_epoch(lengths: Indices, batch_size: int, seed: int, n_epochs: int) -> None:
    sampler = Sampler(lengths, batch_size, seed, n_epochs)
    assert sampler.steps == n_epochs * -(-len(lengths) // batch_size)
    for epoch in range(n_epochs):
        steps = range(epoch * sampler.steps_per_epoch, (epoch + 1) * sampler.steps_per_epoch)
        batches = [sampler.batch(step) for step in steps]
        assert sorted(np.concatenate(batches).tolist()) == list(range(len(lengths)))
        assert sum(len(batch) < batch_size for batch in batches) <= 1


@settings(deadline=None)
@given(LENGTHS, st.integers(1, 64), st.integers(0, 2**31 - 1), st.data())
def test_resuming_needs_the_step_and_nothing_else(lengths: Indices, batch_size: int, seed: int, data: st.DataObject) -> None:
    straight = Sampler(lengths, batch_size, seed, 3)
    order = [straight.batch(step).tolist() for step in range(straight.steps)]
    resumed = Sampler(lengths.copy(), batch_size, seed, 3)
    for step in data.draw(st.lists(st.integers(0, straight.steps - 1), max_size=5)):
        assert resumed.batch(step).tolist() == order[step]


def test_the_order_is_the_same_on_every_machine_and_in_every_version() -> None:
    lengths = (np.arange(1000, dtype=np.int64) * 7919) % 301 + 1
    sampler = Sampler(lengths, 8, seed=42, n_epochs=2)
    order = np.concatenate([sampler.batch(step) for step in range(sampler.steps)]).astype("<i8")
    assert hashlib.sha256(order.tobytes()).hexdigest() == "9720df93f2e3fbabc9074d3da29b493172b9522228c86d919fab002cdd25af60"


def test_epochs_and_seeds_differ_and_lengths_within_a_batch_are_near_equal() -> None:
    lengths = np.random.default_rng(0).integers(1, 1000, size=4 * MEGA_BATCH * 8)
    one, other = Sampler(lengths, 8, 1, 2), Sampler(lengths, 8, 2, 2)
    assert [one.batch(s).tolist() for s in range(5)] != [other.batch(s).tolist() for s in range(5)]
    assert [one.batch(s).tolist() for s in range(5)] != [one.batch(s + one.steps_per_epoch).tolist() for s in range(5)]
    spread = [np.ptp(lengths[one.batch(step)]) for step in range(one.steps_per_epoch)]
    assert max(spread) < 50
    means = [float(lengths[one.batch(step)].mean()) for step in range(one.steps_per_epoch)]
    assert abs(np.corrcoef(means, range(len(means)))[0, 1]) < 0.2, "short and long batches are mixed over the epoch"


@pytest.mark.parametrize(("rows", "batch_size", "epochs"), [(0, 1, 1), (1, 0, 1), (1, 1, 0)])
def test_a_sampler_of_nothing_is_refused(rows: int, batch_size: int, epochs: int) -> None:
    with pytest.raises(ValueError, match="at least one row"):
        Sampler(np.ones(rows, dtype=np.int64), batch_size, 0, epochs)


def test_steps_outside_the_job_are_refused() -> None:
    sampler = Sampler(np.ones(5, dtype=np.int64), 2, 0, 1)
    for step in (-1, 3):
        with pytest.raises(IndexError):
            sampler.batch(step)


@settings(deadline=None)
@given(LENGTHS, st.integers(1, 8), st.integers(1, 16), st.data())
def test_ranks_share_a_global_batch_whole_whatever_their_number(lengths: Indices, world_size: int, micro: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, min(64, len(lengths))))
    batch = np.random.default_rng(count).permutation(len(lengths))[:count]
    shares = [micro_batches(batch, lengths, rank, world_size, micro) for rank in range(world_size)]
    assert len({len(share) for share in shares}) == 1, "ranks meet at every collective"
    pieces = [piece for share in shares for piece in share]
    assert all(len(piece) <= micro for piece in pieces)
    assert Counter(np.concatenate(pieces).tolist()) == Counter(batch.tolist())
    assert len(shares[0]) == max(1, -(-count // (world_size * micro)))


def test_ranks_get_near_equal_tokens_and_long_rows_first() -> None:
    lengths = np.random.default_rng(0).integers(1, 1000, size=64)
    shares = [micro_batches(np.arange(64), lengths, rank, 4, 4) for rank in range(4)]
    tokens = [sum(int(lengths[piece].sum()) for piece in share) for share in shares]
    assert max(tokens) < 1.15 * min(tokens)
    for share in shares:
        means = [float(lengths[piece].mean()) for piece in share]
        assert means == sorted(means, reverse=True)


def test_collate_pads_on_the_right_without_weight(tmp_path: Path) -> None:
    batch = collate(write(tmp_path, ROWS), [3, 0])
    assert batch.input_ids.tolist() == [[5, 6, 7, 8], [1, 2, 3, 0]]
    assert batch.weights.tolist() == [[0, 0, 1, 0], [0, 1, 1, 0]]
    assert batch.lengths.tolist() == [4, 3]
    assert (batch.tokens, batch.weight_sum) == (7, 3.0)


def test_collate_of_no_rows_is_a_row_of_padding_and_of_one_token_is_two_long(tmp_path: Path) -> None:
    dataset = write(tmp_path, ROWS)
    empty = collate(dataset, [])
    assert (empty.input_ids.tolist(), empty.lengths.tolist(), empty.tokens, empty.weight_sum) == ([[0, 0]], [0], 0, 0.0)
    assert collate(dataset, [1]).input_ids.tolist() == [[4, 0]]


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 5), st.integers(1, 5))
def test_the_weight_of_a_global_batch_does_not_depend_on_how_it_is_shared(
    tmp_path_factory: pytest.TempPathFactory, world_size: int, micro: int
) -> None:
    dataset = write(tmp_path_factory.mktemp("d"), ROWS * 3)
    batch = Sampler(dataset.lengths, 7, 3, 1).batch(0)
    pieces = [piece for rank in range(world_size) for piece in micro_batches(batch, dataset.lengths, rank, world_size, micro)]
    collated = [collate(dataset, piece) for piece in pieces]
    assert sum(c.weight_sum for c in collated) == float(dataset.trained[batch].sum())
    assert sum(c.tokens for c in collated) == int(dataset.lengths[batch].sum())


@settings(deadline=None)
@given(st.lists(st.integers(1, 12), min_size=0, max_size=4), st.integers(1, 6))
def test_the_parts_of_rows_hold_each_label_and_each_token_once(lengths: list[int], of: int) -> None:
    rows = [Encoded(np.arange(n, dtype=np.uint32) + 100 * i, np.arange(n, dtype=np.float32) % 3) for i, n in enumerate(lengths)]
    batch = pad(rows)
    parts = [Layout(of + number, 2 * of, of).part(batch) for number in range(of)]
    assert len({part.input_ids.shape for part in parts}) == 1, "ranks meet at every collective"
    assert [sum(part.tokens for part in parts), sum(part.weight_sum for part in parts)] == [batch.tokens, batch.weight_sum]

    def labels(batch: Batch) -> list[tuple[int, int, float, int]]:
        """[row, token that predicts, weight, token predicted] of each label."""
        found = (batch.weights > 0).nonzero().tolist()
        ids, weights = batch.input_ids.tolist(), batch.weights.tolist()
        return [(row, ids[row][at - 1], weights[row][at], ids[row][at]) for row, at in found]

    assert sorted(label for part in parts for label in labels(part)) == sorted(labels(batch))
    for part in parts if of > 1 else []:
        assert part.positions is not None
        real = [(row, at) for row, length in enumerate(part.lengths.tolist()) for at in range(min(length, len(part.positions)))]
        assert all(int(part.input_ids[row, at]) == 100 * row + int(part.positions[at]) for row, at in real)


def test_ranks_that_lie_side_by_side_share_rows() -> None:
    layouts = [Layout(rank, 6, 2) for rank in range(6)]
    assert [(layout.replica, layout.replicas) for layout in layouts] == [(0, 3), (0, 3), (1, 3), (1, 3), (2, 3), (2, 3)]
