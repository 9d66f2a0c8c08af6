"""Showing a machine a folder of this host: as docs/environments.md has it.

Root makes a detached mount of the folder, its owners mapped into the machine's user namespace, and sends that. An
ordinary user's machine takes the folder from its own view of the host; what is sent only proves which folder is
meant."""

from __future__ import annotations

import ctypes
import os

from ._connection import Connection
from .errors import InfrastructureError, TestyardError

# The numbers of newer system calls are the same on every architecture.
_SYS_OPEN_TREE = 428
_SYS_MOUNT_SETATTR = 442
_AT_EMPTY_PATH = 0x1000
_OPEN_TREE_CLONE = 1
_MOUNT_ATTR_RDONLY = 0x1
_MOUNT_ATTR_IDMAP = 0x100000
_EINVAL = 22


class _Attributes(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in ("set", "clear", "propagation", "user_namespace")]


def open_source(connection: Connection, path: str) -> int:
    """The number of a folder's view, for commands that are to see it. It lives as long as this connection."""
    folder = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        tree = _mapped(connection, folder) if os.geteuid() == 0 else -1
        try:
            told = connection.request({"source": {"path": os.fspath(path)}}, [tree if tree >= 0 else folder])
        finally:
            if tree >= 0:
                os.close(tree)
    finally:
        os.close(folder)
    return int(told["source"])


def _mapped(connection: Connection, folder: int) -> int:
    """A detached mount of the folder for the machine's users; -1 where it is not needed or cannot be had."""
    namespaces: list[int] = []
    try:
        connection.request("namespaces", attached=namespaces)
    except InfrastructureError:
        raise
    except TestyardError:
        return -1
    try:
        if not namespaces:
            return -1
        shared = os.fstat(namespaces[0]).st_ino == os.stat("/proc/self/ns/user").st_ino
        tree = _call(_SYS_OPEN_TREE, folder, b"", _OPEN_TREE_CLONE | _AT_EMPTY_PATH | os.O_CLOEXEC)
        attributes = _Attributes(set=_MOUNT_ATTR_RDONLY)
        if not shared:
            attributes.set |= _MOUNT_ATTR_IDMAP
            attributes.user_namespace = namespaces[0]
        try:
            size = ctypes.sizeof(attributes)
            _call(_SYS_MOUNT_SETATTR, tree, b"", _AT_EMPTY_PATH, ctypes.byref(attributes), ctypes.c_size_t(size))
        except OSError as error:
            os.close(tree)
            # A file system that maps no ids. A machine with one id finds the folder itself; others say they cannot.
            if not shared and error.errno == _EINVAL:
                return -1
            raise InfrastructureError("the folder cannot be shown to the machine", causes=[str(error)]) from None
        return tree
    finally:
        for namespace in namespaces:
            os.close(namespace)


def _call(number: int, *arguments: object) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    words = [ctypes.c_long(one) if isinstance(one, int) else one for one in arguments]
    returned = int(libc.syscall(ctypes.c_long(number), *words))
    if returned < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return returned
