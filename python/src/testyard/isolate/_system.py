"""System calls that Python has late or not at all, through the C library that it is linked with."""

from __future__ import annotations

import ctypes
import errno
import math
import os
import select
from typing import Iterable, Optional

CLONE_NEWUSER = 0x10000000

_PR_SET_DUMPABLE = 4
_PR_CAPBSET_DROP = 24
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_CLEAR_ALL = 4
_CAPABILITY_VERSION_3 = 0x20080522
_MOST_CAPABILITIES = 64

#: The same number on every architecture.
_SYS_PROCESS_MADVISE = 440
_MADV_POPULATE_WRITE = 23

_library: Optional[ctypes.CDLL] = None


def _libc() -> ctypes.CDLL:
    global _library
    if _library is None:
        _library = ctypes.CDLL(None, use_errno=True)
    return _library


def load() -> None:
    """Finds every function now: a forked child should not have to look for libraries."""
    library = _libc()
    for name in ("setns", "unshare", "prctl", "capset", "madvise", "syscall"):
        getattr(library, name)


def _check(returned: int, operation: str) -> int:
    if returned < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{operation}: {os.strerror(number)}")
    return returned


def setns(descriptor: int, kind: int = 0) -> None:
    """Joins a namespace; of any kind where none is said. A pid namespace is joined by the next child.

    Raises:
        OSError: the kernel refuses it.
    """
    _check(_libc().setns(descriptor, kind), "join a namespace")


def unshare(flags: int) -> None:
    """Leaves for new namespaces.

    Raises:
        OSError: the kernel refuses it.
    """
    _check(_libc().unshare(flags), "make a namespace")


def set_dumpable() -> None:
    """Gives `/proc/self` to the process's own user again after that changed."""
    _check(_libc().prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0), "become dumpable")


def drop_capabilities() -> None:
    """Gives up every capability for good, also those that a program run later could get.

    Raises:
        OSError: the kernel refuses it.
    """
    library = _libc()
    for capability in range(_MOST_CAPABILITIES):
        if library.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0) < 0:
            break
    library.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    sets = (ctypes.c_uint32 * 6)()
    _check(library.capset(header, sets), "drop capabilities")


class Range(ctypes.Structure):
    """An address and a size, as `struct iovec` has them."""

    _fields_ = [("address", ctypes.c_size_t), ("size", ctypes.c_size_t)]


def make_writable(ranges: ctypes.Array[Range]) -> None:
    """Has this process own each page of these ranges, at most 1024, as if it had written there.

    Raises:
        OSError: the kernel cannot; what is no memory any more is no error.
    """
    library = _libc()
    own = os.pidfd_open(os.getpid())
    try:
        count = ctypes.c_size_t(len(ranges))
        done = library.syscall(_SYS_PROCESS_MADVISE, own, ranges, count, _MADV_POPULATE_WRITE, 0)
        number = ctypes.get_errno()
    finally:
        os.close(own)
    if done >= 0 or number not in (errno.EINVAL, errno.EPERM, errno.ENOSYS):
        return
    # Before Linux 6.13 this advice is taken by `madvise` alone, before 5.14 by none.
    for one in ranges:
        if library.madvise(ctypes.c_void_p(one.address), ctypes.c_size_t(one.size), _MADV_POPULATE_WRITE) < 0:
            if ctypes.get_errno() == errno.EINVAL:
                raise OSError(errno.EINVAL, "make memory writable: " + os.strerror(errno.EINVAL))


def readable(descriptors: Iterable[int], seconds: Optional[float] = 0.0) -> list[int]:
    """Those that can be read, or whose other end is gone; waits at most so long for the first, and for ever where that
    is None. Unlike `select.select`, whatever their numbers."""
    waiting = select.poll()
    for descriptor in descriptors:
        waiting.register(descriptor, select.POLLIN)
    patience = None if seconds is None else max(0, math.ceil(seconds * 1000))
    return [descriptor for descriptor, _ in waiting.poll(patience)]
