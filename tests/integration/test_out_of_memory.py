"""A run that found no memory is followed by one with half its micro-batch: what clients see of it, on a whole gateway."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from protos.tunesmith.v1 import runs_pb2 as pb
from service.runtime import RunState
from tests.fake_run import FakeRun, in_phase
from tests.followers import gateway_of_many_runs, launched
from tests.gateway import Gateway


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with gateway_of_many_runs(tmp_path_factory.mktemp("memory")) as running:
        yield running


def started(run: FakeRun, micro_batch: int, resumed_step: int = 0) -> None:
    run.tell(started=pb.Started(world_size=1, total_steps=run.spec.resolved.steps, resumed_step=resumed_step, micro_batch=micro_batch))


def starve(run: FakeRun, **known: Any) -> None:
    """The run's last word: no memory."""
    run.tell(failed=pb.Failed(code="out_of_memory", message="CUDA out of memory", cause="resource", rank=1, **known))
    run.leave(RunState.FAILED)


def following(run: FakeRun) -> FakeRun:
    return FakeRun.of(run.gateway, run.job_id, run.spec.epoch + 1)


def seen(run: FakeRun) -> dict[str, Any]:
    """The job on the wire."""
    with run.gateway.http() as http:
        return http.get(run.url).json()


def warnings(run: FakeRun) -> list[str]:
    """What its history warns of, first to last."""
    told = run.gateway.client(strict=False).fine_tuning.jobs.list_events(run.job_id, limit=100)
    return [event.message for event in told if event.level == "warn"][::-1]


def test_a_job_that_runs_out_of_memory_goes_on_in_halves_from_its_checkpoint(gateway: Gateway) -> None:
    first = launched(gateway)
    batch = first.spec.resolved.batch_size
    assert first.spec.micro_batch is None
    started(first, 4)
    first.steps(1, 3)
    first.checkpoint(2)
    starve(first)
    second = following(first)
    assert (second.spec.micro_batch, second.spec.resolved) == (2, first.spec.resolved)
    started(second, 2, resumed_step=2)
    second.step(3)
    second.finish()
    assert warnings(second) == [
        f"Out of memory after step 3: micro-batch halved from 4 to 2, the global batch stays {batch}. The job will go on from step 2."
    ]
    attempts = seen(second)["tunesmith"]["attempts"]
    assert [(one["outcome"], one["code"], one["cause"]) for one in attempts] == [
        ("failed", "out_of_memory", "resource"),
        ("succeeded", None, None),
    ]
    assert (attempts[0]["rank"], attempts[0]["last_good_step"], attempts[1]["resumed_step"]) == (1, 2, 2)


def test_halving_ends_with_single_rows_and_uses_up_no_retries(gateway: Gateway) -> None:
    """More often than any budget of retries allows, and whatever the runs say of their micro-batch, which can only fall."""
    run, given = launched(gateway), list[int | None]()
    share = run.spec.rows_per_replica
    assert share > 4, "more runs than TUNESMITH_QUARANTINE_AFTER allows"
    while True:
        given.append(run.spec.micro_batch)
        started(run, 10 * share)  # as one would that does not do what it is told
        starve(run)
        if run.spec.micro_batch == 1:
            break
        run = following(run)
    run.until_is("failed")
    assert given == [None, *(share >> halvings for halvings in range(1, share.bit_length()))]
    error = seen(run)
    assert (error["error"]["code"], error["tunesmith"]["error"]["cause"]) == ("out_of_memory", "resource")
    assert len(warnings(run)) == len(given) - 1


def test_what_a_run_halves_itself_counts(gateway: Gateway) -> None:
    first = launched(gateway)
    started(first, 4)
    first.tell(notice=pb.Notice(level="warn", message="Out of memory at step 1: …", micro_batch=2))
    first.tell(notice=pb.Notice(level="warn", message="of something else"))
    starve(first)
    second = following(first)
    assert second.spec.micro_batch == 1
    started(second, 1)
    second.finish()


def test_a_run_that_tried_single_rows_is_not_tried_again(gateway: Gateway) -> None:
    """In a short batch: the micro-batch was above one row, the rows of the step were not."""
    run = launched(gateway)
    started(run, 4)
    starve(run, micro_batch=1)
    run.until_is("failed")
    assert seen(run)["tunesmith"]["epoch"] == 1


@pytest.mark.parametrize("at", ["loading", "proving"])
def test_memory_that_rows_have_no_part_in_is_not_tried_again(gateway: Gateway, at: str) -> None:
    run = launched(gateway)
    if at == "proving":
        started(run, 4)
        run.steps(1, run.spec.resolved.steps)
    starve(run)
    run.until_is("failed")
    assert seen(run)["tunesmith"]["epoch"] == 1


def test_a_job_that_is_paused_while_memory_runs_out_takes_less_once_it_is_resumed(gateway: Gateway) -> None:
    first, jobs = launched(gateway), gateway.client(strict=False).fine_tuning.jobs
    started(first, 4)
    jobs.pause(first.job_id)
    starve(first)
    assert in_phase(jobs._client, first.job_id, "paused")["tunesmith"]["attempts"][0]["code"] == "out_of_memory"
    jobs.resume(first.job_id)
    second = following(first)
    assert second.spec.micro_batch == 2
    started(second, 2)
    second.finish()
