"""Tells a run that is stuck from one that is slow, and names the ranks that did not come.

Every rank marks what it does; a thread beside it passes the newest mark on, so a mark costs the training nothing and comes
through though the training hangs. Rank 0 looks at all of them by its own clock alone. When it has itself been stopped as a
whole, it falls silent and the gateway notices. Free of torch: what carries the marks is an `Exchange`. Used by `run` and `loop`.
"""

from __future__ import annotations

import json
import logging
import platform
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeVar

from trainers.failure import TrainingFailed

BEAT_SECONDS = 1.0
FLOOR_SECONDS = 60.0
"""A run is given this long whatever its steps take: garbage collection, a busy disk and a slow network are no faults."""
FACTOR = 10.0
"""How many times as long as nearly all of its like something may take."""
ENOUGH = 5
"""Times that must be known before they count."""
GENEROUS_SECONDS = 900.0
"""For what is not known yet, compilation in the first steps among it, and for checkpoints while the object store is away."""
Kind = Literal["step", "evaluation", "other"]
T = TypeVar("T")
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Beat:
    """What a rank was last heard to do. Ranks make the same marks in the same order, so the one with the fewest is behind."""

    marks: int = 0
    doing: str = "start"
    kind: Kind = "other"
    ticks: int = 0
    """Grows while the process lives, whether it gets on or not."""
    node: str = ""


@dataclass(frozen=True, slots=True)
class Seen:
    """A rank's newest beat; seconds of the watcher's own clock at which its marks and its ticks last grew."""

    beat: Beat
    moved: float
    heard: float


class Exchange(Protocol):
    """Carries each rank's newest beat to rank 0. May raise what its library raises, and may block."""

    def put(self, rank: int, text: str) -> None:
        """Let this be the rank's newest."""
        ...

    def get(self, rank: int) -> str | None:
        """The rank's newest, None before its first."""
        ...


def patience(kind: Kind, gaps: Mapping[Kind, Sequence[float]]) -> float:
    """Seconds that may pass without a mark, from how long (`gaps`, seconds) the same kind of thing has taken until now."""
    known = sorted(gaps.get(kind, ()))
    if kind == "other" or len(known) < ENOUGH:
        return GENEROUS_SECONDS
    return max(FLOOR_SECONDS, FACTOR * known[int(0.95 * (len(known) - 1))])


def overdue(seen: Sequence[Seen], now: float, gaps: Mapping[Kind, Sequence[float]]) -> tuple[int, ...]:
    """The ranks that everybody waits for, once nobody has got on for too long; none while somebody has.

    A rank that hangs lets the others go on until they need it, so those with the fewest marks are the ones that did not come.
    All of them when all made the same marks: then the collective itself hangs.
    """
    fewest = min(one.beat.marks for one in seen)
    behind = [rank for rank, one in enumerate(seen) if one.beat.marks == fewest]
    allowed = max(patience(seen[rank].beat.kind, gaps) for rank in behind)
    return tuple(behind) if now - max(one.moved for one in seen) > allowed else ()


