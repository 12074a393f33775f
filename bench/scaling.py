"""How a step's time grows: with workers on each engine, with parameters, with the length of rows, and with workers that share them.

Every figure is of whole runs as Ray would start them, each on new processes; each worker has cores of its own (or a GPU), with
one worker as many as with more. Rounds go through all cases in turns. Prints tables and writes bench/results/scaling.json.

  python -m bench.scaling                                  all of it
  python -m bench.scaling --only workers --workers 1 2 4 --engines torch zero3
  python -m bench.scaling --quick                          one short round of a few cases
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import get_args

from bench.scaling_site import Case, Site, Turn
from bench.scaling_tables import Figures, console, plain, show
from bench.trainer import machine, sgemm
from trainers.spec import EngineName

RESULTS = Path(__file__).resolve().parent / "results"
ADAPTERS = ("lora", "full")
ENGINES: tuple[EngineName, ...] = get_args(EngineName)
SIZES = ((128, 2), (192, 4), (256, 8), (384, 8))
"""Hidden width and layers: numbers of 0.3 to 11 million."""
LENGTHS = (64, 128, 256, 512, 1024, 2048)
SWEEPS = ("workers", "parameters", "length", "sharing")


def main() -> int:
    """Entry point."""
    given = _arguments()
    cases = list(_cases(given))
    turns: list[dict[Case, Turn]] = []
    with tempfile.TemporaryDirectory(prefix="tunesmith-scaling-") as scratch:
        site = Site(Path(scratch), given.steps, max(given.workers))
        if 0 < site.gpus < max(given.workers):
            raise SystemExit(f"{max(given.workers)} workers want a GPU each, and there are {site.gpus}")
        for number in range(1, given.rounds + 1):
            turns.append(_round(site, cases, number))
            figures = [Figures(case, site.sizes(case), site.spec(case, "ftjob"), [turn[case] for turn in turns]) for case in cases]
            _write(site, figures)
    show(figures, scatters=site.gpus > 0)
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="turns of every case")
    parser.add_argument("--steps", type=int, default=3, help="measured steps of a run, after two that are not")
    parser.add_argument("--only", nargs="+", choices=SWEEPS, default=SWEEPS)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2], help="1 is always among them: the others are held against it")
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=ENGINES)
    parser.add_argument("--adapters", nargs="+", choices=ADAPTERS, default=ADAPTERS)
    parser.add_argument("--quick", action="store_true", help="a smoke test: one round, plain torch, small sizes")
    given = parser.parse_args()
    if given.quick:
        given.rounds, given.engines, given.workers = 1, ["torch"], [1, 2]
    given.workers = sorted({1, *given.workers})
    if max(given.workers) > len(os.sched_getaffinity(0)):
        parser.error(f"{max(given.workers)} workers on {len(os.sched_getaffinity(0))} cores would tell nothing")
    return given


def _cases(given: argparse.Namespace) -> Iterator[Case]:
    for adapter in given.adapters:
        if "workers" in given.only:
            for engine in given.engines:
                yield from _by_workers(Case("workers", adapter, engine), given.workers)
        if "parameters" in given.only:
            for hidden, layers in SIZES[:2] if given.quick else SIZES:
                yield Case("parameters", adapter, hidden=hidden, layers=layers)
        if "length" in given.only:
            longest = LENGTHS[1] if given.quick else LENGTHS[-1]
            yield from (Case("length", adapter, length=length, rows=longest // length) for length in LENGTHS if length <= longest)
        if "sharing" in given.only:
            for length in LENGTHS[-1:] if given.quick else LENGTHS[-3:]:
                for number in given.workers:
                    yield Case("sharing", adapter, workers=number, sharing=number, rows=LENGTHS[-1] // length, length=length)


def _by_workers(alone: Case, workers: list[int]) -> Iterator[Case]:
    """The same batch for more workers, as much for each of them, and the same batch in pieces."""
    yield alone
    for number in workers[1:]:
        yield replace(alone, workers=number)
        yield replace(alone, workers=number, rows=number * alone.rows)
    if alone.adapter == "full":
        yield replace(alone, workers=workers[-1], pieces=4)


def _round(site: Site, cases: list[Case], number: int) -> dict[Case, Turn]:
    """Every case once; every second round backwards, so that what lies together does not always come in the same order."""
    found = {}
    for case in cases if number % 2 else reversed(cases):
        found[case] = site.measure(case)
        console.print(f"round {number}: {case.sweep}, {case.adapter}, {case.engine} on {case.workers}, {1e3 * found[case].seconds:.0f} ms")
    return found


def _write(site: Site, figures: list[Figures]) -> None:
    """After every round, so that what was measured is not lost with a run that is broken off."""
    report = {
        "machine": machine(site.cores_each),
        "gpus": site.gpus,
        "sgemm_gflops": sgemm(site.cores_each),
        "figures": plain(figures, scatters=site.gpus > 0),
    }
    console.print(f"sgemm: {report['sgemm_gflops']:.0f} GFLOP/s on the cores of one worker")
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "scaling.json").write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
