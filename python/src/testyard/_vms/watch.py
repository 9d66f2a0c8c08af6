"""A process that outlives the one which registered names that no VM had yet, and deletes the VMs that came by them.

Run as `python -m testyard._vms.watch`. Each line of its standard input is `await NAME MILLISECONDS`, the time of the
registration, or `forget NAME`. The end of its input is the end of its starter, however that came. A VM that is older
than its name's registration belongs to somebody else, and stays.
"""

from __future__ import annotations

import signal
import sys
from typing import Iterable

from testyard import Machine
from testyard.errors import TestyardError


def awaited(lines: Iterable[str]) -> dict[str, int]:
    """The names that are awaited when the input ends, and since when, in milliseconds since 1970-01-01 UTC."""
    names: dict[str, int] = {}
    for line in lines:
        word, name, *since = line.split()
        if word == "await":
            names[name] = int(since[0])
        else:
            names.pop(name, None)
    return names


def delete(name: str, since_ms: int) -> None:
    """Delete a VM that was created since then. Nobody is there any more to be told of an error."""
    try:
        machine = Machine.get(name)
        if machine.info().created_ms >= since_ms:
            machine.delete(force=True, missing_ok=True)
    except TestyardError:
        return


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    for each, since in awaited(sys.stdin).items():
        delete(each, since)
