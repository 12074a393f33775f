"""Whatever comes: nobody starves, nothing is given away twice, no quota is passed. The scheduler's own rules on a virtual clock."""

from __future__ import annotations

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bench.virtual_cluster import LEAVING, STARTING, SimulatedJob, VirtualCluster
from service.gangs import Gang
from service.queue import Plan, Rules
from service.quotas import Quotas
from service.runtime import Capacity

CAPACITY = Capacity(cpus=8, gpus=8, nodes=1)
RULES = Rules(patience=2000, running_jobs=5, max_preemptions=2, nearly_done=30)
QUOTAS = {"a": Quotas(running_jobs=3)}
LONGEST = 3000.0


@st.composite
def _jobs(draw: st.DrawFn) -> list[SimulatedJob]:
    made = []
    for number in range(draw(st.integers(1, 40))):
        work = draw(st.floats(1, LONGEST))
        made.append(
            SimulatedJob(
                f"job-{number}",
                draw(st.sampled_from("ab")),
                Gang(draw(st.sampled_from([1, 1, 2, 4, 8])), 1, 1),
                draw(st.sampled_from([0, 0, 1, 5])),
                draw(st.floats(0, 20_000)),
                work,
                draw(st.sampled_from([None, 0.01, 1.0, 10.0])),  # estimates may be as wrong as they like
                draw(st.sampled_from([None, work + STARTING])),
            )
        )
    return sorted(made, key=lambda job: job.arrives)


def _within_limits(cluster: VirtualCluster, plan: Plan) -> None:
    now = [*cluster.busy.values(), *(cluster.queue[job_id][1] for job_id in plan.start)]
    assert sum(job.gang.gpus for job in now) <= CAPACITY.gpus
    assert len(now) <= RULES.running_jobs
    assert sum(job.project_id == "a" for job in now) <= 3
    assert set(plan.start).isdisjoint(plan.preempt)


@given(_jobs())
@settings(max_examples=80, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
def test_every_job_that_fits_starts_within_the_bound(jobs: list[SimulatedJob]) -> None:
    cluster = VirtualCluster(CAPACITY, VirtualCluster.decide, RULES, QUOTAS, _within_limits, look=10)
    cluster.run(jobs)
    one_run = LONGEST + STARTING + LEAVING + cluster.look
    for job in jobs:
        assert job.ends, f"{job.id} never started"
        assert len(job.starts) <= RULES.max_preemptions + 1
        # Each job that waits longer, and each that runs, holds the next one up for the length of a run at most.
        ahead = sum(other.starts[0] < job.starts[0] + 1e-9 for other in jobs)
        for wait in job.waits:
            assert wait <= RULES.patience + (ahead + 2) * (RULES.max_preemptions + 1) * one_run


@given(st.lists(st.tuples(st.sampled_from([1, 2, 4]), st.sampled_from([None, 0.01, 1.0])), min_size=20, max_size=60))
@settings(max_examples=40, deadline=None, derandomize=True)
def test_a_stream_of_small_jobs_never_holds_up_a_gang_that_wants_everything(stream: list[tuple[int, float | None]]) -> None:
    """Small jobs of a higher priority come for as long as it waits, and promise ends that are not true."""
    small = [
        SimulatedJob(f"small-{n}", "b", Gang(gpus, 1, 1), 1, n * 200.0, 2000, promise, 100.0 if promise else None)
        for n, (gpus, promise) in enumerate(stream)
    ]
    gang = SimulatedJob("gang", "c", Gang(8, 1, 1), 0, 50.0, 100)
    cluster = VirtualCluster(CAPACITY, VirtualCluster.decide, Rules(patience=2000, max_preemptions=0), {}, look=10)
    cluster.run(sorted([*small, gang], key=lambda job: job.arrives))
    # Behind it may be small jobs that also waited too long: those that came before it.
    assert gang.waits[0] <= 2000 + 2 * (2000 + STARTING) + 100


@given(st.lists(st.tuples(st.sampled_from([1, 2, 3]), st.floats(100, 2000)), min_size=5, max_size=40))
@settings(max_examples=40, deadline=None, derandomize=True)
def test_backfill_never_delays_the_reserved_start_where_ends_are_true(stream: list[tuple[int, float]]) -> None:
    first = SimulatedJob("first", "a", Gang(5, 1, 1), 0, 0.0, 4000, 1.0, 4000 + STARTING)
    gang = SimulatedJob("gang", "b", Gang(8, 1, 1), 2, 20.0, 100, 1.0, 300)
    small = [
        SimulatedJob(f"small-{n}", "c", Gang(gpus, 1, 1), 0, 30.0 + n * 50, work, 1.0, work + STARTING)
        for n, (gpus, work) in enumerate(stream)
    ]
    cluster = VirtualCluster(CAPACITY, VirtualCluster.decide, Rules(max_preemptions=0), {}, look=1)
    cluster.run([first, gang, *small])
    assert gang.starts[0] <= first.ends[0] + cluster.look
