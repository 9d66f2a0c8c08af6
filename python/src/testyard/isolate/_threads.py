"""Threads that are alive when a test is forked: they are not in the fork, where what they had locked stays locked."""

from __future__ import annotations

import os
import threading

#: Modules whose threads serve this process alone; nothing in a fork waits for them.
_PARENTS = ("pytest_rerunfailures",)


def alive() -> list[str]:
    """The names of this process's threads beside the one that asks."""
    own = threading.get_ident()
    known = [thread for thread in threading.enumerate() if thread.ident != own]
    named = [thread.name for thread in known if not _is_parents(thread)]
    try:
        others = len(os.listdir("/proc/self/task")) - 1 - len(known)
    except OSError:
        others = 0
    if "PYTEST_XDIST_WORKER" in os.environ:
        # The one that reads what the controller says; nothing in a fork waits for it.
        others -= 1
    return named + [f"{others} that Python does not know"] * (others > 0)


def _is_parents(thread: threading.Thread) -> bool:
    return getattr(getattr(thread, "_target", None), "__module__", None) in _PARENTS
