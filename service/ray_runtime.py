"""`RayRuntime`: runs as Ray jobs, over the HTTP of the Ray Jobs and state APIs with a bearer token.

Needs no ray package. A run's submission id is its run id, so that submitting twice cannot start two. On the
head that the gateway started it also looks at processes, because Ray forgets what its head knew when it dies.
"""

from __future__ import annotations

import asyncio
import re
import shlex
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

import httpx
from pydantic import BaseModel, TypeAdapter, ValidationError

from service.processes import RUN_MARKER, StackProcesses, send
from service.runtime import Capacity, Node, Observation, RunState, RuntimeUnavailable
from trainers.spec import RunSpec

T = TypeVar("T")
ANSWER = timedelta(seconds=10)
LAUNCH = timedelta(seconds=60)
"""Ray answers a submission only once it has written it down; a busy head takes its time."""
KILL_AFTER = timedelta(seconds=5)
"""From the first call of `stop` to SIGKILL; a run that is to leave by itself is told so in the answer to its reports."""
OPEN_RAY = "answers without a token, so whoever reaches it runs code on it; turn its token mode on, or set TUNESMITH_ALLOW_OPEN_RAY=1"
GPU_TYPE = "accelerator_type:"
CONTROL = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
STATES = {
    "PENDING": RunState.PENDING,
    "RUNNING": RunState.RUNNING,
    "SUCCEEDED": RunState.SUCCEEDED,
    "FAILED": RunState.FAILED,
    "STOPPED": RunState.STOPPED,
}


@dataclass(frozen=True, slots=True)
class RayAddress:
    """A Ray dashboard, http://host:port, and the token it wants."""

    url: str
    token: str | None = field(repr=False)


class _Job(BaseModel):
    status: str
    submission_id: str | None = None
    job_id: str | None = None
    message: str | None = None
    metadata: dict[str, str] | None = None


class _Node(BaseModel):
    state: str
    node_id: str = ""
    resources_total: dict[str, float] = {}
    labels: dict[str, str] | None = None


class _Actor(BaseModel):
    state: str
    is_detached: bool | None = None


class _Logs(BaseModel):
    logs: str


WORKER_ENVIRONMENT = {"OMP_WAIT_POLICY": "PASSIVE"}
"""Threads that spin while they wait take the processor from Ray's own processes, and from the gateway where it is beside them."""


