"""Event loops that were made in the parent, for fixtures of higher scopes, used in a fork.

A selector of the kernel's and the pair of sockets that wakes a loop are shared by all forks of a process: each fork
gets its own, or forks that run at the same time would take each other's events.
"""

from __future__ import annotations

import contextlib
import selectors
import sys
from typing import Any, Iterator


def renew(item: Any) -> None:
    """Gives every event loop that is a fixture's value, or that of one's runner, a selector of its own."""
    asyncio = sys.modules.get("asyncio")
    if asyncio is None:
        return
    for loop in _found(item, asyncio):
        with contextlib.suppress(Exception):
            _renew(loop)


def _found(item: Any, asyncio: Any) -> Iterator[Any]:
    info = getattr(item, "_fixtureinfo", None)
    definitions = info.name2fixturedefs.values() if info is not None else ()
    for definition in (one for several in definitions for one in several):
        cached = definition.cached_result
        value = cached[0] if cached else None
        for candidate in (value, getattr(value, "_loop", None)):
            if isinstance(candidate, asyncio.SelectorEventLoop) and not candidate.is_closed():
                yield candidate


def _renew(loop: Any) -> None:
    old = loop._selector
    own = loop._ssock.fileno()
    fresh = selectors.DefaultSelector()
    for key in list(old.get_map().values()):
        if key.fd != own:
            fresh.register(key.fileobj, key.events, key.data)
    loop._selector = fresh
    # The kernel's objects are the parent's too: only this process's copies of their descriptors are closed.
    old.close()
    loop._ssock.close()
    loop._csock.close()
    loop._internal_fds -= 1
    loop._make_self_pipe()
