"""Who watches which job on this gateway, and the one poller that tells all of them.

Changes of this process wake the poller at once; those of other gateways are seen at its next look, within a second. A
look costs one query however many watch. A watcher that is slow falls back to the database by its cursor: nothing is
dropped, and nothing grows. Knows no transport; `App.watch_job` hands the updates on.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Generator, Iterable, Set
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import timedelta

import structlog

from service.errors import ErrorCode, TunesmithError, not_found
from service.jobs import FINAL, Event, Job, JobStatus, JobUpdate
from service.metrics import Metrics
from service.store import Store, StoreUnavailable
from service.store.progress import Mark
from service.tenancy import is_live

log = structlog.get_logger(__name__)
BUSY, IDLE = 0.25, 1.0
"""Seconds between two looks: while something happens, and at most."""
REVIEW = 5.0
"""Seconds between two looks at what changes without the job's row: keys that are revoked, places in the queue."""
BACKLOG = 64
"""Looks with news that wait for a slow watcher before it is sent back to the database."""
PAGE = 1000
"""Events of one query."""


@dataclass(frozen=True, slots=True)
class _News:
    """What one look found of one job; `job` is None while nothing but events is new."""

    mark: Mark
    events: tuple[Event, ...]
    job: Job | None


class _Watcher:
    """One who watches."""

    def __init__(self, key_id: str) -> None:
        self.key_id = key_id
        self.behind = False
        """It must read the database: news was thrown away, or came before it was listed."""
        self._news: deque[_News] = deque()
        self._over: TunesmithError | None = None
        self._called = asyncio.Event()

    def tell(self, news: _News) -> None:
        if len(self._news) == BACKLOG:
            self._news.clear()
            self.behind = True
        if not self.behind:
            self._news.append(news)
        self._called.set()

    def end(self, why: TunesmithError) -> None:
        self._over = why
        self._called.set()

    async def next(self) -> _News | None:
        """The next news in order, None when the database must be read. Raises what the watch ends with."""
        while not (self._news or self.behind or self._over):
            self._called.clear()
            await self._called.wait()
        if self._over:
            raise self._over
        if self.behind:
            self.behind = False
            return None
        return self._news.popleft()


@dataclass
class _Watched:
    """A job that somebody watches, as it was last told of."""

    mark: Mark
    job: Job
    watchers: set[_Watcher] = field(default_factory=set[_Watcher])


@dataclass
class _Place:
    """How far a watcher has come. A negative `seq`, until the first look, counts from the end."""

    seq: int
    mark: Mark = field(default_factory=lambda: Mark(0, 0, ""))
    job: Job | None = None

    def is_end(self) -> bool:
        return self.job is not None and self.job.status in FINAL and self.seq >= self.mark.seq


