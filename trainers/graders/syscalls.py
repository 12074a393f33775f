"""Forbids system calls to this process for good: a seccomp filter, written by hand for want of a library.

The second wall around a python grader's source, and the one that stands where a container forbids namespaces. Knows no grader.
Called by the child of python_grader.py, which has only the standard library.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
from collections.abc import Iterable

NUMBERS: dict[str, dict[str, int]] = {
    "x86_64": {
        "fork": 57, "vfork": 58, "clone": 56, "clone3": 435, "execve": 59, "execveat": 322,
        "socket": 41, "socketpair": 53, "io_uring_setup": 425, "io_uring_enter": 426, "io_uring_register": 427,
        "setsid": 112, "setpgid": 109, "prctl": 157, "ptrace": 101, "process_vm_readv": 310, "process_vm_writev": 311,
        "pidfd_open": 434, "pidfd_getfd": 438, "unshare": 272, "setns": 308, "chroot": 161, "pivot_root": 155,
        "mount": 165, "umount2": 166, "open_tree": 428, "move_mount": 429, "fsopen": 430, "fsconfig": 431, "fsmount": 432,
        "fspick": 433, "mount_setattr": 442, "bpf": 321, "perf_event_open": 298, "userfaultfd": 323,
        "keyctl": 250, "add_key": 248, "request_key": 249,
        "shmget": 29, "msgget": 68, "semget": 64, "mq_open": 240, "memfd_create": 319, "memfd_secret": 447,
    },
    "aarch64": {
        "clone": 220, "clone3": 435, "execve": 221, "execveat": 281,
        "socket": 198, "socketpair": 199, "io_uring_setup": 425, "io_uring_enter": 426, "io_uring_register": 427,
        "setsid": 157, "setpgid": 154, "prctl": 167, "ptrace": 117, "process_vm_readv": 270, "process_vm_writev": 271,
        "pidfd_open": 434, "pidfd_getfd": 438, "unshare": 97, "setns": 268, "chroot": 51, "pivot_root": 41,
        "mount": 40, "umount2": 39, "open_tree": 428, "move_mount": 429, "fsopen": 430, "fsconfig": 431, "fsmount": 432,
        "fspick": 433, "mount_setattr": 442, "bpf": 280, "perf_event_open": 241, "userfaultfd": 282,
        "keyctl": 219, "add_key": 217, "request_key": 218,
        "shmget": 194, "msgget": 186, "semget": 190, "mq_open": 180, "memfd_create": 279, "memfd_secret": 447,
    },
}  # fmt: skip
"""What source that is not ours has no use for: processes and threads, sockets, other processes, mounts, leaving its process
group (by which it is killed), and memory that no limit counts. From Linux' `unistd_64.h` and `asm-generic/unistd.h`."""
ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
"""AUDIT_ARCH_… of `linux/audit.h`."""
PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 22, 2
ALLOW, KILL, DENY = 0x7FFF0000, 0x80000000, 0x00050001
"""SECCOMP_RET_…; DENY answers EPERM."""
LOAD, JUMP_EQUAL, JUMP_ABOVE, RETURN = 0x20, 0x15, 0x35, 0x06
"""Opcodes of the classic packet filter: BPF_LD|W|ABS, BPF_JMP|JEQ|K, BPF_JMP|JGE|K, BPF_RET|K."""
NUMBER_AT, ARCHITECTURE_AT = 0, 4
"""Offsets in `struct seccomp_data`."""
OTHER_ABI = 0x40000000
"""Calls of x32 on x86_64 bear this bit; the same calls under other numbers."""


def deny_syscalls(names: Iterable[str] | None = None) -> None:
    """From now on `names`, by default all of NUMBERS, answer EPERM to this process and its children.

    Raises OSError where the kernel or the processor has no such filter. Needs PR_SET_NO_NEW_PRIVS to be set.
    """
    machine = platform.machine()
    if machine not in NUMBERS:
        raise OSError(f"no system call filter for {machine}")
    numbers = NUMBERS[machine]
    program = _program(ARCHITECTURES[machine], [numbers[name] for name in (numbers if names is None else names)])
    code = ctypes.create_string_buffer(program)
    described = struct.pack("HP", len(program) // 8, ctypes.addressof(code))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.create_string_buffer(described), 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"system call filter: {os.strerror(number)}")


def _program(architecture: int, denied: list[int]) -> bytes:
    """The filter as an array of `struct sock_filter`."""
    steps = [(LOAD, 0, 0, ARCHITECTURE_AT), (JUMP_EQUAL, 1, 0, architecture), (RETURN, 0, 0, KILL), (LOAD, 0, 0, NUMBER_AT)]
    tests = [(JUMP_ABOVE, OTHER_ABI), *((JUMP_EQUAL, number) for number in denied)]
    for at, (test, operand) in enumerate(tests):
        steps.append((test, len(tests) - at, 0, operand))
    steps += [(RETURN, 0, 0, ALLOW), (RETURN, 0, 0, DENY)]
    return b"".join(struct.pack("HBBI", *step) for step in steps)