class Watch:
    """One rank's marks and the thread that passes them on; on rank 0 the thread also looks at everybody's."""

    def __init__(self, rank: int, world_size: int, exchange: Exchange | None, stuck: Callable[[TrainingFailed], None]) -> None:
        """`exchange` may be None for a single rank. `stuck` is called once, on rank 0, from the thread."""
        self._rank, self._exchange, self._stuck = rank, exchange, stuck
        self._beat, self._marked = Beat(node=platform.node()), time.monotonic()
        self._gaps: dict[Kind, deque[float]] = defaultdict(lambda: deque(maxlen=64))
        self._seen = [Seen(Beat(), self._marked, self._marked) for _ in range(world_size)]
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._thread.start()

    def mark(self, doing: str, kind: Kind = "other") -> None:
        """This rank begins something; every rank marks the same things in the same order."""
        now = time.monotonic()
        self._gaps[self._beat.kind].append(now - self._marked)
        self._beat, self._marked = Beat((self._beat.marks | 1) + 1, doing, kind, node=self._beat.node), now

    def arriving(self, pieces: Iterable[T], doing: str, kind: Kind) -> Iterator[T]:
        """`pieces`, with a mark when all are worked off: what follows is a collective.

        The mark is half a one: a rank that broke off before it has made as many as the others once all begin the next thing.
        """
        yield from pieces
        self._beat = Beat(self._beat.marks | 1, f"the collective of {doing}", kind, node=self._beat.node)

    def close(self) -> None:
        """Nothing more is waited for."""
        self._ending.set()
        self._thread.join(2 * BEAT_SECONDS)  # a thread whose peer is gone may hang: it ends with the process

    def silent(self) -> tuple[int, ...]:
        """Ranks that are no longer heard of; takes a few beats, for silence must be waited for."""
        self._ending.wait(2 * BEAT_SECONDS)  # until a last word that is on its way has come
        before = list(self._seen)
        self._ending.wait(4 * BEAT_SECONDS)
        pairs = enumerate(zip(before, self._seen, strict=True))
        return tuple(rank for rank, (old, new) in pairs if rank != self._rank and new.beat.ticks == old.beat.ticks)

    def lost(self, ranks: Sequence[int], why: str) -> TrainingFailed:
        """The failure of peers that are gone."""
        message = f"{self._names(ranks)} {'is' if len(ranks) == 1 else 'are'} gone: {why}"
        return TrainingFailed("worker_lost", message, "infrastructure").at(ranks[0], self._seen[ranks[0]].beat.node)

    def _run(self) -> None:
        try:
            while not self._ending.wait(BEAT_SECONDS):
                self._pass_on()
                if self._rank == 0 and self._look():
                    return
        except RuntimeError as error:  # of the exchange, whose server was rank 0 or its node
            log.info("no longer watched: %s", error)

    def _pass_on(self) -> None:
        beat = self._beat
        ticks = self._seen[self._rank].beat.ticks + 1
        self._take(self._rank, Beat(beat.marks, beat.doing, beat.kind, ticks, beat.node))
        if self._exchange is not None and self._rank != 0:
            self._exchange.put(self._rank, json.dumps([beat.marks, beat.doing, beat.kind, ticks, beat.node]))

    def _look(self) -> bool:
        for rank in range(1, len(self._seen)):
            text = self._exchange.get(rank) if self._exchange is not None else None
            if text is not None:
                self._take(rank, Beat(*json.loads(text)))
        ranks = overdue(self._seen, time.monotonic(), self._gaps)
        if ranks:
            self._stuck(self._failure(ranks))
        return bool(ranks)

    def _take(self, rank: int, beat: Beat) -> None:
        old, now = self._seen[rank], time.monotonic()
        moved = now if beat.marks != old.beat.marks else old.moved
        self._seen[rank] = Seen(beat, moved, now if beat.ticks != old.beat.ticks else old.heard)

    def _failure(self, ranks: tuple[int, ...]) -> TrainingFailed:
        now, first = time.monotonic(), self._seen[ranks[0]]
        waited = now - max(one.moved for one in self._seen)
        if len(ranks) == len(self._seen) > 1:
            words = f"all {len(ranks)} ranks have been in {first.beat.doing} for {waited:.0f} s"
        else:
            silence = now - first.heard
            how = f", silent for {silence:.0f} s" if silence > 5 * BEAT_SECONDS else ""
            words = f"{self._names(ranks)} did not get on from {first.beat.doing} for {waited:.0f} s{how}"
        return TrainingFailed("run_stuck", f"the run is stuck: {words}", "infrastructure").at(ranks[0], first.beat.node)

    def _names(self, ranks: Sequence[int]) -> str:
        return " and ".join(f"rank {rank} on {self._seen[rank].beat.node or 'an unknown node'}" for rank in ranks)
