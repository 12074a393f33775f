"""Gangs by node: how many workers fit where, why a job waits, and how an elastic gang shrinks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.gangs import Gang, Packing, fits_ever, gang, granted, shortage
from service.runtime import Capacity, Node
from trainers.spec import ResourceSpec

TOO_SMALL = ": the cluster is too small for this job"


def cluster(*nodes: tuple[float, float] | Node) -> Capacity:
    return Capacity.of([node if isinstance(node, Node) else Node(*node) for node in nodes])


def why(resources: ResourceSpec, capacity: Capacity, used: Sequence[Gang] = ()) -> str:
    return shortage(gang(resources, capacity), capacity, list(used))


def gpus(workers: int, each: int, **more: Any) -> ResourceSpec:
    return ResourceSpec(workers=workers, gpus_per_worker=each, cpus_per_worker=1, **more)


FOUR_SINGLES = cluster(*[(8, 1)] * 4)
TWO_QUADS = cluster((16, 4), (16, 4))


@pytest.mark.parametrize(
    ("resources", "capacity", "used", "reason"),
    [
        (gpus(1, 4), FOUR_SINGLES, [], f"waiting for 1 worker with 4 GPUs: no node has room{TOO_SMALL}"),
        (gpus(4, 1), FOUR_SINGLES, [], ""),
        (gpus(5, 1), FOUR_SINGLES, [], f"waiting for 5 GPUs, 4 in all{TOO_SMALL}"),
        (gpus(2, 4), TWO_QUADS, [Gang(1, 1, 1)], "waiting for 8 GPUs, 7 free"),
        (gpus(1, 4), TWO_QUADS, [Gang(2, 1, 1, "spread")], "waiting for 1 worker with 4 GPUs: no node has room"),
        (gpus(2, 4), cluster(*[(9, 4)] * 6), [Gang(5, 1, 1, "spread")], "waiting for 2 workers with 4 GPUs each: 1 node has room"),
        (gpus(1, 3), TWO_QUADS, [Gang(1, 1, 1), Gang(1, 1, 1)], ""),
        (gpus(4, 1, placement="strict_pack"), FOUR_SINGLES, [], "waiting for 4 workers with 1 GPU each on one node: 4 nodes have room"),
        (gpus(4, 1, placement="strict_pack"), TWO_QUADS, [Gang(4, 1, 1)], ""),
        (gpus(2, 1, placement="strict_spread"), TWO_QUADS, [Gang(1, 1, 4)], "waiting for 2 workers with 1 GPU each on a node of its own"),
        (gpus(3, 1, placement="strict_spread"), TWO_QUADS, [], "waiting for 3 workers with 1 GPU each on a node of its own: 2 nodes have"),
        (gpus(1, 1, accelerator_type="H100"), TWO_QUADS, [], f"no node has an H100{TOO_SMALL}"),
        (gpus(1, 1, accelerator_type="B200"), cluster(Node(8, 1, "A100"), Node(8, 1, "B200")), [], ""),
        (gpus(2, 1, accelerator_type="A100"), cluster(Node(8, 1, "A100"), Node(8, 1, "B200")), [], "waiting for 2 A100s, 1 in all"),
        (ResourceSpec(labels={"zone": "b"}), cluster((2, 0)), [], f"no node has the label zone=b{TOO_SMALL}"),
        (ResourceSpec(labels={"zone": "b"}), cluster(Node(2, labels=(("rack", "1"), ("zone", "b")))), [], ""),
        (ResourceSpec(cpus_per_worker=3), cluster((2, 0), (2, 0)), [], "waiting for 1 worker with 3 processor cores: no node has room"),
        (ResourceSpec(cpus_per_worker=2), cluster((2, 0), (8, 2)), [Gang(1, 2, 0)], ""),
    ],
)
def test_why_a_gang_waits(resources: ResourceSpec, capacity: Capacity, used: list[Gang], reason: str) -> None:
    told = why(resources, capacity, used)
    assert told.startswith(reason)
    assert bool(told) == bool(reason)
    assert fits_ever(gang(resources, capacity), capacity) == (TOO_SMALL not in told)


@pytest.mark.parametrize(
    ("resources", "capacity", "cores"),
    [
        (ResourceSpec(), cluster((2, 0)), 2),
        (ResourceSpec(workers=2), cluster((2, 0)), 1),
        (ResourceSpec(workers=3), cluster((8, 0), (8, 0)), 4),
        (ResourceSpec(workers=4), cluster((2, 0)), 1),
        (ResourceSpec(), cluster((2, 0), (8, 0)), 8),
        (ResourceSpec(workers=2), cluster((2, 0), (8, 0)), 4),
        (ResourceSpec(workers=2, placement="strict_spread"), cluster((2, 0), (8, 0)), 2),
        (ResourceSpec(gpus_per_worker=1), cluster((16, 4)), 4),
        (ResourceSpec(gpus_per_worker=4), cluster((16, 4), (64, 8)), 32),
        (ResourceSpec(workers=3, gpus_per_worker=4), cluster((16, 4), (64, 8)), 16),
        (ResourceSpec(gpus_per_worker=1), cluster((16, 0)), 1),
    ],
)
def test_cores_left_open_are_the_largest_share_with_which_all_fit(resources: ResourceSpec, capacity: Capacity, cores: int) -> None:
    assert gang(resources, capacity).cpus_per_worker == cores


def test_sums_alone_are_nodes_that_are_alike() -> None:
    capacity = Capacity(cpus=16, gpus=4, nodes=2, gpu_types=("H100",))
    assert capacity.each == (Node(8, 2, "H100"),) * 2
    assert Capacity.of(capacity.each) == replace(capacity, by_node=capacity.each)


def test_a_gang_that_waits_keeps_small_ones_from_its_node() -> None:
    """Jobs that are ahead are among the used, whether or not there is room for them yet."""
    running, ahead = Gang(1, 1, 2), Gang(1, 1, 4)
    one_node = cluster((16, 4))
    assert why(gpus(1, 1), one_node, [running]) == ""
    assert why(gpus(1, 1), one_node, [running, ahead]) == "waiting for 1 GPU, 0 free"
    assert why(gpus(1, 1), TWO_QUADS, [running, ahead]) == "", "the large one has the other node"


sizes = st.tuples(st.integers(0, 6), st.integers(0, 4))
strategies = st.sampled_from(["pack", "spread", "strict_pack", "strict_spread"])


@given(
    nodes=st.lists(sizes, min_size=1, max_size=4), workers=st.integers(1, 4), cpus=st.integers(1, 3), each=st.integers(0, 2), how=strategies
)
def test_a_gang_fits_just_when_some_assignment_of_workers_to_nodes_does(
    nodes: list[tuple[int, int]], workers: int, cpus: int, each: int, how: Any
) -> None:
    wanted = Gang(workers, cpus, each, how)
    assert fits_ever(wanted, cluster(*nodes)) == any(holds(nodes, wanted, places) for places in product(range(len(nodes)), repeat=workers))


def holds(nodes: list[tuple[int, int]], wanted: Gang, places: tuple[int, ...]) -> bool:
    distinct = len(set(places))
    if (wanted.placement == "strict_pack" and distinct > 1) or (wanted.placement == "strict_spread" and distinct < wanted.workers):
        return False
    counts = [places.count(node) for node in range(len(nodes))]
    return all(n * wanted.cpus_per_worker <= c and n * wanted.gpus_per_worker <= g for n, (c, g) in zip(counts, nodes, strict=True))


@given(
    nodes=st.lists(sizes, min_size=1, max_size=4), used=st.lists(st.builds(Gang, st.integers(1, 4), st.integers(1, 3), st.integers(0, 2)))
)
def test_never_more_is_given_than_there_is(nodes: list[tuple[int, int]], used: list[Gang]) -> None:
    capacity, given = cluster(*nodes), list[Gang]()
    for wanted in used:
        if not shortage(wanted, capacity, given):
            given.append(wanted)
    assert sum(g.cpus for g in given) <= capacity.cpus
    assert sum(g.gpus for g in given) <= capacity.gpus


@pytest.mark.parametrize(
    ("workers", "least", "free", "rows", "given"),
    [
        (4, 1, 2, 8, 2),
        (4, 4, 2, 8, None),
        (4, 3, 2, 8, None),
        (8, 1, 7, 8, 4),  # 7 workers take two rows at most each, as do 4
        (8, 5, 7, 8, 5),
        (8, 1, 7, 64, 7),
        (8, 1, 5, 1, 1),
    ],
)
def test_an_elastic_gang_starts_with_what_there_is(workers: int, least: int, free: int, rows: int, given: int | None) -> None:
    part = granted(Gang(workers, 1, 0), least, rows, [Packing(cluster((free, 0)))])
    assert (part.workers if part else None) == given


@pytest.mark.parametrize(("free", "rows", "given"), [(7, 16, 6), (5, 16, 4), (1, 16, None), (7, 4, 4), (8, 16, 8)])
def test_an_elastic_gang_keeps_its_replicas_whole(free: int, rows: int, given: int | None) -> None:
    part = granted(Gang(8, 1, 0, replica=2), 2, rows, [Packing(cluster((free, 0)))])
    assert (part.workers if part else None) == given


def test_what_is_released_is_free_where_it_lay() -> None:
    packing = Packing(cluster((4, 0), (4, 0)))
    for name, workers in (("a", 4), ("b", 3)):
        packing.take(name, Gang(workers, 1, 0))
    later = packing.copy()
    later.release("a")
    whole = Gang(4, 1, 0, "strict_pack")
    assert (packing.fits(whole), later.fits(whole), len(packing), len(later)) == (False, True, 2, 1)
    assert later.shortage(Gang(2, 3, 0)) == "waiting for 6 processor cores, 5 free"


@pytest.mark.parametrize(
    ("values", "fault"),
    [
        ({"workers": 2, "min_workers": 3}, "must not be above workers"),
        ({"workers": 3, "sequence_parallel": 2}, r"workers \(3\) must be a multiple of sequence_parallel \(2\)"),
        ({"workers": 4, "min_workers": 1, "sequence_parallel": 2}, r"min_workers \(1\) must be a multiple"),
        ({"accelerator_type": "H100"}, "gpus_per_worker is 0"),
        ({"labels": {"zone": "in(a,b)"}}, "pattern"),
        ({"labels": {"": "a"}}, "pattern"),
        ({"labels": {f"l{n}": "a" for n in range(17)}}, "at most 16"),
        ({"labels": {"zone": "a" * 64}}, "at most 63"),
        ({"placement": "STRICT_PACK"}, "pack"),
        ({"accelerator_type": "a b", "gpus_per_worker": 1}, "pattern"),
    ],
)
def test_resources_that_cannot_be_are_refused(values: dict[str, Any], fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        ResourceSpec.model_validate(values)
