"""Metrics keep Prometheus' conventions, parse, and end with their job."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from service.jobs import JobStatus
from service.metrics import MeteredStorage, Metrics
from trainers.storage import NoSuchObject, ObjectInfo, Storage, StorageUnavailable

UNITS = ("seconds", "bytes", "total", "info", "per_second")
UNITLESS = {
    "tunesmith_jobs",
    "tunesmith_queue_depth",
    "tunesmith_streams",
    "tunesmith_job_step",
    "tunesmith_job_loss",
    "tunesmith_job_learning_rate",
}


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


def test_names_and_help_keep_the_conventions(metrics: Metrics) -> None:
    metrics.observe_step("ftjob-1", 1, 2.0, 1e-4, 100.0, 50)
    families = [f for f in text_string_to_metric_families(metrics.exposition().decode()) if f.name.startswith("tunesmith")]
    assert len(families) >= 14
    for family in families:
        assert re.fullmatch("[a-z][a-z0-9_]*", family.name)
        assert family.documentation
        full = family.name + ("_total" if family.type == "counter" else "")
        assert full.endswith(UNITS) or family.name in UNITLESS, family.name


def test_jobs_by_status_and_queue_depth(metrics: Metrics) -> None:
    metrics.set_jobs_by_status({JobStatus.QUEUED: 3, JobStatus.RUNNING: 1})
    assert value(metrics, "tunesmith_jobs", status="queued") == 3
    assert value(metrics, "tunesmith_queue_depth") == 3
    metrics.set_jobs_by_status({JobStatus.RUNNING: 1})
    assert value(metrics, "tunesmith_jobs", status="queued") == 0
    assert value(metrics, "tunesmith_queue_depth") == 0


def test_series_of_a_job_end_with_it(metrics: Metrics) -> None:
    metrics.observe_step("ftjob-1", 5, 1.5, 2e-4, 900.0, 128)
    metrics.observe_step("ftjob-1", 6, math.nan, None, None, 72)
    assert value(metrics, "tunesmith_job_step", job="ftjob-1") == 6
    assert value(metrics, "tunesmith_job_learning_rate", job="ftjob-1") == 2e-4
    assert value(metrics, "tunesmith_tokens_total") == 200
    metrics.job_ended("ftjob-1")
    metrics.job_ended("ftjob-1")
    assert "ftjob-1" not in metrics.exposition().decode()
    assert value(metrics, "tunesmith_tokens_total") == 200


def test_runs_and_waits(metrics: Metrics) -> None:
    metrics.run_ended("lost")
    metrics.queue_waited(12.0)
    metrics.queue_waited(timedelta(minutes=2))
    assert value(metrics, "tunesmith_run_attempts_total", outcome="lost") == 1
    assert value(metrics, "tunesmith_queue_wait_seconds_sum") == 132
    assert value(metrics, "tunesmith_queue_wait_seconds_bucket", le="30.0") == 1


def test_unknown_methods_make_no_series(metrics: Metrics) -> None:
    metrics.answered("BREW", "unmatched", 405, 0.1)
    assert value(metrics, "tunesmith_http_requests_total", method="other", route="unmatched", status="405") == 1


class Shelf:
    """A Storage in memory that can be away."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.away = False

    def put(self, key: str, data: bytes, *, if_absent: bool = False) -> None:
        if self.away:
            raise StorageUnavailable("away")
        self.objects[key] = data

    def put_file(self, key: str, path: Path) -> None:
        self.put(key, path.read_bytes())

    def get(self, key: str) -> bytes:
        if key not in self.objects:
            raise NoSuchObject(key)
        return self.objects[key]

    def read(self, key: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        for byte in self.get(key)[start:end]:
            yield bytes([byte])

    def get_file(self, key: str, path: Path) -> None:
        path.write_bytes(self.get(key))

    def head(self, key: str) -> ObjectInfo | None:
        return ObjectInfo(key, len(self.objects[key]), 0.0) if key in self.objects else None

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        return (ObjectInfo(key, len(data), 0.0) for key, data in self.objects.items() if key.startswith(prefix))

    def delete(self, key: str) -> None:
        self.objects.pop(key, None)

    def local_path(self, key: str) -> Path | None:
        return None

    def presigned_url(self, key: str, *, expires: timedelta, filename: str) -> str | None:
        return f"https://store.example/{key}"


def test_metered_storage_passes_everything_on_and_counts(metrics: Metrics, tmp_path: Path) -> None:
    shelf = Shelf()
    storage: Storage = MeteredStorage(shelf, metrics)
    (tmp_path / "in").write_bytes(b"file")
    storage.put("a", b"abc")
    storage.put_file("b", tmp_path / "in")
    storage.get_file("b", tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == b"file"
    assert storage.get("a") == b"abc"
    assert list(storage.read("a", 1, 3)) == [b"b", b"c"]
    assert [info.key for info in storage.list("")] == ["a", "b"]
    head = storage.head("a")
    assert head is not None
    assert head.bytes == 3
    storage.delete("a")
    assert storage.head("a") is None
    assert storage.local_path("a") is None
    assert storage.presigned_url("k", expires=timedelta(1), filename="f") == "https://store.example/k"
    counts = {
        op: value(metrics, "tunesmith_object_store_operations_total", operation=op, outcome="ok")
        for op in ("put", "get", "head", "list", "delete")
    }
    assert counts == {"put": 2, "get": 3, "head": 2, "list": 1, "delete": 1}


def test_errors_of_the_store_are_counted_and_absence_is_none(metrics: Metrics) -> None:
    shelf = Shelf()
    storage = MeteredStorage(shelf, metrics)
    with pytest.raises(NoSuchObject):
        storage.get("nothing")
    with pytest.raises(NoSuchObject):
        list(storage.read("nothing"))
    shelf.away = True
    with pytest.raises(StorageUnavailable):
        storage.put("a", b"")
    assert value(metrics, "tunesmith_object_store_operations_total", operation="get", outcome="missing") == 2
    assert value(metrics, "tunesmith_object_store_operations_total", operation="put", outcome="error") == 1
    assert value(metrics, "tunesmith_object_store_errors_total", operation="put", error="StorageUnavailable") == 1
    assert value(metrics, "tunesmith_object_store_errors_total", operation="get", error="NoSuchObject") is None
