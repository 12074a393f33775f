"""Every way a run is known to end is sorted by whose fault it is: only infrastructure is worth another try."""

from __future__ import annotations

import errno
import pickle

import pytest
from ray.exceptions import ActorDiedError, NodeDiedError, OutOfDiskError, OutOfMemoryError, WorkerCrashedError
from ray.train import WorkerGroupError
from ray.train.v2._internal.exceptions import UserExceptionWithTraceback, WorkerHealthCheckFailedError, WorkerHealthCheckTimeoutError

from trainers.failure import TrainingFailed, classify
from trainers.storage import NoSuchObject, StorageDenied, StorageFull, StorageUnavailable
from trainers.worker import _telling

KILLED_FOR_MEMORY = OutOfMemoryError("1 worker(s) were killed due to the node running low on memory. The node had …")
"""As Ray's memory monitor says it."""
DIVERGED = TrainingFailed("diverged", "the loss is NaN", "config")


def carried(error: Exception) -> Exception:
    """As it arrives from another process."""
    return pickle.loads(pickle.dumps(UserExceptionWithTraceback(error, traceback_str="…")))


def caused(outer: Exception, inner: Exception) -> Exception:
    outer.__cause__ = inner
    return outer


@pytest.mark.parametrize(
    ("error", "code", "cause"),
    [
        (MemoryError(), "out_of_memory", "resource"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried …"), "out_of_memory", "resource"),
        (KILLED_FOR_MEMORY, "out_of_memory", "resource"),
        (StorageFull("the bucket is full"), "storage_full", "resource"),
        (OSError(errno.ENOSPC, "No space left on device"), "storage_full", "resource"),
        (OutOfDiskError("local disk is full"), "storage_full", "resource"),
        (StorageDenied("403"), "storage_auth", "config"),
        (NoSuchObject("base/m"), "object_missing", "service"),
        (StorageUnavailable("timed out"), "storage_unavailable", "infrastructure"),
        (ActorDiedError(), "worker_lost", "infrastructure"),
        (WorkerCrashedError(), "worker_lost", "infrastructure"),
        (NodeDiedError("gone"), "worker_lost", "infrastructure"),
        (WorkerHealthCheckTimeoutError("silent"), "worker_lost", "infrastructure"),
        (WorkerHealthCheckFailedError("a worker can't be polled", ActorDiedError()), "worker_lost", "infrastructure"),
        (WorkerHealthCheckFailedError("a worker can't be polled", KILLED_FOR_MEMORY), "out_of_memory", "resource"),
        (RuntimeError("[gloo/transport/tcp/pair.cc] Connection closed by peer"), "worker_lost", "infrastructure"),
        (carried(DIVERGED), "diverged", "config"),
        (carried(MemoryError()), "out_of_memory", "resource"),
        (caused(RuntimeError("while saving"), StorageUnavailable("away")), "storage_unavailable", "infrastructure"),
        (ZeroDivisionError("a fault of ours"), "trainer_error", "service"),
    ],
)
def test_what_a_run_ends_with(error: BaseException, code: str, cause: str) -> None:
    failed = classify(error)
    assert (failed.code, failed.cause) == (code, cause)
    assert failed.message


def test_the_rank_whose_fault_it_was_is_told_and_not_its_echo() -> None:
    lost = RuntimeError("gloo: Connection closed by peer")
    error = WorkerGroupError("two ranks failed", {0: carried(lost), 1: carried(MemoryError())})
    rank, failed = _telling(error.worker_failures)
    assert (rank, failed.code) == (1, "out_of_memory")


def test_a_failure_crosses_processes() -> None:
    again = pickle.loads(pickle.dumps(DIVERGED))
    assert (again.code, again.message, again.cause) == ("diverged", "the loss is NaN", "config")
