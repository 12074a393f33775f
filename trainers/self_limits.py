"""How a process gives up rights before it touches what comes from outside. Its parent's half is limited_process.py.

Knows no work. Called first thing by the children of service/data_process.py and of graders/python_grader.py; needs nothing
but the standard library, because the latter starts without site-packages.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys
from typing import Any

PR_SET_PDEATHSIG, PR_SET_NO_NEW_PRIVS = 1, 38


def die_with(parent: int) -> None:
    """Die when `parent` does, at once if it is gone already; gain no rights from any file that is executed later."""
    die_with_parent()
    if sys.platform == "linux" and os.getppid() != parent:
        os._exit(1)


def die_with_parent() -> None:
    """The same for whatever process is the parent now; its id has no meaning across process namespaces."""
    if sys.platform != "linux":
        return
    prctl: Any = ctypes.CDLL(None).prctl
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def limit_self(*, memory_bytes: int, cpu_seconds: int, file_bytes: int) -> None:
    """Bound the address space, the processor time and the size of any one file written; leave no core, yield to others."""
    os.nice(5)  # leases are renewed and runs report meanwhile, perhaps on the same cores
    limit(resource.RLIMIT_AS, memory_bytes)
    limit(resource.RLIMIT_FSIZE, file_bytes)
    limit(resource.RLIMIT_CORE, 0)
    # At the hard limit of processor time the kernel kills without a reason; the soft one says SIGXCPU.
    limit(resource.RLIMIT_CPU, cpu_seconds, soft=max(0, cpu_seconds - 2))


def limit(kind: int, hard: int, soft: int | None = None) -> None:
    """Set one limit, or leave it where it is lower already."""
    ceiling = resource.getrlimit(kind)[1]
    hard = hard if ceiling == resource.RLIM_INFINITY else min(hard, ceiling)
    resource.setrlimit(kind, (hard if soft is None else min(soft, hard), hard))
