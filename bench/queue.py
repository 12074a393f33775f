"""How the queue's rules do: 10,000 jobs on a virtual cluster, beside plain FIFO on the same jobs.

    python -m bench.queue [--jobs 10000] [--seed 1]

The rules are those of `service/queue.py`; arrivals, sizes, durations and wrong estimates follow from the seed.
"""

from __future__ import annotations

import argparse
import math
import random
import statistics
import sys
import time
from dataclasses import dataclass

from bench.virtual_cluster import STARTING, SimulatedJob, VirtualCluster
from service.gangs import Gang
from service.queue import Plan, Rules
from service.runtime import Capacity

CAPACITY = Capacity(cpus=1024, gpus=128, nodes=16)
LOAD = 0.92
"""Of the cluster's GPU-seconds, on average, that arriving jobs ask for."""
DAY = 86400.0
RULES = Rules(patience=DAY)
STARVED = 7 * DAY
"""A wait that counts as starving."""


@dataclass(frozen=True)
class Kind:
    """A class of jobs: its part of all jobs, gang sizes in GPUs, priority, median seconds of training."""

    name: str
    part: float
    gangs: tuple[int, ...]
    priority: int
    median: float
    projects: tuple[str, ...]


KINDS = (
    Kind("product, urgent", 0.05, (1, 2, 4, 8), 10, 900, ("product-1", "product-2")),
    Kind("product", 0.45, (1, 1, 2, 4), 0, 1500, ("product-1", "product-2")),
    Kind("research, small", 0.42, (1, 2, 4, 8), 0, 3600, ("research-1", "research-2", "research-3")),
    Kind("research, 16-64 GPUs", 0.08, (16, 32, 64), 0, 5400, ("research-1", "research-2", "research-3")),
)


def jobs(count: int, seed: int) -> list[SimulatedJob]:
    """Arrivals at the load; lognormal durations; estimates wrong by a lognormal factor, one in four jobs tells none."""
    rng = random.Random(seed)
    made = [_job(number, rng) for number in range(count)]
    asked = sum((job.work + STARTING) * job.gang.gpus for job in made)
    span, at = asked / (CAPACITY.gpus * LOAD), 0.0
    for job in made:
        at += rng.expovariate(count / span)
        job.arrives = at
    return made


def _job(number: int, rng: random.Random) -> SimulatedJob:
    (kind,) = rng.choices(KINDS, [kind.part for kind in KINDS])
    work = min(2 * DAY, rng.lognormvariate(math.log(kind.median), 1.0))
    promise = None if rng.random() < 0.25 else rng.lognormvariate(0, 0.5)
    limit = work * rng.uniform(1.5, 4) if rng.random() < 0.5 else None
    project = rng.choice(kind.projects)
    gang = Gang(rng.choice(kind.gangs), 8, 1)
    return SimulatedJob(f"job-{number}", project, gang, kind.priority, 0.0, work, promise, limit, kind.name)


def fifo(cluster: VirtualCluster) -> Plan:
    """The peer: in order of arrival, all or none, nobody overtakes."""
    free = cluster.capacity.gpus - sum(job.gang.gpus for job in cluster.busy.values())
    start: dict[str, Gang] = {}
    for _, job in cluster.queue.values():
        if job.gang.gpus > free:
            break
        start[job.id] = job.gang
        free -= job.gang.gpus
    return Plan(start)


def simulate(count: int, seed: int) -> None:
    """Print both policies on the same jobs."""
    for name, policy in (("tunesmith", VirtualCluster.decide), ("plain FIFO", fifo)):
        began, made = time.perf_counter(), jobs(count, seed)
        cluster = VirtualCluster(CAPACITY, policy, RULES)
        cluster.run(made)
        _print(name, cluster, made, time.perf_counter() - began)


def _print(name: str, cluster: VirtualCluster, made: list[SimulatedJob], seconds: float) -> None:
    until = made[-1].arrives
    used = sum(
        (min(end, until) - min(start, until)) * job.gang.gpus for job in made for start, end in zip(job.starts, job.ends, strict=True)
    )
    starved = sum(1 for job in made if not job.ends or max(job.waits) > STARVED)
    _say(f"\n{name}: {len(made)} jobs, utilisation until the last arrival {used / (until * CAPACITY.gpus):.1%},")
    _say(f"  {cluster.preemptions} preemptions, {starved} starved; {until / DAY:.1f} virtual days in {seconds:.0f} s")
    _say(f"  {'wait for the first start':<26}{'jobs':>7}{'p50':>10}{'p99':>10}{'max':>10}")
    for kind in (*KINDS, None):
        waits = sorted(job.waits[0] for job in made if job.starts and (kind is None or job.group == kind.name))
        if len(waits) > 1:
            marks = (statistics.median(waits), statistics.quantiles(waits, n=100)[98], waits[-1])
            _say(f"  {kind.name if kind else 'all':<26}{len(waits):>7}" + "".join(f"{mark / 60:>6.0f} min" for mark in marks))


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description="The queue's figures.")
    parser.add_argument("--jobs", type=int)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    simulate(given.jobs or 10_000, given.seed)


if __name__ == "__main__":
    main()
