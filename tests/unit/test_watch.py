"""When a run counts as stuck, and who is named; which checkpoints are kept; how a rank hears that its node goes away."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainers import watch
from trainers.failure import TrainingFailed
from trainers.leaving import DIRECTIVES, DRAIN_FILE, Leaving, Wish
from trainers.retention import kept_steps
from trainers.watch import FACTOR, FLOOR_SECONDS, GENEROUS_SECONDS, Beat, Seen, Watch, overdue, patience


def seen(*marks: int, moved: float = 0.0, kind: watch.Kind = "step") -> list[Seen]:
    return [Seen(Beat(mark, "a step", kind), moved, moved) for mark in marks]


QUICK = {"step": [0.1] * 20}
SLOW = {"step": [20.0] * 20}


@pytest.mark.parametrize(
    ("marks", "expected"),
    [((5, 4), (1,)), ((4, 5, 5), (0,)), ((5, 4, 4), (1, 2)), ((5, 5), (0, 1))],
    ids=["one hangs", "rank 0 hangs", "two hang", "the collective hangs"],
)
def test_the_ranks_behind_are_the_ones_that_did_not_come(marks: tuple[int, ...], expected: tuple[int, ...]) -> None:
    assert overdue(seen(*marks), FLOOR_SECONDS + 1, QUICK) == expected
    assert overdue(seen(*marks), FLOOR_SECONDS - 1, QUICK) == ()


def test_nobody_is_overdue_while_somebody_gets_on() -> None:
    waiting = [*seen(9, moved=100.0), *seen(4, moved=0.0)]
    assert overdue(waiting, 100.0 + FLOOR_SECONDS - 1, QUICK) == ()
    assert overdue(waiting, 100.0 + FLOOR_SECONDS + 1, QUICK) == (1,)


def test_a_run_with_long_steps_has_long_patience() -> None:
    assert overdue(seen(5, 4), 10 * FLOOR_SECONDS / 5, SLOW) == ()
    assert overdue(seen(5, 4), FACTOR * 20 + 1, SLOW) == (1,)


def test_first_steps_and_checkpoints_are_given_time() -> None:
    assert patience("step", {"step": [0.1] * 4}) == GENEROUS_SECONDS
    assert patience("other", {"other": [0.1] * 64}) == GENEROUS_SECONDS
    assert patience("evaluation", QUICK) == GENEROUS_SECONDS
    one_slow = {"step": [*[0.1] * 60, 500.0]}
    assert patience("step", one_slow) == FLOOR_SECONDS, "one long step is no measure"


class Board:
    """An exchange in memory."""

    def __init__(self) -> None:
        self.texts: dict[int, str] = {}

    def put(self, rank: int, text: str) -> None:
        self.texts[rank] = text

    def get(self, rank: int) -> str | None:
        return self.texts.get(rank)


@pytest.fixture
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "BEAT_SECONDS", 0.02)
    monkeypatch.setattr(watch, "FLOOR_SECONDS", 0.5)


@pytest.mark.usefixtures("_quick")
def test_rank_0_hears_of_the_rank_that_hangs() -> None:
    told: list[TrainingFailed] = []
    heard = threading.Event()

    def stuck(failed: TrainingFailed) -> None:
        told.append(failed)
        heard.set()

    board = Board()
    watches = [Watch(rank, 2, board, stuck) for rank in range(2)]
    for step in range(10):
        for one in watches:
            one.mark(f"step {step}", "step")
            list(one.arriving([1], f"step {step}", "step"))
    watches[0].mark("step 10", "step")
    list(watches[0].arriving([1], "step 10", "step"))
    assert heard.wait(30)
    (failed,) = told
    assert (failed.code, failed.cause, failed.rank) == ("run_stuck", "infrastructure", 1)
    assert "did not get on from the collective of step 9" in failed.message
    assert failed.node in failed.message
    for one in watches:
        one.close()


@pytest.mark.usefixtures("_quick")
def test_a_rank_that_broke_off_is_not_behind_once_all_begin_anew() -> None:
    """As when it ran out of memory: it came to the collective without having worked all its pieces off."""
    board = Board()
    watches = [Watch(rank, 2, board, lambda failed: None) for rank in range(2)]
    for one in watches:
        one.mark("step 1", "step")
    list(watches[0].arriving([1, 2], "step 1", "step"))
    next(watches[1].arriving([1, 2], "step 1", "step"))
    assert watches[0]._beat.marks > watches[1]._beat.marks
    for one in watches:
        one.mark("step 1", "step")
    assert watches[0]._beat.marks == watches[1]._beat.marks
    for one in watches:
        one.close()


def test_a_rank_that_is_no_longer_heard_of_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "BEAT_SECONDS", 0.2)
    board = Board()
    watches = [Watch(rank, 3, board, lambda failed: None) for rank in range(3)]
    while len(board.texts) < 2:
        threading.Event().wait(0.02)
    watches[2].close()
    assert watches[0].silent() == (2,)
    assert watches[0].lost((2,), "the connection broke").message.startswith("rank 2 on ")
    for one in watches[:2]:
        one.close()


@given(st.dictionaries(st.integers(1, 50), st.none() | st.floats(0, 5), min_size=1), st.integers(1, 5), st.booleans())
def test_the_newest_and_the_best_are_kept(losses: dict[int, float | None], keep: int, keep_best: bool) -> None:
    kept = kept_steps(losses, keep, keep_best=keep_best)
    assert set(sorted(losses)[-keep:]) <= kept <= set(losses)
    scored = {step: loss for step, loss in losses.items() if loss is not None}
    if keep_best and scored:
        assert min(scored.values()) in {scored.get(step) for step in kept}
    assert len(kept) <= keep + keep_best


def test_of_equal_losses_the_newest_is_the_best() -> None:
    assert kept_steps({1: 0.5, 2: 0.5, 3: 0.7, 4: None}, 1, keep_best=True) == {2, 4}


def test_a_rank_hears_of_the_end_of_its_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DRAIN_FILE, str(tmp_path / "drain"))
    by_file, by_source, by_signal = Leaving(), Leaving(lambda: "Ray drains the node of rank 1"), Leaving()
    assert (by_file.why(), by_signal.why()) == ("", "")
    assert by_source.why() == "Ray drains the node of rank 1"
    before = signal.getsignal(signal.SIGTERM)
    try:
        by_signal.listen()
        os.kill(os.getpid(), signal.SIGTERM)
        assert by_signal.why() == "SIGTERM"
    finally:
        signal.signal(signal.SIGTERM, before)
    (tmp_path / "drain").touch()
    assert by_file.why() == f"{DRAIN_FILE} is there"
    (tmp_path / "drain").unlink()
    assert by_file.why(), "what was said once holds"


def test_the_most_urgent_wish_is_the_largest() -> None:
    assert sorted(Wish) == [Wish.GO_ON, Wish.SAVE, Wish.SAVE_AND_LEAVE, Wish.YIELD, Wish.LEAVE]
    assert set(DIRECTIVES.values()) == {Wish.SAVE, Wish.SAVE_AND_LEAVE, Wish.LEAVE}
