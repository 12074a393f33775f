"""What goes on in a job: its updates as they come, its curves, and the logs of its runs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, nullcontext
from dataclasses import dataclass
from typing import Literal

from service import run_logs
from service.app.context import Context, available, found, require
from service.curves import Curves
from service.jobs import FINAL, Job, JobUpdate
from service.records import Caller
from service.run_logs import LogReader
from service.store.runs import Run
from trainers.run_log import DRIVER, rank_writer

FOLLOW_SECONDS = 1.0
"""Between two looks at a log that is followed."""


@dataclass(frozen=True, slots=True)
class JobLog:
    """A log of one attempt, about to be sent; `text` yields UTF-8."""

    attempt: int
    writer: str
    writers: list[str]
    """All that wrote a log in this attempt until now."""
    text: AsyncGenerator[bytes]


class StreamUses(Context):
    """What a caller can follow."""

    async def watch_job(self, caller: Caller, job_id: str, *, after_seq: int = 0) -> AsyncGenerator[JobUpdate]:
        """Every event beyond `after_seq` once and in order, and the job whenever its progress, phase or reason changed.

        Begins with the history, ends with the job in its final state. A negative cursor counts from the end: -20 begins
        with the last 20 events. Raises UNAVAILABLE when the gateway stops or has too many watches, UNAUTHENTICATED once
        the key is no longer valid.
        """
        require(caller, "read")
        async with self.reading() as tx:
            await self.the_job(tx, caller, job_id)
        async with available(), aclosing(self.watches.watch(job_id, caller.key_id, after_seq)) as updates:
            async for update in updates:
                yield update

    async def job_curves(self, caller: Caller, job_id: str, *, after_step: int = 0) -> Curves:
        """What was measured at each step beyond `after_step`, the newest run's word on it."""
        require(caller, "read")
        curves = Curves()
        async with self.reading() as tx:
            await self.the_job(tx, caller, job_id)
            async with aclosing(tx.metric_rows(job_id, after_step)) as rows:
                async for data in rows:
                    curves.add(data)
        return curves

    async def job_log(
        self,
        caller: Caller,
        job_id: str,
        *,
        attempt: int | None = None,
        rank: int | Literal["driver"] | None = None,
        tail: int | None = None,
        follow: bool = False,
    ) -> JobLog:
        """What one process of an attempt wrote: of the latest attempt and of rank 0 unless told.

        Without a rank the driver's log stands in for that of a worker that wrote none. `tail` begins with the last
        lines, `follow` goes on until the attempt has ended.
        """
        require(caller, "read")
        async with self.reading() as tx:
            job = await self.the_job(tx, caller, job_id)
            epoch = attempt or max(1, job.epoch)
            if attempt is not None:
                found(await tx.run(job_id, attempt), "attempt", str(attempt), param="attempt")
        async with available():
            wrote = await asyncio.to_thread(run_logs.writers, self.storage, job_id, epoch)
        writer = DRIVER if rank == "driver" else rank_writer(rank or 0)
        if rank is None and not follow and writer not in wrote and DRIVER in wrote:
            writer = DRIVER
        return JobLog(epoch, writer, wrote, self._text(LogReader(self.storage, job_id, epoch, writer), tail, follow=follow))

    async def _text(self, reader: LogReader, tail: int | None, *, follow: bool) -> AsyncGenerator[bytes]:
        """The first piece comes at once, be it empty: what stands against sending any is raised with it."""
        with self.watches.stream() if follow else nullcontext():
            async with available():
                pieces = reader.fresh() if tail is None else reader.tail(tail)
                yield await asyncio.to_thread(next, pieces, b"")
                async for data in _each(pieces):
                    yield data
                while follow and not self.watches.closing:
                    ended = await self._has_ended(reader.job_id, reader.epoch)
                    async for data in _each(reader.fresh()):
                        yield data
                    if ended:
                        return
                    await asyncio.sleep(FOLLOW_SECONDS)

    async def _has_ended(self, job_id: str, epoch: int) -> bool:
        """Whether nothing of the attempt runs any more. Read before the log, so that what is read after it is all."""
        async with self.store.read() as tx:
            jobs = await tx.marked_jobs([job_id])
            run = await tx.run(job_id, epoch)
        return job_id not in jobs or _is_over(jobs[job_id][1], run, epoch)


async def _each(pieces: Iterator[bytes]) -> AsyncGenerator[bytes]:
    while data := await asyncio.to_thread(next, pieces, b""):
        yield data


def _is_over(job: Job, run: Run | None, epoch: int) -> bool:
    return job.status in FINAL or job.epoch > epoch or (run is not None and run.ended_at is not None)
