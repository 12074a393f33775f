"""What the scaling benchmark computes by itself, and the bytes of two real workers beside its formula."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bench.growth import exponent, sent_bytes
from bench.scaling_site import WARM_UP, Case, Site, turn
from bench.scaling_tables import Figures
from trainers.spec import EngineName


def test_the_exponent_of_a_power_is_its_own() -> None:
    assert exponent([(x, 3 * x**1.5) for x in (1.0, 2.0, 40.0)]) == pytest.approx(1.5)
    assert exponent([(64, 7.0), (2048, 7.0)]) == pytest.approx(0.0)


@pytest.mark.parametrize(
    ("engine", "shares_of_trained", "shares_of_whole"), [("torch", 2, 0), ("zero1", 3, 0), ("zero2", 3, 0), ("zero3", 1, 2)]
)
def test_each_engine_sends_its_shares_and_one_worker_sends_nothing(
    engine: EngineName, shares_of_trained: int, shares_of_whole: int
) -> None:
    assert sent_bytes(engine, 4, whole=1000, trained=100) == pytest.approx(0.75 * (100 * shares_of_trained + 1000 * shares_of_whole))
    assert sent_bytes(engine, 1, whole=1000, trained=100) == 0


def test_pieces_cost_where_gradients_are_not_kept_whole() -> None:
    growth = {engine: sent_bytes(engine, 2, whole=100, trained=100, pieces=4) for engine in ("torch", "zero1", "zero2", "zero3")}
    assert growth == {"torch": 100, "zero1": 150, "zero2": 450, "zero3": 600}


def test_a_turn_leaves_the_first_steps_out_and_tells_waiting_from_moving() -> None:
    quick, slow = ([_tick(step, waits, cpu) for step in range(WARM_UP + 3)] for waits, cpu in ((0.5, 0.2), (0.1, 0.9)))
    slow[0] = _tick(-100, 0.0, 0.0)
    found = turn([{"ticks": quick, "peak_bytes": 1}, {"ticks": slow, "peak_bytes": 5}])
    assert (found.seconds, found.calls, found.peak_bytes) == (2.0, 3, 5)
    assert found.cpu_seconds == pytest.approx(0.9)
    assert (found.waiting, found.moving) == (pytest.approx(0.15), pytest.approx(0.05))
    assert found.sent_bytes == pytest.approx(10)


def _tick(step: int, waits: float, cpu: float) -> dict[str, float]:
    return {"seconds": 2.0 * step, "cpu_seconds": cpu * step, "waiting": waits * step, "calls": 3 * step, "sent": 10 * step}


def test_two_workers_send_what_the_formula_says(tmp_path: Path) -> None:
    """A step that reduces everything trained, one that gathers every weight twice, and one over rows that they share."""
    # In a process of its own: the server from which workers are forked lives as long as who has asked for it.
    command = [sys.executable, "-c", "from tests.unit.test_growth import tell_bytes; tell_bytes()", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    for what, (sent, formula) in json.loads(done.stdout.splitlines()[-1]).items():
        assert sent == pytest.approx(formula, rel=0.1), what


def tell_bytes() -> None:
    """Measure, and print bytes sent and those of the formula by what they are of, as JSON."""
    site, told = Site(Path(sys.argv[1]), steps=2, most_workers=2), dict[str, tuple[float, float]]()
    small = {"workers": 2, "rows": 4, "hidden": 64, "layers": 2}
    cases = {
        "reduced": Case("workers", "full", "torch", length=16, **small),
        "gathered": Case("workers", "lora", "zero3", length=16, **small),
        "shared": Case("sharing", "lora", "torch", length=256, sharing=2, **small),
    }
    for what, case in cases.items():
        figures = Figures(case, site.sizes(case), site.spec(case, "ftjob"), [site.measure(case)])
        told[what] = figures.median("sent_bytes"), figures.sent_bytes(scatters=False)
    sys.stdout.write(json.dumps(told) + "\n")
