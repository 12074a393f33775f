"""How a run fails: one exception with a stable code, and the table that sorts everything else into it.

Knows no transport; `worker` turns a TrainingFailed into the Failed report, and the gateway decides by its
cause whether trying again could help. Free of torch, so that the driver can sort without loading it.
"""

from __future__ import annotations

import errno
import re
import traceback
from collections.abc import Callable
from typing import Literal

from trainers.storage import NoSuchObject, StorageDenied, StorageFull, StorageUnavailable

Cause = Literal["data", "config", "resource", "infrastructure", "service"]
"""Whose fault it is. Only infrastructure is worth another try with nothing changed."""
TRACEBACK_LINES = 40


HINTS = {
    "artifact_invalid": "Ask the service's operator for the run's log.",
    "base_model_damaged": "Have the base model pulled again.",
    "cache_not_ours": "Set TUNESMITH_CACHE_DIR on the nodes to a directory of the workers' user.",
    "checkpoint_unreadable": "Create the job again; if that fails too, ask the service's operator.",
    "dataset_unreadable": "Create the job again, so that its data is prepared anew.",
    "diverged": "Lower learning_rate or learning_rate_multiplier.",
    "gang_not_placed": "Look at who else is on the cluster; docs/scaling.md says what fits.",
    "gateway_unreachable": "The workers must reach TUNESMITH_REPORT_ADDRESS.",
    "kernels_missing": "Install CUDA's compiler and ninja on the nodes, or leave the zero_quantized_… settings out.",
    "nvme_unusable": "Set TUNESMITH_NVME_DIR on the nodes to a directory of the workers' user that lies on a disk.",
    "object_missing": "Nothing but the service may delete below its storage prefix.",
    "out_of_memory": "Lower max_length, set training.activation_checkpointing, or use workers with more memory.",
    "preempted": "Use nodes that stay longer, or checkpoints.every_seconds below the time that they stay.",
    "run_stuck": "Look at the node that is named: its network, its devices, its disk.",
    "sequence_not_shared": "Set resources.sequence_parallel to 1, or take another base model; docs/engines.md says what can be shared.",
    "storage_auth": "Check the credentials and the policy of the workers' nodes.",
    "storage_full": "Free space or raise the quota; the last complete checkpoint is kept.",
    "storage_unavailable": "Check the object store and the way to it from the workers' nodes.",
    "tls_unusable": "Check the file that TUNESMITH_TLS_… names on the node.",
    "trainer_error": "Report it to the service's operator with the run's log.",
    "worker_lost": "Look at the node that is named: was its process killed for memory, did it restart?",
}
"""What to do about each code; docs/errors.md says more."""


class TrainingFailed(Exception):
    """The run ends without a result. `message` says what happened; pickles with its place, for it crosses Ray."""

    rank: int | None = None
    """The worker whose fault it is, None when that is whoever raised it."""
    node: str = ""
    micro_batch: int | None = None
    """Rows of the forward pass that found no memory, where that is known."""

    def __init__(self, code: str, message: str, cause: Cause = "service") -> None:
        super().__init__(code, message, cause)
        self.code, self.message, self.cause = code, message, cause

    @property
    def hint(self) -> str:
        """What to do."""
        return HINTS.get(self.code, "")

    def at(self, rank: int, node: str) -> TrainingFailed:
        """This failure, of that rank; a place that it has already stays."""
        if self.rank is None:
            self.rank, self.node = rank, node
        return self

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"


class Stopped(Exception):
    """The gateway asked the run to leave. Not a failure."""


def classify(error: BaseException) -> TrainingFailed:
    """What to tell the gateway of this error; the innermost known cause decides."""
    chain = list(chain_of(error))
    for link in chain:
        if isinstance(link, TrainingFailed):
            return link
    for link in chain:
        for recognises, tell in _TABLE:
            if recognises(link):
                return tell(link)
    return TrainingFailed("trainer_error", f"the trainer failed: {_words(error)}. This is a fault of the service; its log has more.")


def traceback_tail(error: BaseException) -> str:
    """The last lines of the traceback."""
    return "\n".join("".join(traceback.format_exception(error)).splitlines()[-TRACEBACK_LINES:])


