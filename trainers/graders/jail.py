"""Namespaces for source that is not ours: no network, no other process, and of the files only Python's and the system's libraries.

The jail needs no right beyond that of making user namespaces, which some container engines withhold; then OSError says so, and it
is the caller who decides whether to go on without. Knows no grader. Called by the child of python_grader.py.
"""

from __future__ import annotations

import ctypes
import os
import sys
import sysconfig
from pathlib import Path

CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC, CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = (
    0x00020000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000,
)  # fmt: skip
MS_NOSUID, MS_NODEV, MS_BIND, MS_REC, MS_PRIVATE = 2, 4, 4096, 16384, 1 << 18
MNT_DETACH = 2
MOUNT_SETATTR, AT_FDCWD, AT_RECURSIVE = 442, -100, 0x8000
MOUNT_ATTR_RDONLY, MOUNT_ATTR_NOSUID, MOUNT_ATTR_NODEV = 1, 2, 4
NOBODY = 65534
SCRATCH = "size=1m,nr_inodes=256,mode=755"
"""All that can be written, and it is memory: a tmpfs of 1 MiB."""
CAPABILITY_VERSION = 0x20080522
_libc = ctypes.CDLL(None, use_errno=True)


def enter(directory: str) -> None:
    """Leave network, files, users and other processes behind; `directory`, which is empty, becomes the root.

    The namespace of processes holds for children, so fork afterwards. Raises OSError, with the step that failed, where the
    kernel refuses. This process must have one thread.
    """
    user, group = os.getuid(), os.getgid()
    _call("unshare", CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWPID | CLONE_NEWIPC | CLONE_NEWUTS)
    for name, content in (("setgroups", "deny"), ("uid_map", f"{NOBODY} {user} 1"), ("gid_map", f"{NOBODY} {group} 1")):
        Path("/proc/self", name).write_text(content)
    _mount(None, "/", None, MS_REC | MS_PRIVATE)
    _mount("tmpfs", directory, "tmpfs", MS_NOSUID | MS_NODEV, SCRATCH)
    for library in _libraries():
        _show(library, directory)
    os.mkdir(f"{directory}/tmp")
    os.chdir(directory)
    _call("pivot_root", b".", b".")
    _call("umount2", b".", MNT_DETACH)
    os.chdir("/tmp")


def drop_capabilities() -> None:
    """Give up what this process may do in its own namespaces: remounting, above all."""
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION, 0)
    _call("capset", header, (ctypes.c_uint32 * 6)())


def _libraries() -> list[str]:
    """Where Python's modules and the shared libraries they load lie, symbolic links among them, none inside another."""
    wanted = {"/lib", "/lib64", "/usr/lib", "/usr/lib64", f"{sys.base_prefix}/lib", *map(sysconfig.get_path, ("stdlib", "platstdlib"))}
    found = sorted(path for path in wanted if os.path.isdir(path))
    return [path for path in found if not any(path.startswith(f"{other}/") and not os.path.islink(other) for other in found)]


def _show(path: str, root: str) -> None:
    """Make a directory of the old root visible at its place in the new one, for reading."""
    place = root + path
    os.makedirs(os.path.dirname(place), exist_ok=True)
    if os.path.islink(path):
        os.symlink(os.readlink(path), place)
        return
    os.mkdir(place)
    _mount(path, place, None, MS_BIND | MS_REC)
    attributes = (ctypes.c_uint64 * 4)(MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV, 0, 0, 0)
    # What is mounted below is made read-only with it, which the older remount does not do. Linux 5.12.
    _call("syscall", MOUNT_SETATTR, AT_FDCWD, os.fsencode(place), AT_RECURSIVE, attributes, ctypes.sizeof(attributes))


def _mount(source: str | None, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    words = [None if word is None else os.fsencode(word) for word in (source, target, kind, options)]
    _call("mount", *words[:3], ctypes.c_ulong(flags), words[3])


def _call(name: str, *arguments: object) -> None:
    if getattr(_libc, name)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{'mount_setattr' if name == 'syscall' else name}: {os.strerror(number)}")
