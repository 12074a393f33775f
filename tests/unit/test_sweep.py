"""Runs that nobody looks after any more are stopped when a scheduler starts."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from service.jobs import JobStatus
from service.runtime import Observation, RunState
from tests.unit.test_scheduler import World, stop, world

__all__ = ["world"]
ALIVE = Observation(RunState.RUNNING, alive=True)


@dataclass
class Case:
    """A run that lives on the cluster, and whether it must go."""

    run_id: str
    goes: bool


async def test_only_runs_that_are_not_the_current_one_of_a_known_job_are_stopped(world: World) -> None:
    current = await world.post(1)
    first = asyncio.create_task(world.scheduler().run())
    await world.until_is(current, JobStatus.STARTING)
    await world.until(current, lambda _: f"{current}-1" in world.runtime.runs)
    await stop(first)
    ended = await world.post(2)
    cases = [
        Case(f"{current}-1", goes=False),
        Case(f"{current}-0", goes=True),
        Case(f"{ended}-1", goes=True),
        Case("ftjob-of-another-gateway-1", goes=False),
    ]
    world.runtime.runs |= {case.run_id: ALIVE for case in cases}
    second = asyncio.create_task(world.scheduler().run())
    for _ in range(100):
        if len(world.runtime.stopped) >= sum(case.goes for case in cases):
            break
        await asyncio.sleep(0.02)
    await asyncio.sleep(0.2)
    await stop(second)
    assert {run_id for run_id in world.runtime.stopped if run_id in {case.run_id for case in cases}} == {c.run_id for c in cases if c.goes}
    assert world.runtime.runs[f"{current}-1"].alive
