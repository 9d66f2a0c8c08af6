"""Threads that are alive when a test is forked: they are not in the fork, where what they had locked stays locked."""

from __future__ import annotations

import os
import threading


def alive() -> list[str]:
    """The names of this process's threads beside the one that asks."""
    own = threading.get_ident()
    named = [thread.name for thread in threading.enumerate() if thread.ident != own]
    try:
        others = len(os.listdir("/proc/self/task")) - 1 - len(named)
    except OSError:
        others = 0
    if "PYTEST_XDIST_WORKER" in os.environ:
        # The one that reads what the controller says; nothing in a fork waits for it.
        others -= 1
    return named + [f"{others} that Python does not know"] * (others > 0)
