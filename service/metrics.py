"""Every Prometheus metric there is, under one registry; names end in their unit, counters in _total.

The scheduler and the application call the methods of `Metrics`; REST serves `exposition()`. Knows no
job rules: a job's series begin with its first step and end with `job_ended`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TypeVar

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.jobs import JobStatus
from trainers.storage import NoSuchObject, ObjectExists, ObjectInfo, Storage

T = TypeVar("T")
CONTENT_TYPE = CONTENT_TYPE_LATEST
STREAM = "tunesmith.stream"
"""In an ASGI scope: the answer has no end of its own, so its duration says nothing."""
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
REQUEST_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
WAIT_SECONDS = (1, 2, 5, 10, 30, 60, 300, 900, 1800, 3600, 14400, 43200, 86400)
STORE_SECONDS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10, 60, 300)


class Metrics:
    """The metrics of one process."""

    def __init__(self) -> None:
        disable_created_metrics()  # a second series for each counter and histogram that no query here uses
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        Info("tunesmith_build", "What is running.", registry=registry).info({"version": _version()})
        self._jobs = Gauge("tunesmith_jobs", "Jobs by phase.", ["status"], registry=registry)
        self._depth = Gauge("tunesmith_queue_depth", "Jobs that wait for a run.", registry=registry)
        self._wait = Histogram(
            "tunesmith_queue_wait_seconds", "From being queued to a claimed run.", buckets=WAIT_SECONDS, registry=registry
        )
        self._oldest = Gauge("tunesmith_queue_oldest_wait_seconds", "How long the job that waits longest has waited.", registry=registry)
        self._runs = Counter("tunesmith_run_attempts", "Runs that ended, by outcome.", ["outcome"], registry=registry)
        self._tokens = Counter("tunesmith_tokens", "Non-padding tokens trained on.", registry=registry)
        self._step = Gauge("tunesmith_job_step", "Optimizer step of a running job.", ["job"], registry=registry)
        self._loss = Gauge("tunesmith_job_loss", "Training loss of a running job.", ["job"], registry=registry)
        self._rate = Gauge("tunesmith_job_learning_rate", "Learning rate of a running job.", ["job"], registry=registry)
        self._speed = Gauge("tunesmith_job_tokens_per_second", "Non-padding tokens a second of a running job.", ["job"], registry=registry)
        self._streams = Gauge("tunesmith_streams", "Streams of events and logs that are open.", registry=registry)
        self._requests = Counter("tunesmith_http_requests", "Answers by route.", ["method", "route", "status"], registry=registry)
        self._latency = Histogram(
            "tunesmith_http_request_duration_seconds",
            "From the request's headers to the answer's last byte; to its first of a stream.",
            ["method", "route"],
            buckets=REQUEST_SECONDS,
            registry=registry,
        )
        self._calls = Counter("tunesmith_grpc_requests", "Calls by method and status.", ["method", "code"], registry=registry)
        self._call_latency = Histogram(
            "tunesmith_grpc_request_duration_seconds",
            "From the call's metadata to its answer; to its first message of a stream.",
            ["method"],
            buckets=REQUEST_SECONDS,
            registry=registry,
        )
        self._store_operations = Counter(
            "tunesmith_object_store_operations", "Calls of the object store.", ["operation", "outcome"], registry=registry
        )
        self._store_errors = Counter("tunesmith_object_store_errors", "Failed calls by cause.", ["operation", "error"], registry=registry)
        self._store_latency = Histogram(
            "tunesmith_object_store_operation_duration_seconds",
            "Duration of calls of the object store.",
            ["operation"],
            buckets=STORE_SECONDS,
            registry=registry,
        )
        self._webhooks = Counter(
            "tunesmith_webhook_attempts", "Attempts to deliver a webhook, by what became of the delivery.", ["status"], registry=registry
        )
        self._expired = Counter("tunesmith_expired", "Uploads in parts, and files, whose time was over.", ["kind"], registry=registry)
        self.expired(uploads=0, files=0)
        self.set_jobs_by_status({})

    def exposition(self) -> bytes:
        """All series in Prometheus' text format, of the type CONTENT_TYPE."""
        return generate_latest(self.registry)

    def set_jobs_by_status(self, counts: Mapping[JobStatus, int]) -> None:
        """How many jobs are in each phase; a phase that is not named has none."""
        for status in JobStatus:
            self._jobs.labels(status.value).set(counts.get(status, 0))
        self._depth.set(counts.get(JobStatus.QUEUED, 0))

    def queue_waited(self, wait: timedelta | float) -> None:
        """A job was claimed after waiting (seconds)."""
        self._wait.observe(wait.total_seconds() if isinstance(wait, timedelta) else wait)

    def set_oldest_wait(self, seconds: float) -> None:
        """The longest wait of any job that is in the queue now; 0 when it is empty."""
        self._oldest.set(seconds)

    def run_ended(self, outcome: str) -> None:
        """A run is over: succeeded, failed, lost, cancelled, …; a small fixed set of words."""
        self._runs.labels(outcome).inc()

    def observe_step(
        self, job_id: str, step: int, loss: float | None, lr: float | None, tokens_per_second: float | None, new_tokens: int
    ) -> None:
        """A running job made progress; `new_tokens` are those since the last call for it. None is "not measured"."""
        self._step.labels(job_id).set(step)
        for gauge, value in ((self._loss, loss), (self._rate, lr), (self._speed, tokens_per_second)):
            if value is not None:
                gauge.labels(job_id).set(value)
        self._tokens.inc(max(0, new_tokens))

    def expired(self, *, uploads: int, files: int) -> None:
        """So many more have expired."""
        self._expired.labels("upload").inc(uploads)
        self._expired.labels("file").inc(files)

    def job_ended(self, job_id: str) -> None:
        """Remove the job's series; without effect when there are none."""
        for gauge in (self._step, self._loss, self._rate, self._speed):
            gauge.remove_by_labels({"job": job_id})

    def webhook_attempted(self, status: str) -> None:
        """A webhook was sent: its delivery is now delivered, pending (to be tried again) or failed."""
        self._webhooks.labels(status).inc()

    def set_streams(self, count: int) -> None:
        """How many streams are open."""
        self._streams.set(count)

    def answered(self, method: str, route: str, status: int, seconds: float) -> None:
        """An HTTP request was answered. `route` is a template, never a path with ids."""
        method = method if method in METHODS else "other"
        self._requests.labels(method, route, str(status)).inc()
        self._latency.labels(method, route).observe(seconds)

    def rpc_answered(self, method: str, code: str, seconds: float) -> None:
        """A gRPC call ended with the status `code`. `method` is `package.Service/Method`, or "unmatched"."""
        self._calls.labels(method, code).inc()
        self._call_latency.labels(method).observe(seconds)

    @contextmanager
    def store_call(self, operation: str) -> Generator[Idle]:
        """Counts and times one call of the object store, less the time it was idle.

        That an object is not there, or is there already, is an answer and no error.
        """
        began, idle, outcome = time.perf_counter(), Idle(), "ok"
        try:
            yield idle
        except NoSuchObject:
            outcome = "missing"
            raise
        except ObjectExists:
            outcome = "exists"
            raise
        except Exception as exc:
            outcome = "error"
            self._store_errors.labels(operation, type(exc).__name__).inc()
            raise
        finally:
            self._store_operations.labels(operation, outcome).inc()
            self._store_latency.labels(operation).observe(time.perf_counter() - began - idle.seconds)


