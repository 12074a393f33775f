"""The tables of `scaling`: medians over rounds, ratios of the same round, and beside them what the formulas say."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table

from bench.growth import exchanged_bytes, exponent, sent_bytes
from bench.scaling_site import Case, Turn
from service.durations import token_flops
from trainers.model_files import Sizes
from trainers.plan import Load
from trainers.spec import RunSpec

console = Console(width=160)


@dataclass(frozen=True)
class Figures:
    """All turns of a case."""

    case: Case
    sizes: Sizes
    spec: RunSpec
    turns: Sequence[Turn]

    def median(self, name: str) -> float:
        """Of one number of the turns."""
        return statistics.median(getattr(turn, name) for turn in self.turns)

    def speed_beside(self, other: Figures, clock: str) -> float:
        """Tokens a second, as a multiple of the other case's in the same round. `clock`: seconds or cpu_seconds."""
        turns = zip(self.turns, other.turns, strict=True)
        ratio = statistics.median(getattr(theirs, clock) / getattr(ours, clock) for ours, theirs in turns)
        return ratio * self.case.tokens / other.case.tokens

    @property
    def flops(self) -> float:
        """Operations of a step, as the service estimates them."""
        return self.case.tokens * token_flops(self.sizes, self.spec.tunesmith.adapter, self.spec.dataset)

    @property
    def load(self) -> Load:
        """What the plan knows of a worker."""
        on_cpu = self.spec.tunesmith.resources.gpus_per_worker == 0
        return Load.of(self.sizes, self.spec.tunesmith, self.case.engine, on_cpu=on_cpu)

    @property
    def planned_bytes(self) -> int:
        """What the plan says of the parts that were measured: not the process, later copies or the margin."""
        memory = self.load.memory(-(-self.case.rows // (self.spec.tunesmith.resources.replicas * self.case.pieces)), self.case.length)
        return memory.total - memory.process - memory.copies - memory.margin

    def sent_bytes(self, *, scatters: bool) -> float:
        """What the formula says that a worker sends in a step."""
        case, adapter = self.case, self.spec.tunesmith.adapter
        extra = 0 if adapter.type == "full" else self.sizes.adapter(adapter.target_modules, adapter.r)
        whole, trained = self.sizes.parameters + extra, extra or self.sizes.parameters
        size = 4 if case.engine == "torch" or self.spec.tunesmith.resources.gpus_per_worker == 0 else 2
        step = sent_bytes(case.engine, case.workers, whole=size * whole, trained=size * trained, pieces=case.pieces, scatters=scatters)
        shape = self.load.shape
        widths = {"layers": shape.layers, "queries": shape.queries, "kv": shape.kv, "size": shape.bytes_per_number}
        return step + exchanged_bytes(case.sharing, case.tokens // case.workers, **widths)


def plain(figures: Sequence[Figures], *, scatters: bool) -> list[dict[str, Any]]:
    """All of it as plain values."""
    return [
        asdict(one.case)
        | {"turns": [asdict(turn) for turn in one.turns], "flops": one.flops, "planned_bytes": one.planned_bytes}
        | {"formula_sent_bytes": one.sent_bytes(scatters=scatters)}
        for one in figures
    ]


def show(figures: Sequence[Figures], *, scatters: bool) -> None:
    """Print a table of each sweep. `scatters`: see growth.sent_bytes; on GPUs, where the kernel does not see the bytes."""
    if workers := [one for one in figures if one.case.sweep == "workers"]:
        console.print(_workers(workers, scatters=scatters))
    if shared := [one for one in figures if one.case.sweep == "sharing"]:
        console.print(_sharing(shared, scatters=scatters))
    for sweep, by in (("parameters", _numbers), ("length", _length)):
        found = [one for one in figures if one.case.sweep == sweep]
        if found:
            console.print(_growth(sweep, found), _exponents(sweep, found, by))


def _workers(figures: Sequence[Figures], *, scatters: bool) -> Table:
    alone = {(one.case.adapter, one.case.engine): one for one in figures if one.case.workers == 1}
    headings = "batch", "ms a step", "cpu ms", "speed", "speed by cpu", "waiting", "moving", "collectives", "MB sent", "formula MB"
    table = _table("Workers", ("adapter", "engine", "workers", *headings))
    for one in figures:
        case, first = one.case, alone[one.case.adapter, one.case.engine]
        table.add_row(
            case.adapter,
            case.engine,
            str(case.workers),
            f"{case.rows}" if case.pieces == 1 else f"{case.rows} in {case.pieces}",
            _spread(one),
            f"{1e3 * one.median('cpu_seconds'):.0f}",
            f"{one.speed_beside(first, 'seconds'):.2f}",
            f"{one.speed_beside(first, 'cpu_seconds'):.2f}",
            f"{one.median('waiting'):.0%}",
            f"{one.median('moving'):.0%}",
            f"{one.median('calls'):.0f}",
            "-" if scatters else f"{one.median('sent_bytes') / 1e6:.2f}",  # NCCL's ways are not TCP's
            f"{one.sent_bytes(scatters=scatters) / 1e6:.2f}",
        )
    return table


def _sharing(figures: Sequence[Figures], *, scatters: bool) -> Table:
    """Rows that workers share beside the same rows of one worker."""
    alone = {(one.case.adapter, one.case.length): one for one in figures if one.case.sharing == 1}
    headings = "ms a step", "cpu ms", "speed", "speed by cpu", "collectives", "MB sent", "formula MB", "MiB", "planned MiB"
    table = _table("Shared rows", ("adapter", "rows x length", "share each", *headings))
    for one in figures:
        case, first = one.case, alone[one.case.adapter, one.case.length]
        table.add_row(
            case.adapter,
            f"{case.rows} x {case.length}",
            str(case.sharing),
            _spread(one),
            f"{1e3 * one.median('cpu_seconds'):.0f}",
            f"{one.speed_beside(first, 'seconds'):.2f}",
            f"{one.speed_beside(first, 'cpu_seconds'):.2f}",
            f"{one.median('calls'):.0f}",
            "-" if scatters else f"{one.median('sent_bytes') / 1e6:.2f}",
            f"{one.sent_bytes(scatters=scatters) / 1e6:.2f}",
            f"{one.median('peak_bytes') / 2**20:.0f}",
            f"{one.planned_bytes / 2**20:.0f}",
        )
    return table


def _growth(sweep: str, figures: Sequence[Figures]) -> Table:
    headings = "ms a step", "cpu ms", "tok/cpu-s", "MFLOP a token", "GFLOP/cpu-s", "MiB", "planned MiB"
    table = _table(f"By {sweep}", ("adapter", "hidden x layers", "numbers", "rows x length", *headings))
    for one in figures:
        case, seconds = one.case, one.median("cpu_seconds")
        table.add_row(
            case.adapter,
            f"{case.hidden} x {case.layers}",
            f"{one.sizes.parameters / 1e6:.2f} M",
            f"{case.rows} x {case.length}",
            _spread(one),
            f"{1e3 * seconds:.0f}",
            f"{case.tokens / seconds:,.0f}",
            f"{one.flops / case.tokens / 1e6:.1f}",
            f"{one.flops / seconds / 1e9:.0f}",
            f"{one.median('peak_bytes') / 2**20:.0f}",
            f"{one.planned_bytes / 2**20:.0f}",
        )
    return table


def _exponents(sweep: str, figures: Sequence[Figures], by: Callable[[Figures], float]) -> Table:
    """Of a token, so that cases with more tokens a step can stand beside others."""
    table = _table(f"Exponent of growth by {sweep}", ("adapter", "processor time of a token", "operations of a token"))
    for adapter in dict.fromkeys(one.case.adapter for one in figures):
        found = [one for one in figures if one.case.adapter == adapter]
        time = exponent([(by(one), one.median("cpu_seconds") / one.case.tokens) for one in found])
        operations = exponent([(by(one), one.flops / one.case.tokens) for one in found])
        table.add_row(adapter, f"{time:.2f}", f"{operations:.2f}")
    return table


def _numbers(one: Figures) -> float:
    return one.sizes.parameters


def _length(one: Figures) -> float:
    return one.case.length


def _spread(one: Figures) -> str:
    """Median, lowest and highest of the rounds, in milliseconds."""
    taken = [1e3 * turn.seconds for turn in one.turns]
    return f"{statistics.median(taken):.0f} ({min(taken):.0f}-{max(taken):.0f})"


def _table(title: str, headings: Iterable[str]) -> Table:
    table = Table(title=title, box=MARKDOWN)
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    return table
