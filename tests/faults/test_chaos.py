"""The loop of kills, shortened; `make chaos` runs 200. Runs are light processes, see run_process.py."""

from __future__ import annotations

from pathlib import Path

from tests import chaos
from tests.faults.prepared import Prepared


def test_ten_kills_lose_nothing_and_double_nothing(prepared: Prepared, tmp_path: Path) -> None:
    tally = chaos.run(prepared, tmp_path, None, kills=10, seed=3, gateways=1)
    assert (tally.lost, tally.doubled) == ([], []), str(tally)
    assert tally.kills.total() >= 10
    assert set(tally.kills) == {chaos.GATEWAY, chaos.RUN}
    assert tally.accepted >= 5
