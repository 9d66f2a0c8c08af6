"""Clean-up that survives the process: a registered VM is held by it, and deleted once no process holds it."""

from __future__ import annotations

import atexit
import os
import threading

from testyard.errors import MachineNotFound, TestyardError

_lock = threading.Lock()
_awaited: set[str] = set()
_process = 0  # the process that `_awaited` and the exit handler belong to; a forked child has its own


def register_test_vm_for_cleanup(name: str) -> None:
    """Have a VM deleted when this process is gone, however it ends: returned, raised, or killed.

    A name that no machine has yet is remembered: the VM is held from its creation by a helper of `testyard.vms`, and
    one that was created otherwise is deleted when this process exits by itself.
    """
    from testyard import Machine

    name = str(name)
    try:
        machine = Machine.get(name)
    except MachineNotFound:
        _await(name)
        return
    try:
        machine.hold()
    finally:
        machine.close()
    with _lock:
        _awaited.discard(name)


def is_registered(name: str) -> bool:
    """Whether a name waits for its machine."""
    with _lock:
        return _process == os.getpid() and name in _awaited


def forget(name: str) -> None:
    """A machine that was deleted needs no clean-up."""
    with _lock:
        _awaited.discard(name)


def _await(name: str) -> None:
    global _process
    with _lock:
        if _process != os.getpid():
            _awaited.clear()
            _process = os.getpid()
            atexit.register(_delete_awaited)
        _awaited.add(name)


def _delete_awaited() -> None:
    from testyard import Machine

    with _lock:
        names = sorted(_awaited) if _process == os.getpid() else []
        _awaited.clear()
    for name in names:
        try:
            Machine.get(name).delete(force=True, missing_ok=True)
        except TestyardError:
            continue