class Watches:
    """All watches of one gateway. `run` must run for them to hear anything new."""

    def __init__(self, store: Store, limit: int, metrics: Metrics) -> None:
        self._store, self._limit, self._metrics = store, limit, metrics
        self._watched: dict[str, _Watched] = {}
        self._open = 0
        self._closing = False
        self._news = asyncio.Event()
        store.listen(self._changed)

    @property
    def open(self) -> int:
        """Streams that are open now."""
        return self._open

    async def run(self, stop: asyncio.Event) -> None:
        """Tell watchers until `stop`; then every watch ends, so that its client can go to another gateway."""
        looking = asyncio.create_task(self._look_on())
        try:
            await stop.wait()
        finally:
            self._closing = True
            looking.cancel()
            for watched in self._watched.values():
                _end(watched.watchers, _stopping())
            with suppress(asyncio.CancelledError):
                await looking

    @contextmanager
    def stream(self) -> Generator[None]:
        """Counts one long answer. Raises UNAVAILABLE when this gateway has as many as it may, or is about to stop."""
        if self._closing:
            raise _stopping()
        if self._open >= self._limit:
            raise TunesmithError(
                ErrorCode.UNAVAILABLE,
                f"This gateway serves {self._limit} streams already; try again, or poll the job.",
                wire_code="too_many_streams",
                retry_after=timedelta(seconds=5),
            )
        self._open += 1
        self._metrics.set_streams(self._open)
        try:
            yield
        finally:
            self._open -= 1
            self._metrics.set_streams(self._open)

    @property
    def closing(self) -> bool:
        """Whether the gateway is about to stop: a long answer should end."""
        return self._closing

    async def watch(self, job_id: str, key_id: str, after_seq: int) -> AsyncGenerator[JobUpdate]:
        """Every event beyond the cursor once and in order, and the job whenever it changed; to its end.

        A negative cursor counts from the end: -20 begins with the last 20 events. Raises UNAUTHENTICATED once the key
        is no longer valid, UNAVAILABLE when the gateway stops.
        """
        place = _Place(after_seq)
        with self.stream():
            async for update in self._from_database(job_id, place):
                yield update
            with self._listed(job_id, key_id, place) as watcher:
                while not place.is_end():
                    updates = _told(place, await watcher.next())
                    for update in updates or ():
                        yield update
                    if updates is None:
                        async for update in self._from_database(job_id, place):
                            yield update

    async def _from_database(self, job_id: str, place: _Place) -> AsyncGenerator[JobUpdate]:
        """Bring `place` up to date: what it lacks of the history, then the job unless it is known as it is."""
        while True:
            mark, job, events = await self._read(job_id, place)
            for event in events:
                place.seq = event.seq
                yield JobUpdate(event, None)
            if place.seq >= mark.seq:
                break
        known, place.mark, place.job = place.job, mark, job
        if known is None or _shown(job) != _shown(known):
            yield JobUpdate(None, job)

    async def _read(self, job_id: str, place: _Place) -> tuple[Mark, Job, list[Event]]:
        """The job first: when it has ended, the events read after it are all there will be."""
        while True:
            try:
                async with self._store.read() as tx:
                    marked = (await tx.marked_jobs([job_id])).get(job_id)
                    if marked is None:
                        raise not_found("fine-tuning job", job_id, "fine_tuning_job_id")
                    last = marked[0].seq
                    place.seq = max(0, last + place.seq) if place.seq < 0 else min(place.seq, last)
                    beyond = await tx.events_after({job_id: place.seq}, PAGE) if place.seq < last else {}
                    return *marked, beyond.get(job_id, [])
            except StoreUnavailable as error:
                log.warning("watch_waits", job=job_id, cause=str(error))
                if self._closing:
                    raise _stopping() from error
                await asyncio.sleep(IDLE)

    @contextmanager
    def _listed(self, job_id: str, key_id: str, place: _Place) -> Generator[_Watcher]:
        assert place.job is not None
        watched = self._watched.setdefault(job_id, _Watched(place.mark, place.job))
        watcher = _Watcher(key_id)
        watcher.behind = watched.mark != place.mark
        watched.watchers.add(watcher)
        if self._closing:
            watcher.end(_stopping())
        self._news.set()
        try:
            yield watcher
        finally:
            watched.watchers.discard(watcher)
            if not watched.watchers and self._watched.get(job_id) is watched:
                del self._watched[job_id]

    def _changed(self, job_ids: Set[str]) -> None:
        if not self._watched.keys().isdisjoint(job_ids):
            self._news.set()

    async def _look_on(self) -> None:
        pause, reviewed = BUSY, 0.0
        clock = asyncio.get_running_loop().time
        while True:
            await self._until_news(pause)
            try:
                review = clock() - reviewed >= REVIEW
                if review:
                    reviewed = clock()
                    await self._check_keys()
                found = await self._look(review=review) if self._watched else False
            except StoreUnavailable as error:
                log.warning("watches_wait", cause=str(error))
                found = False
            except Exception:
                # One bad row must not end everybody's watch; the cause is in the log.
                log.exception("watches_error")
                found = False
            pause = BUSY if found else min(IDLE, 2 * pause)

    async def _until_news(self, pause: float) -> None:
        """Until something happened here, or it is time to look what happened elsewhere; without watchers it never is."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._news.wait(), pause if self._watched else None)
        self._news.clear()

    async def _look(self, *, review: bool) -> bool:
        """Tell what is new of all watched jobs; whether anything was. `review`: look at queued ones even if their row is as it was."""
        last = {job_id: watched.mark for job_id, watched in self._watched.items()}
        queued = {job_id for job_id, watched in self._watched.items() if review and watched.job.status is JobStatus.QUEUED}
        async with self._store.read() as tx:
            marks = await tx.marks(last)
            moved = [job_id for job_id in marks if marks[job_id] != last[job_id] or job_id in queued]
            jobs = await tx.marked_jobs(moved) if moved else {}
            cursors = {job_id: last[job_id].seq for job_id, (mark, _) in jobs.items() if mark.seq > last[job_id].seq}
            events = await tx.events_after(cursors, PAGE) if cursors else {}
        for job_id in last.keys() - marks.keys():
            _end(self._watchers_of(job_id), not_found("fine-tuning job", job_id, "fine_tuning_job_id"))
        for job_id, (mark, job) in jobs.items():
            self._tell(job_id, mark, job, events.get(job_id, []))
        return bool(moved)

    def _tell(self, job_id: str, mark: Mark, job: Job, events: list[Event]) -> None:
        watched = self._watched.get(job_id)
        if watched is None or mark.version < watched.mark.version:
            return
        changed = None
        last = events[-1].seq if events else watched.mark.seq
        if last < mark.seq:  # more than a page: the rest comes with the next look, and the job after it
            watched.mark = replace(watched.mark, seq=last)
            self._news.set()
        else:
            changed = job if _shown(job) != _shown(watched.job) else None
            watched.mark, watched.job = replace(mark, seq=last), job
        if events or changed:
            news = _News(watched.mark, tuple(events), changed)
            for watcher in watched.watchers:
                watcher.tell(news)

    def _watchers_of(self, job_id: str) -> Set[_Watcher]:
        watched = self._watched.get(job_id)
        return watched.watchers if watched else set[_Watcher]()

    async def _check_keys(self) -> None:
        watchers = [watcher for watched in self._watched.values() for watcher in watched.watchers]
        async with self._store.read() as tx:
            keys = {key_id: await tx.key(key_id) for key_id in {watcher.key_id for watcher in watchers}}
        dead = {key_id for key_id, key in keys.items() if key is None or not is_live(key, tx.time)}
        why = TunesmithError(ErrorCode.UNAUTHENTICATED, "This API key is no longer valid.")
        _end((watcher for watcher in watchers if watcher.key_id in dead), why)


def _told(place: _Place, news: _News | None) -> list[JobUpdate] | None:
    """What the news means for someone at `place`, which moves on; None when the database must be read instead."""
    fresh = [event for event in news.events if event.seq > place.seq] if news else []
    if news is None or (fresh and fresh[0].seq != place.seq + 1):
        return None
    updates = [JobUpdate(event, None) for event in fresh]
    place.seq += len(fresh)
    if news.job is not None and news.mark.version >= place.mark.version:
        place.mark, place.job = news.mark, news.job
        updates.append(JobUpdate(None, news.job))
    return updates


def _shown(job: Job) -> Job:
    """The job without what nobody is told of."""
    return replace(job, version=0, lease_owner=None)


def _end(watchers: Iterable[_Watcher], why: TunesmithError) -> None:
    for watcher in watchers:
        watcher.end(why)


def _stopping() -> TunesmithError:
    return TunesmithError(ErrorCode.UNAVAILABLE, "The gateway is stopping; connect again.", retry_after=timedelta(seconds=1))
