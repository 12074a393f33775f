"""What real runs take in memory beside what the plan says: the trainer's own ranks as processes, measured by the kernel.

The benchmark bench/memory.py has the whole table; these are a few of its runs, all at once, for what a run takes does not
depend on those beside it.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from bench.memory import Case, Outcome, Workshop

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1000)]
LEAST, MOST = 0.97, 1.15
"""Of the estimate over the measured peak. Below the least the plan would call fitting what does not."""
CASES = [
    Case("4x768", 4, 64, form="full"),
    Case("4x768", 4, 64, "zero2", 2, form="full"),
    Case("8x512", 4, 256),
]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[Case, Outcome]]:
    workshop = Workshop(tmp_path_factory.mktemp("memory"))
    specs = [workshop.prepare(case) for case in CASES]
    with ThreadPoolExecutor(len(CASES)) as turns:
        yield dict(zip(CASES, turns.map(workshop.run, CASES, specs), strict=True))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_estimate_is_what_a_run_takes(outcomes: dict[Case, Outcome], case: Case) -> None:
    outcome = outcomes[case]
    assert LEAST <= outcome.ratio <= MOST, (outcome.estimate, outcome.peaks, outcome.stages)


def test_only_rank_0_holds_the_copies_of_a_checkpoint(outcomes: dict[Case, Outcome]) -> None:
    outcome = outcomes[CASES[1]]
    assert outcome.peaks[0] - outcome.peaks[1] == pytest.approx(outcome.estimate.copies, rel=0.25)