class RayRuntime:
    """Runs on one Ray cluster.

    `address` says where it is, or raises RuntimeUnavailable with the reason why it is nowhere just now.
    `processes` are given for a head on this machine only.
    """

    def __init__(
        self,
        address: Callable[[], RayAddress],
        *,
        processes: StackProcesses | None = None,
        entrypoint: Sequence[str] = ("python", "-m", "trainers.worker"),
        kill_after: timedelta = KILL_AFTER,
        require_token: bool = False,
    ) -> None:
        self._address, self._processes, self._entrypoint, self._kill_after = address, processes, entrypoint, kill_after
        # A proxy from the environment may stand before a cluster elsewhere, never before this machine.
        self._http = httpx.AsyncClient(timeout=httpx.Timeout(ANSWER.total_seconds(), connect=3), trust_env=processes is None)
        self._stopping: dict[str, float] = {}
        self._must_check = require_token

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def launch(self, spec: RunSpec) -> None:
        """See Runtime."""
        if self._must_check and not await self.guarded():
            raise RuntimeUnavailable(f"the Ray cluster {OPEN_RAY}")
        self._must_check = False
        cpus = str(spec.tunesmith.resources.cpus_per_worker or 1)
        command = [*self._entrypoint, "--storage-url", spec.storage_url, "--spec", f"{spec.run_prefix}/spec.json"]
        body = {
            "submission_id": spec.run_id,
            # Without `exec` a shell would stand between Ray and the driver, and signals would end there.
            "entrypoint": f"exec {shlex.join(command)}",
            "entrypoint_num_cpus": 0,
            "runtime_env": {"env_vars": {RUN_MARKER: spec.run_id, "OMP_NUM_THREADS": cpus, **WORKER_ENVIRONMENT}},
            "metadata": {"job": spec.job_id, "epoch": str(spec.epoch)},
        }
        answer = await self._ask("POST", "/api/jobs/", json=body, timeout=LAUNCH.total_seconds())
        if answer.is_success or await self._job(spec.run_id) is not None:
            return
        raise RuntimeUnavailable(f"Ray did not take the run {spec.run_id}: HTTP {answer.status_code}: {_last_line(answer.text)}")

    async def observe(self, run_id: str) -> Observation:
        """See Runtime."""
        job = await self._job(run_id)
        if job is None:
            message = "Ray does not know the run: its head was started anew"
            return Observation(RunState.UNKNOWN, bool(await self._left(run_id)), message)
        state = STATES.get(job.status, RunState.UNKNOWN)
        alive = state in (RunState.PENDING, RunState.RUNNING) or bool(await self._left(run_id))
        if not alive and self._processes is None and job.job_id:
            alive = await self._has_actors(job.job_id)
        if not alive:
            self._stopping.pop(run_id, None)
        return Observation(state, alive, (job.message or "").partition(", last available logs")[0].strip())

    async def stop(self, run_id: str) -> None:
        """See Runtime. Called again while anything is left, it ends in SIGKILL."""
        overdue = time.monotonic() - self._stopping.setdefault(run_id, time.monotonic()) >= self._kill_after.total_seconds()
        try:
            answer = await self._ask("POST", f"/api/jobs/{run_id}/stop")
            ray_stops_it = answer.is_success and TypeAdapter(dict[str, Any]).validate_json(answer.content).get("stopped") is True
        except (RuntimeUnavailable, ValidationError):
            if self._processes is None:
                raise
            ray_stops_it = False
        if overdue or not ray_stops_it:
            send(await self._left(run_id), signal.SIGKILL if overdue else signal.SIGTERM)

    async def log_tail(self, run_id: str, lines: int = 50) -> list[str]:
        """See Runtime; empty when Ray does not know the run."""
        answer = await self._ask("GET", f"/api/jobs/{run_id}/logs")
        if not answer.is_success:
            return []
        return CONTROL.sub("", _read(_Logs, answer).logs).splitlines()[-lines:]

    async def capacity(self) -> Capacity:
        """See Runtime. Counts the nodes that can hold a worker."""
        alive = [_node(node) for node in await self._state("nodes", _Node) if node.state == "ALIVE"]
        # In the same order at each look, however Ray lists them, so that gangs are packed in the same way.
        working = [node for _, node in sorted(alive, key=lambda named: named[0]) if node.cpus > 0 or node.gpus > 0]
        if not working:
            raise RuntimeUnavailable("no node of the Ray cluster is alive")
        return Capacity.of(working)

    async def live_runs(self) -> list[str]:
        """See Runtime."""
        answer = await self._ask("GET", "/api/jobs/")
        jobs = _read(list[_Job], answer) if answer.is_success else []
        ours = [job for job in jobs if job.status in ("PENDING", "RUNNING") and {"job", "epoch"} <= (job.metadata or {}).keys()]
        local = await asyncio.to_thread(self._processes.run_ids) if self._processes is not None else set[str]()
        return sorted({job.submission_id for job in ours if job.submission_id} | local)

    async def guarded(self) -> bool:
        """Whether the cluster refuses a request without a token, as one that runs anybody's code should."""
        address = self._address()
        try:
            answer = await self._http.get(f"{address.url}/api/version")
        except httpx.HTTPError as error:
            raise _away(address, error) from error
        return answer.status_code in (401, 403)

    async def version(self) -> str:
        """Ray's version, as the dashboard says it."""
        return str(_read(dict[str, Any], await self._ask("GET", "/api/version")).get("ray_version"))

    async def _job(self, run_id: str) -> _Job | None:
        answer = await self._ask("GET", f"/api/jobs/{run_id}")
        if answer.status_code == 404:
            return None
        return _read(_Job, answer)

    async def _left(self, run_id: str) -> list[Any]:
        return await asyncio.to_thread(self._processes.of_run, run_id) if self._processes is not None else []

    async def _has_actors(self, ray_job_id: str) -> bool:
        actors = await self._state("actors", _Actor, job_id=ray_job_id)
        # Detached actors are Ray Train's own: one for the whole cluster, one that ends a while later. They hold no device.
        return any(actor.state != "DEAD" and not actor.is_detached for actor in actors)

    async def _state(self, resource: str, kind: type[T], **equal: str) -> list[T]:
        params = [("limit", "10000"), ("detail", "true")]
        for key, value in equal.items():
            params += [("filter_keys", key), ("filter_predicates", "="), ("filter_values", value)]
        answer = await self._ask("GET", f"/api/v0/{resource}", params=params)
        try:
            rows: list[Any] = _read(dict[str, Any], answer)["data"]["result"]["result"]
            return [TypeAdapter(kind).validate_python(row) for row in rows]
        except (KeyError, TypeError, ValidationError) as error:
            raise RuntimeUnavailable(f"Ray's state API does not say which {resource} there are (HTTP {answer.status_code})") from error

    async def _ask(self, method: str, path: str, **options: Any) -> httpx.Response:
        address = self._address()
        headers = {"authorization": f"Bearer {address.token}"} if address.token else {}
        try:
            answer = await self._http.request(method, address.url + path, headers=headers, **options)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise _away(address, error) from error
        if answer.status_code in (401, 403):
            raise RuntimeUnavailable(f"the Ray cluster at {address.url} refuses the token: set TUNESMITH_RAY_TOKEN to that of the cluster")
        return answer


def _read(kind: type[T], answer: httpx.Response) -> T:
    if not answer.is_success:
        raise RuntimeUnavailable(f"Ray answers HTTP {answer.status_code} at {answer.url.path}: {_last_line(answer.text)}")
    try:
        return TypeAdapter(kind).validate_json(answer.content)
    except ValidationError as error:
        raise RuntimeUnavailable(f"Ray's answer at {answer.url.path} is not what its API promises") from error


def _node(told: _Node) -> tuple[str, Node]:
    """A node under its id."""
    has = told.resources_total
    node = Node(
        cpus=has.get("CPU", 0),
        gpus=has.get("GPU", 0),
        gpu_type=next((key.partition(GPU_TYPE)[2] for key in sorted(has) if key.startswith(GPU_TYPE)), None),
        labels=tuple(sorted((told.labels or {}).items())),
        # What was free when Ray started there: it gives one part of it to objects, the other to whoever asks for "memory".
        memory_bytes=int(has.get("memory", 0) + has.get("object_store_memory", 0)) or None,
    )
    return told.node_id, node


def _away(address: RayAddress, error: Exception) -> RuntimeUnavailable:
    return RuntimeUnavailable(f"the Ray cluster at {address.url} does not answer ({type(error).__name__})")


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip(" .\t")]
    return lines[-1][:300] if lines else "no message"
