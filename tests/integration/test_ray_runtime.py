"""RayRuntime and the embedded head on a real Ray, with a stand-in for the trainer."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import httpx
import psutil
import pytest
import pytest_asyncio

from service.processes import MARKER, StackProcesses, send
from service.ray_command import ray_dir
from service.ray_head import EmbeddedRay, known_head
from service.ray_runtime import RayAddress, RayRuntime
from service.runtime import Observation, RunState, RuntimeUnavailable
from tests.run_specs import run_spec

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(600)]
SCRIPT = """
import os, signal, subprocess, sys, time
behaviour = sys.argv[2].rpartition("/")[2]
print("doing", behaviour, "as", os.environ["TUNESMITH_RUN_ID"], "with", os.environ["OMP_NUM_THREADS"], flush=True)
if behaviour == "fails":
    sys.exit("the last words")
if behaviour == "deaf":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    subprocess.Popen(["sleep", "600"], start_new_session=True)
if behaviour == "actors":
    import ray
    ray.init()
    @ray.remote(num_cpus=1)
    class Worker:
        def pid(self):
            return os.getpid()
    worker = Worker.remote()
    print("worker", ray.get(worker.pid.remote()), flush=True)
if behaviour != "ends":
    time.sleep(600)
"""


@asynccontextmanager
async def supervised(head: EmbeddedRay) -> AsyncIterator[asyncio.Task[None]]:
    """The head with its supervision, which is left without a word at the end, as by a gateway that was killed."""
    task = asyncio.create_task(head.run())
    try:
        yield task
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # Longer than the path of a socket may be.
    directory = tmp_path_factory.mktemp("ray") / ("long-" * 20)
    directory.mkdir()
    (directory / "stand_in.py").write_text(SCRIPT)
    return directory


def embedded(data_dir: Path) -> EmbeddedRay:
    return EmbeddedRay(data_dir, entrypoint=(sys.executable, str(data_dir / "stand_in.py")))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def head(data_dir: Path) -> AsyncIterator[EmbeddedRay]:
    os.environ["TUNESMITH_DATABASE_URL"] = "postgresql://user:secret@db/tunesmith"
    head = embedded(data_dir)
    async with supervised(head):
        with pytest.raises(RuntimeUnavailable, match="starting"):
            await head.runtime.capacity()
        await ready(head)
        yield head
    await head.stop()
    del os.environ["TUNESMITH_DATABASE_URL"]


async def ready(head: EmbeddedRay) -> None:
    async def answers() -> bool:
        with suppress(RuntimeUnavailable):
            return (await head.runtime.capacity()).nodes == 1
        return False

    await until("a Ray head that answers", answers, 240)


async def until(what: str, holds: Callable[[], Awaitable[object]], seconds: float = 120) -> None:
    for _ in range(int(seconds / 0.2)):
        if await holds():
            return
        await asyncio.sleep(0.2)
    raise AssertionError(f"{what} did not come within {seconds} s")


async def is_so(runtime: RayRuntime, run_id: str, state: RunState, *, alive: bool) -> Observation:
    async def so() -> bool:
        seen = await runtime.observe(run_id)
        return seen.state is state and seen.alive is alive

    await until(f"{run_id} {state}, alive={alive}", so)
    return await runtime.observe(run_id)


async def gone(runtime: RayRuntime, run_id: str, *, stopping: bool = False) -> None:
    async def is_gone() -> bool:
        if stopping:
            await runtime.stop(run_id)
        return not (await runtime.observe(run_id)).alive

    await until(f"the end of {run_id}", is_gone)


async def prints(runtime: RayRuntime, run_id: str, text: str) -> None:
    async def printed() -> bool:
        return any(text in line for line in await runtime.log_tail(run_id))

    await until(f"'{text}' of {run_id}", printed)


async def test_the_head_is_for_this_machine_and_for_who_has_the_token(head: EmbeddedRay, data_dir: Path) -> None:
    address = known_head(data_dir)
    assert address is not None
    assert address.token
    processes = StackProcesses.of(data_dir)
    async with httpx.AsyncClient(base_url=address.url, trust_env=False) as http:
        assert (await http.get("/api/jobs/")).status_code == 401
        assert (await http.get("/api/jobs/", headers={"authorization": f"Bearer {address.token}"})).status_code == 200
    listening = {c.laddr.ip for p in processes.head() for c in p.net_connections(kind="inet") if c.status == psutil.CONN_LISTEN}
    assert listening
    assert listening <= {"127.0.0.1", "::ffff:127.0.0.1"}
    assert processes.beyond_loopback() == []
    assert ray_dir(data_dir).stat().st_mode & 0o777 == 0o700
    assert (data_dir / "ray-token").stat().st_mode & 0o777 == 0o600
    for process in processes.head():
        assert address.token not in " ".join(process.cmdline())
        assert "TUNESMITH_DATABASE_URL" not in process.environ()


async def test_the_whole_machine_is_the_capacity(head: EmbeddedRay) -> None:
    capacity = await head.runtime.capacity()
    assert (capacity.cpus, capacity.nodes) == (float(len(os.sched_getaffinity(0))), 1)


async def test_launching_twice_starts_one_run_and_stopping_ends_it(head: EmbeddedRay, data_dir: Path) -> None:
    spec = run_spec("ftjob-twice", storage_url="file:///sleeps", cpus=3)
    await asyncio.gather(head.runtime.launch(spec), head.runtime.launch(spec))
    await head.runtime.launch(spec)
    await is_so(head.runtime, "ftjob-twice-1", RunState.RUNNING, alive=True)
    await prints(head.runtime, "ftjob-twice-1", "doing sleeps as ftjob-twice-1 with 3")
    assert "ftjob-twice-1" in await head.runtime.live_runs()
    drivers = [p for p in StackProcesses.of(data_dir).of_run("ftjob-twice-1") if str(data_dir / "stand_in.py") in p.cmdline()]
    assert len(drivers) == 1
    await head.runtime.stop("ftjob-twice-1")
    await is_so(head.runtime, "ftjob-twice-1", RunState.STOPPED, alive=False)
    assert StackProcesses.of(data_dir).of_run("ftjob-twice-1") == []
    assert "ftjob-twice-1" not in await head.runtime.live_runs()


async def test_runs_that_end_by_themselves(head: EmbeddedRay) -> None:
    await head.runtime.launch(run_spec("ftjob-good", storage_url="file:///ends"))
    await head.runtime.launch(run_spec("ftjob-bad", 3, storage_url="file:///fails"))
    await is_so(head.runtime, "ftjob-good-1", RunState.SUCCEEDED, alive=False)
    failed = await is_so(head.runtime, "ftjob-bad-3", RunState.FAILED, alive=False)
    assert "exit code 1" in failed.message
    assert "\n" not in failed.message
    assert (await head.runtime.log_tail("ftjob-bad-3", 1)) == ["the last words"]


async def test_a_run_that_nobody_has_launched(head: EmbeddedRay) -> None:
    seen = await head.runtime.observe("ftjob-never-1")
    assert (seen.state, seen.alive) == (RunState.UNKNOWN, False)
    assert await head.runtime.log_tail("ftjob-never-1") == []
    await head.runtime.stop("ftjob-never-1")


async def test_a_run_that_will_not_leave_is_killed_with_all_it_started(head: EmbeddedRay, data_dir: Path) -> None:
    await head.runtime.launch(run_spec("ftjob-deaf", storage_url="file:///deaf"))
    await prints(head.runtime, "ftjob-deaf-1", "doing deaf")
    processes = StackProcesses.of(data_dir)

    async def has_child() -> bool:
        return any(p.cmdline()[:1] == ["sleep"] and p.cmdline()[1:] == ["600"] for p in processes.of_run("ftjob-deaf-1"))

    await until("the child in its own session", has_child)
    await gone(head.runtime, "ftjob-deaf-1", stopping=True)
    assert processes.of_run("ftjob-deaf-1") == []


async def test_a_run_whose_processes_were_killed(head: EmbeddedRay, data_dir: Path) -> None:
    await head.runtime.launch(run_spec("ftjob-killed", storage_url="file:///sleeps"))
    await prints(head.runtime, "ftjob-killed-1", "doing sleeps")
    send(StackProcesses.of(data_dir).of_run("ftjob-killed-1"), signal.SIGKILL)
    await is_so(head.runtime, "ftjob-killed-1", RunState.FAILED, alive=False)


async def test_a_cluster_elsewhere_is_judged_by_its_own_word(head: EmbeddedRay, data_dir: Path) -> None:
    address = known_head(data_dir)
    assert address is not None
    elsewhere = RayRuntime(lambda: address, entrypoint=(sys.executable, str(data_dir / "stand_in.py")), require_token=True)
    await elsewhere.launch(run_spec("ftjob-actors", storage_url="file:///actors"))
    await prints(elsewhere, "ftjob-actors-1", "worker ")
    assert (await elsewhere.observe("ftjob-actors-1")).alive
    assert "ftjob-actors-1" in await elsewhere.live_runs()
    (job,) = [job for job in [await elsewhere._job("ftjob-actors-1")] if job is not None]
    assert await elsewhere._has_actors(str(job.job_id))
    await elsewhere.stop("ftjob-actors-1")
    await gone(elsewhere, "ftjob-actors-1")
    assert not await elsewhere._has_actors(str(job.job_id))
    await gone(head.runtime, "ftjob-actors-1")
    await elsewhere.close()


async def test_a_wrong_token_is_named(head: EmbeddedRay, data_dir: Path) -> None:
    address = known_head(data_dir)
    assert address is not None
    for token in ("wrong", None):
        runtime = RayRuntime(lambda token=token: RayAddress(address.url, token))
        with pytest.raises(RuntimeUnavailable, match="TUNESMITH_RAY_TOKEN"):
            await runtime.capacity()
        await runtime.close()


async def test_the_head_and_its_run_outlive_a_gateway_and_are_adopted(data_dir: Path, head: EmbeddedRay) -> None:
    await head.runtime.launch(run_spec("ftjob-kept", storage_url="file:///sleeps"))
    await is_so(head.runtime, "ftjob-kept-1", RunState.RUNNING, alive=True)
    before = known_head(data_dir)
    next_gateways = embedded(data_dir)
    async with supervised(next_gateways):
        await ready(next_gateways)
        assert known_head(data_dir) == before
        assert (await next_gateways.runtime.observe("ftjob-kept-1")).alive
        await gone(next_gateways.runtime, "ftjob-kept-1", stopping=True)
    await next_gateways.leave()


async def test_a_head_that_dies_is_started_anew_and_nothing_of_its_runs_is_left(head: EmbeddedRay, data_dir: Path) -> None:
    processes = StackProcesses.of(data_dir)
    await head.runtime.launch(run_spec("ftjob-orphan", storage_url="file:///deaf"))
    await prints(head.runtime, "ftjob-orphan-1", "doing deaf")
    old = {process.pid for process in processes.all()}
    send([process for process in processes.head() if "gcs_server" in "".join(process.cmdline()[:1])], signal.SIGKILL)

    async def another() -> bool:
        return not old & {process.pid for process in processes.all()}

    await until("the end of all that was", another)
    await ready(head)
    seen = await head.runtime.observe("ftjob-orphan-1")
    assert (seen.state, seen.alive) == (RunState.UNKNOWN, False)
    assert processes.run_ids() == set()


async def test_a_cluster_that_is_away_is_said_to_be_within_bounded_time() -> None:
    runtime = RayRuntime(lambda: RayAddress("http://127.0.0.1:9", "t"))
    calls = (runtime.capacity(), runtime.observe("j-1"), runtime.launch(run_spec()), runtime.stop("j-1"), runtime.log_tail("j-1"))
    for call in calls:
        with pytest.raises(RuntimeUnavailable, match=r"http://127\.0\.0\.1:9 does not answer"):
            await asyncio.wait_for(call, 30)
    await runtime.close()


async def test_stopping_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "stand_in.py").write_text(SCRIPT)
    head = embedded(tmp_path)
    async with supervised(head):
        await ready(head)
        await head.runtime.launch(run_spec("ftjob-last", storage_url="file:///sleeps"))
        await prints(head.runtime, "ftjob-last-1", "doing sleeps")
    await head.stop()
    assert StackProcesses.of(tmp_path).all() == []
    assert not ray_dir(tmp_path).exists()
    left = [p.pid for p in psutil.process_iter() if str(tmp_path.resolve()) in _environment(p).get(MARKER, "")]
    assert left == []


def _environment(process: psutil.Process) -> dict[str, str]:
    try:
        return process.environ() if process.status() != psutil.STATUS_ZOMBIE else {}
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return {}