@dataclass(slots=True)
class Idle:
    """Time in which a call of the object store waited for its caller to take the next piece."""

    seconds: float = 0.0


def _version() -> str:
    try:
        return version("tunesmith")
    except PackageNotFoundError:
        return "unknown"


class HttpMetrics:
    """ASGI middleware that counts answers by the route that FastAPI matched."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.perf_counter(), 500

        async def noting_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if STREAM in scope:
                    answered()
            await send(message)

        def answered() -> None:
            route = getattr(scope.get("route"), "path", "unmatched")
            self._metrics.answered(scope["method"], route, status, time.perf_counter() - began)

        try:
            await self._app(scope, receive, noting_status)
        finally:
            if STREAM not in scope:
                answered()


class MeteredStorage:
    """A Storage that counts and times every call of the one behind it."""

    def __init__(self, storage: Storage, metrics: Metrics) -> None:
        self._storage, self._metrics = storage, metrics

    def put(self, key: str, data: bytes, *, if_absent: bool = False) -> None:
        self._call("put", lambda: self._storage.put(key, data, if_absent=if_absent))

    def put_file(self, key: str, path: Path) -> None:
        self._call("put", lambda: self._storage.put_file(key, path))

    def get(self, key: str) -> bytes:
        return self._call("get", lambda: self._storage.get(key))

    def read(self, key: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        return self._iterate("get", lambda: self._storage.read(key, start, end))

    def get_file(self, key: str, path: Path) -> None:
        self._call("get", lambda: self._storage.get_file(key, path))

    def head(self, key: str) -> ObjectInfo | None:
        return self._call("head", lambda: self._storage.head(key))

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        return self._iterate("list", lambda: self._storage.list(prefix))

    def delete(self, key: str) -> None:
        self._call("delete", lambda: self._storage.delete(key))

    def local_path(self, key: str) -> Path | None:
        return self._storage.local_path(key)

    def presigned_url(self, key: str, *, expires: timedelta, filename: str) -> str | None:
        return self._storage.presigned_url(key, expires=expires, filename=filename)

    def _call(self, operation: str, call: Callable[[], T]) -> T:
        with self._metrics.store_call(operation):
            return call()

    def _iterate(self, operation: str, call: Callable[[], Iterator[T]]) -> Iterator[T]:
        with self._metrics.store_call(operation) as idle:
            for piece in call():
                handed_over = time.perf_counter()
                yield piece
                idle.seconds += time.perf_counter() - handed_over
