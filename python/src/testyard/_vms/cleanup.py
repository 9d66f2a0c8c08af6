"""Clean-up that survives the process: a registered VM is held by it, and deleted once no process holds it.

What does not exist cannot be held. A name that is registered before its VM is made is told to a process that watches
this one's end (`testyard._vms.watch`), until a helper creates the VM and has it held.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from typing import IO, TYPE_CHECKING, Optional

from testyard.errors import MachineNotFound

if TYPE_CHECKING:
    import subprocess


def register_test_vm_for_cleanup(name: str) -> None:
    """Have a VM deleted when this process is gone, however it ends: returned, raised, or killed.

    The name may be one that no VM has yet: whoever creates it later, by a helper or by a raw call, it goes.
    """
    from testyard import Machine
    from testyard.machine import checked_name

    name = checked_name(str(name))
    try:
        machine = Machine.get(name)
    except MachineNotFound:
        _await(name)
        return
    machine.hold()
    machine.close()
    forget(name)


def is_registered(name: str) -> bool:
    """Whether a name waits for its VM."""
    with _lock:
        return name in _awaited


def forget(name: str) -> None:
    """The name's VM is held, or was deleted: nobody waits for it any more."""
    with _lock:
        if name in _awaited:
            _awaited.discard(name)
            _say(f"forget {name}")


_lock = threading.Lock()
_awaited: set[str] = set()
_watcher: Optional[subprocess.Popen[str]] = None


def _await(name: str) -> None:
    with _lock:
        _awaited.add(name)
        _say(f"await {name} {int(time.time() * 1000)}")


def _say(line: str) -> None:
    """Tell the watcher, which is started at the first need."""
    global _watcher
    if _watcher is None:
        _watcher = _started()
    with contextlib.suppress(BrokenPipeError):
        _input(_watcher).write(f"{line}\n")


def _started() -> subprocess.Popen[str]:
    import subprocess

    # A session of its own, because what ends a terminal's processes shall not end it; and this package's own folder,
    # because a script may have found it by a path that no other process has.
    folder = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    path = os.pathsep.join(filter(None, [folder, os.environ.get("PYTHONPATH")]))
    return subprocess.Popen(
        [sys.executable, "-m", "testyard._vms.watch"],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": path},
        text=True,
        bufsize=1,
        start_new_session=True,
        cwd="/",
    )


def _input(watcher: subprocess.Popen[str]) -> IO[str]:
    assert watcher.stdin is not None
    return watcher.stdin


def _forget_in_child() -> None:
    """A forked child waits for nothing, and does not keep the watcher waiting for it."""
    global _lock, _watcher
    _lock = threading.Lock()
    _awaited.clear()
    watcher, _watcher = _watcher, None
    if watcher is not None:
        watcher.returncode = 0  # not this process's child
        with contextlib.suppress(OSError):
            _input(watcher).close()


os.register_at_fork(after_in_child=_forget_in_child)