def chain_of(error: BaseException | None) -> list[BaseException]:
    """The error and what it came from, outermost first."""
    found: list[BaseException] = []
    while error is not None and error not in found:
        found.append(error)
        wrapped = next((inner for name in _WRAPPED if isinstance(inner := getattr(error, name, None), BaseException)), None)
        error = wrapped or error.__cause__ or error.__context__
    return found


def _words(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:300]}" if text else type(error).__name__


_WRAPPED = ("_base_exc", "controller_failure", "health_check_failure", "cause")
"""Where Ray's exceptions keep the one that they carry from another process."""
_NO_MEMORY = re.compile(r"can't allocate memory|low on memory|not enough memory|out of memory|bad_alloc|DefaultCPUAllocator", re.I)
_PEER_GONE = re.compile(r"gloo|nccl|connection closed by peer|connection reset by peer|Connection refused|broken pipe|process group", re.I)
_ADDRESS = re.compile(r"\bip: ([0-9a-fA-F.:]+)")
"""Where Ray says which node a dead actor was on."""
_DISK_FULL = {errno.ENOSPC, errno.EDQUOT}


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device or the machine had no memory left."""
    by_name = type(error).__name__ in ("OutOfMemoryError", "AcceleratorError") and bool(_NO_MEMORY.search(str(error)))
    return isinstance(error, MemoryError) or by_name or (isinstance(error, RuntimeError) and bool(_NO_MEMORY.search(str(error))))


def _out_of_memory(error: BaseException) -> TrainingFailed:
    message = f"a worker ran out of memory ({_words(error)})"
    return TrainingFailed("out_of_memory", message, "resource")


def _is_full(error: BaseException) -> bool:
    return (
        type(error).__name__ == "OutOfDiskError"
        or isinstance(error, StorageFull)
        or (isinstance(error, OSError) and error.errno in _DISK_FULL)
    )


def _full(error: BaseException) -> TrainingFailed:
    message = f"no space left ({_words(error)}); the last complete checkpoint is kept"
    return TrainingFailed("storage_full", message, "resource")


def _denied(error: BaseException) -> TrainingFailed:
    message = f"object storage refuses access ({_words(error)})"
    return TrainingFailed("storage_auth", message, "config")


def _missing(error: BaseException) -> TrainingFailed:
    return TrainingFailed("object_missing", f"an object that the run needs is gone ({_words(error)}). Was it deleted?", "service")


def _unavailable(error: BaseException) -> TrainingFailed:
    return TrainingFailed("storage_unavailable", f"object storage did not answer ({_words(error)})", "infrastructure")


def is_peer_gone(error: BaseException) -> bool:
    """Whether a collective broke off, which is mostly another rank's fault."""
    return type(error).__name__.startswith("Dist") or (isinstance(error, RuntimeError) and bool(_PEER_GONE.search(str(error))))


def _peer_gone(error: BaseException) -> TrainingFailed:
    return TrainingFailed("worker_lost", f"the connection between workers broke ({_words(error)})", "infrastructure")


def _is_lost(error: BaseException) -> bool:
    """Ray's own errors tell of processes and nodes that are gone, but for those that only carry another's."""
    names = {kind.__name__ for kind in type(error).__mro__}
    return bool(names & {"RayError", "RayTrainError"}) and not names & _CARRIERS


_CARRIERS = {
    *("RayTaskError", "UserCodeException", "UserExceptionWithTraceback", "WorkerGroupError", "ControllerError"),
    "WorkerHealthCheckFailedError",
}


def _lost(error: BaseException) -> TrainingFailed:
    failed = TrainingFailed("worker_lost", f"a worker died ({_words(error)})", "infrastructure")
    if found := _ADDRESS.search(str(error)):
        failed.node = found[1]
    return failed


def _of(kind: type[BaseException]) -> Callable[[BaseException], bool]:
    return lambda error: isinstance(error, kind)


_TABLE: tuple[tuple[Callable[[BaseException], bool], Callable[[BaseException], TrainingFailed]], ...] = (
    (is_out_of_memory, _out_of_memory),
    (_is_full, _full),
    (_of(StorageDenied), _denied),
    (_of(NoSuchObject), _missing),
    (_of(StorageUnavailable), _unavailable),
    (_of(ConnectionError), _unavailable),
    (_is_lost, _lost),
    (is_peer_gone, _peer_gone),
)
