"""Joining an environment: by a fork of this process, through descriptors that the agent hands out.

The order matters. The pid namespace takes effect for the next child: whoever owns the machine (root) joins it for the
moment of the fork; an ordinary user may not, so that there the child joins everything and forks once more. The user
namespace comes before the others, as it gives the right to join them, and takes a process with one thread: a child of
fork has no other. The user comes last.
"""

from __future__ import annotations

import os
from typing import NamedTuple, Optional, Sequence

from ..errors import NotSupported
from . import _system
from ._agent import Reply

# The order in which the agent sends them.
_NAMESPACES = ("user", "mnt", "pid", "ipc", "uts", "net", "cgroup")
_MOST_ID = 65_535


class Caller(NamedTuple):
    """Who runs the tests, and where: what a child is again once it is inside."""

    user: int
    group: int
    groups: list[int]
    folder: str

    @classmethod
    def here(cls) -> Caller:
        """This process."""
        return cls(os.getuid(), os.getgid(), os.getgroups(), os.getcwd())


class Door:
    """The descriptors of one environment. The parent closes it; a child that went through has closed its own."""

    def __init__(self, identity: int, network: str, reply: Reply) -> None:
        self.identity = identity
        #: Nothing but the environment itself is in its network.
        self.is_secluded = network in ("private", "none")
        descriptors = list(reply.descriptors)
        self._all = list(descriptors)
        count = int(reply.body.get("namespaces", 0))
        if count != len(_NAMESPACES) or len(descriptors) < count + 1:
            self.close()
            raise NotSupported("this machine has no namespaces to join", hints=["see why: testyard doctor"])
        self._namespaces = dict(zip(_NAMESPACES, descriptors[1 : count + 1]))
        rest = descriptors[count + 1 :]
        self.changes: Optional[int] = rest.pop(0) if reply.body.get("changes") else None
        self._groups = rest

    @property
    def pid_namespace(self) -> int:
        """Its descriptor."""
        return self._namespaces["pid"]

    def close(self) -> None:
        """Lets go of the descriptors."""
        for descriptor in self._all:
            os.close(descriptor)
        self._all = []

    def join_groups(self) -> None:
        """Joins the control groups: before anything else, while the caller's own rights are there."""
        for folder in self._groups:
            name = "tasks" if _exists("tasks", folder) else "cgroup.procs"
            descriptor = os.open(name, os.O_WRONLY | os.O_CLOEXEC, dir_fd=folder)
            try:
                os.write(descriptor, b"0")
            finally:
                os.close(descriptor)

    def join(self, own: Sequence[tuple[str, int]], pid_too: bool) -> None:
        """Joins the namespaces, except those that this process is in already, and closes every descriptor.

        Raises:
            OSError: the kernel refuses one of them.
        """
        known = dict(own)
        for name in _NAMESPACES:
            descriptor = self._namespaces[name]
            if (name == "pid" and not pid_too) or os.fstat(descriptor).st_ino == known[name]:
                continue
            _system.setns(descriptor)
        self.close()


def _exists(name: str, folder: int) -> bool:
    try:
        os.stat(name, dir_fd=folder)
    except OSError:
        return False
    return True


def own_namespaces() -> list[tuple[str, int]]:
    """The namespaces of this process by name and inode."""
    return [(name, os.stat("/proc/self/ns/" + name).st_ino) for name in _NAMESPACES]


def become(caller: Caller) -> None:
    """Is the caller again, in an environment's user namespace, and in the caller's folder.

    Raises:
        OSError: the ids do not exist inside.
    """
    if os.getuid() != caller.user or os.getgid() != caller.group:
        try:
            _set_ids(caller)
        except OSError:
            _map_ids(caller)
    _system.set_dumpable()
    try:
        os.chdir(caller.folder)
    except OSError:
        os.chdir("/")


def _set_ids(caller: Caller) -> None:
    os.setresgid(caller.group, caller.group, caller.group)
    os.setgroups([group for group in caller.groups if group <= _MOST_ID])
    os.setresuid(caller.user, caller.user, caller.user)


def _map_ids(caller: Caller) -> None:
    """In a user namespace with one id, whoever is not that id needs one more."""
    user, group = os.getuid(), os.getgid()
    # The files below are those of the process's own user only if it may be dumped.
    _system.set_dumpable()
    _system.unshare(_system.CLONE_NEWUSER)
    _write("/proc/self/setgroups", "deny")
    _write("/proc/self/uid_map", f"{caller.user} {user} 1")
    _write("/proc/self/gid_map", f"{caller.group} {group} 1")
    os.setresgid(caller.group, caller.group, caller.group)
    os.setresuid(caller.user, caller.user, caller.user)
    _system.drop_capabilities()


def _write(path: str, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)
