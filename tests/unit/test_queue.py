"""The queue's rules by example. One core goes with each GPU."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from service.gangs import Gang
from service.places import Places
from service.queue import Plan, Rules, Running, Waiting, decide
from service.quotas import Quotas
from service.runtime import Capacity, Node
from service.shares import Held, Shares

EIGHT = Capacity(cpus=8, gpus=8, nodes=1)
HOUR = 3600.0


def wants(name: str, gpus: int, **given: Any) -> Waiting:
    given = {"project_id": "a", "queued_at": 0.0} | given
    return Waiting(name, gang=Gang(gpus, 1, 1), **{"waiting_since": given["queued_at"]} | given)


def runs(name: str, gpus: int, **given: Any) -> Running:
    return Running(name, gang=Gang(gpus, 1, 1), **{"project_id": "b"} | given)


def look(
    waiting: list[Waiting],
    running: list[Running] | None = None,
    now: float = 0.0,
    quotas: dict[str, int] | None = None,
    reserved: str | None = None,
    **rules: Any,
) -> Plan:
    running = running or []
    held = [Held(gang.project_id, gang.gang, gang.started_at, None) for gang in running]
    places = Places(Quotas(), {project: Quotas(running_jobs=limit) for project, limit in (quotas or {}).items()}, running)
    return decide(waiting, running, EIGHT, places, Shares(held, EIGHT, now, HOUR), Rules(**rules), now, reserved)


def test_priority_comes_before_age() -> None:
    plan = look([wants("old", 8, queued_at=0), wants("urgent", 8, queued_at=5, priority=1)], now=9)
    assert list(plan.start) == ["urgent"]
    assert plan.reasons == {"old": "waiting for 8 GPUs, 0 free"}


def test_the_project_that_uses_least_goes_first_and_each_start_counts() -> None:
    waiting = [wants(f"a{n}", 2, project_id="a", queued_at=n) for n in range(4)] + [
        wants(f"b{n}", 2, project_id="b", queued_at=9 + n) for n in range(4)
    ]
    assert list(look(waiting, [runs("x", 2, project_id="a")], now=20).start) == ["b0", "b1", "a0"], "a has held two for a while, too"


def test_what_a_project_used_fades() -> None:
    def first(ended: float) -> str:
        shares = Shares([Held("a", Gang(8, 1, 1), ended - HOUR, ended), Held("b", Gang(1, 1, 1), 99 * HOUR, None)], EIGHT, 100 * HOUR, HOUR)
        return next(shares.by_turns([wants("a", 1, project_id="a"), wants("b", 1, project_id="b")])).id

    assert [first(100 * HOUR), first(90 * HOUR)] == ["b", "a"]


def test_a_gang_starts_whole_or_not_at_all() -> None:
    assert look([wants("gang", 6)], [runs("x", 4)]).start == {}
    assert list(look([wants("gang", 4)], [runs("x", 4)]).start) == ["gang"]


def test_a_gang_that_can_never_fit_holds_nobody_up() -> None:
    plan = look([wants("huge", 9), wants("small", 8, queued_at=1)])
    assert list(plan.start) == ["small"]
    assert plan.reasons["huge"] == "waiting for 9 GPUs, 8 in all: the cluster is too small for this job"


def test_quotas_and_the_services_limit_hold() -> None:
    waiting = [wants(f"{n}", 1, queued_at=n) for n in range(3)]
    plan = look(waiting, quotas={"a": 2})
    assert (list(plan.start), plan.reasons) == (["0", "1"], {"2": "the project runs 2 of 2 jobs"})
    plan = look(waiting, [runs("x", 1)], running_jobs=2)
    assert list(plan.start) == ["0"]
    assert set(plan.reasons.values()) == {"the service runs 2 of 2 jobs"}


def test_a_smaller_job_overtakes_only_where_it_ends_before_the_reserved_start() -> None:
    busy = [runs("x", 4, remaining=HOUR)]
    gang, short, long, open_ended = (
        wants("gang", 8),
        *(wants(name, 2, queued_at=1, duration=d) for name, d in [("short", HOUR - 1), ("long", HOUR + 1), ("open", None)]),
    )
    plan = look([gang, short, long, open_ended], busy)
    assert list(plan.start) == ["short"]
    assert plan.reserved == "gang"
    assert plan.reasons["long"] == plan.reasons["open"] == "waiting for a larger job ahead of it, whose start it would delay"


def test_what_the_reservation_leaves_over_is_given_away_once() -> None:
    waiting = [wants("gang", 6), wants("one", 2, queued_at=1), wants("two", 2, queued_at=2)]
    assert list(look(waiting, [runs("x", 4)]).start) == ["one"]
    assert look([waiting[0], waiting[2]], [runs("x", 4), runs("one", 2, started_at=1)]).start == {}


def test_promised_ends_do_not_count_against_a_job_that_has_waited_too_long() -> None:
    busy = [runs("x", 4, remaining=HOUR)]
    waiting = [wants("gang", 8, priority=-5), wants("short", 2, queued_at=99, duration=1, priority=5)]
    assert list(look(waiting, busy, now=100, patience=1000).start) == ["short"]
    plan = look(waiting, busy, now=100, patience=50)
    assert plan.start == {}
    assert plan.out_of_turn == "gang"


def test_preempted_is_the_lowest_then_the_latest_and_no_more_than_needed() -> None:
    busy = [runs("low-old", 2, priority=1, started_at=1), runs("low-new", 2, priority=1, started_at=2), runs("mid", 4, priority=2)]
    plan = look([wants("urgent", 2, priority=9)], busy)
    assert list(plan.preempt) == ["low-new"]
    assert plan.reasons["urgent"] == "waiting for 2 GPUs, 0 free: 1 job of lower priority makes room"
    assert list(look([wants("urgent", 4, priority=9)], busy).preempt) == ["low-new", "low-old"], "the lowest, be they two"
    assert list(look([wants("urgent", 6, priority=9)], busy).preempt) == ["low-new", "mid"], "the oldest of three is spared"


def test_nobody_is_preempted_in_vain() -> None:
    urgent = wants("urgent", 6, priority=5)
    for busy in (
        [runs("small", 4), runs("equal", 4, priority=5)],
        [runs("nearly-done", 8, remaining=60)],
        [runs("often", 8, preemptions=3)],
        [runs("leaving", 8, leaving=True)],
    ):
        assert look([urgent], busy).preempt == {}
    assert look([wants("low", 8)], [runs("high", 8, priority=1)]).preempt == {}


def test_an_urgent_job_preempts_beside_what_is_reserved_for_one_that_waited_too_long() -> None:
    waiting = [wants("late", 4, priority=-1, queued_at=0), wants("urgent", 4, priority=9, queued_at=99)]
    busy = [runs("old", 4, started_at=1), runs("new", 4, started_at=2)]
    plan = look(waiting, busy, now=100, patience=50)
    assert (plan.out_of_turn, plan.preempt, plan.start) == ("late", {"new": "urgent"}, {}), "the room of the oldest is the late one's"
    whole = [wants("late", 8, priority=-1, queued_at=0), waiting[1]]
    assert look(whole, busy, now=100, patience=50).preempt == {}, "nothing is left over for it"
    assert look(whole, busy, now=100).preempt == {"new": "urgent"}


def test_one_job_at_a_time_is_out_of_turn() -> None:
    waiting = [wants(name, 2, priority=priority, queued_at=at) for name, priority, at in [("a", 0, 1), ("b", 0, 0), ("c", 5, 60)]]
    plan = look(waiting, [runs("x", 4)], now=100, patience=50)
    assert (plan.out_of_turn, list(plan.start)) == ("b", ["b", "c"]), "the longest wait; then priority again"
    plan = look(waiting, [runs("x", 6, out_of_turn=True)], now=100, patience=50)
    assert (plan.out_of_turn, list(plan.start)) == (None, ["c"])
    assert look([wants("urgent", 8, priority=9)], [runs("x", 8, out_of_turn=True)]).preempt == {}, "it has waited long enough"


def test_a_reservation_outlasts_the_turn_of_another_project() -> None:
    waiting = [wants("gang", 6, project_id="a", queued_at=5), wants("other", 4, project_id="c", queued_at=9)]
    busy = [runs("x", 4, project_id="a")]
    assert list(look(waiting, busy, now=10).start) == ["other"], "its project uses least"
    plan = look(waiting, busy, now=10, reserved="gang")
    assert (plan.reserved, plan.start) == ("gang", {})
    urgent = wants("urgent", 4, priority=1, project_id="a", queued_at=9)
    assert list(look([*waiting, urgent], busy, now=10, reserved="gang").start) == ["urgent"], "among its priority only"


def test_an_elastic_gang_takes_what_the_reservation_leaves_over() -> None:
    elastic = wants("elastic", 4, least=1, rows=8, queued_at=1)
    assert look([elastic], [runs("x", 5)]).start == {"elastic": Gang(3, 1, 1)}
    assert look([elastic], [runs("x", 8)]).reserved == "elastic"
    assert look([wants("gang", 7), elastic], [runs("x", 4)]).start == {"elastic": Gang(1, 1, 1)}, "4 are free now, 1 then"


def test_a_reservation_knows_on_which_nodes_it_lies() -> None:
    """What is free on a node that the gang cannot use is for others."""
    nodes = (Node(cpus=4, gpus=4, gpu_type="H100"), Node(cpus=4, gpus=0))
    mixed = Capacity.of(nodes)
    gang = Waiting("gang", "a", Gang(4, 1, 1, accelerator_type="H100"))
    others = [Waiting("gpu", "a", Gang(1, 1, 1), queued_at=1), Waiting("cpu", "a", Gang(4, 1, 0), queued_at=2)]
    busy = [runs("x", 2)]
    plan = decide([gang, *others], busy, mixed, Places(Quotas(), {}, busy), Shares([], mixed, 9, HOUR), Rules(), 9)
    assert (list(plan.start), plan.reserved) == (["cpu"], "gang")


def test_who_waits_for_devices_keeps_its_places_of_the_limits() -> None:
    waiting = [wants("gang", 8), wants("small", 1, queued_at=1)]
    short = [waiting[0], wants("small", 1, queued_at=1, duration=1)]
    assert list(look(short, [runs("x", 4, remaining=HOUR)]).start) == ["small"]
    assert look(short, [runs("x", 4, remaining=HOUR, project_id="a")], quotas={"a": 2}).start == {}


def test_a_shrunken_run_grows_where_there_is_room_and_nobody_waits_for_it() -> None:
    shrunken = runs("x", 2, whole=Gang(4, 1, 1), rows=8)
    assert look([], [shrunken], now=700).grow == "x"
    for busy, now in (
        ([shrunken], 500.0),  # it has not lasted long enough to be worth a new start
        ([shrunken, runs("y", 6)], 700.0),
        ([replace(shrunken, remaining=60)], 700.0),
        ([replace(shrunken, leaving=True)], 700.0),
        ([runs("x", 4, whole=Gang(8, 1, 1), rows=8), runs("y", 1)], 700.0),  # 7 workers have two rows at most each, as 4 have
        ([runs("x", 4)], 700.0),
    ):
        assert look([], busy, now=now).grow is None
    assert look([wants("gang", 7)], [shrunken], now=700).grow is None
