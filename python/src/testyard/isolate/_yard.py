"""Environments for tests: asked for before they are needed, and given back without waiting."""

from __future__ import annotations

import collections
import os
from typing import Any, Deque, NamedTuple, Optional

from ..environment import environment_request
from ._agent import Agent
from ._door import Door

#: An environment that this host is too busy to give within so many seconds is not coming.
_PATIENCE = 60.0


class Place(NamedTuple):
    """Where tests run: a machine, and the working tree that its environments show. The same for all workers."""

    machine: str
    socket: str
    #: The top of the working tree.
    tree: str
    #: A folder that all share: what fixtures of higher scopes put into temporary folders.
    shared: str
    network: str
    limits: dict[str, Any]


class _Lease:
    """An environment on its way: first it is made, then its descriptors are asked for."""

    def __init__(self, making: int) -> None:
        self.making = making
        self.identity: Optional[int] = None
        self.entering: Optional[int] = None


class Yard:
    """This process's way to the machine."""

    def __init__(self, place: Place) -> None:
        self._agent = Agent(place.socket, place.machine)
        self._source = self._agent.show(place.tree)
        self._network, self._tree = place.network, place.tree
        self._request = environment_request(network=place.network, limits=place.limits, source=place.tree)
        self._request["user"] = "root"
        self._coming: Deque[_Lease] = collections.deque()

    def fileno(self) -> int:
        """Readable when `attend` has something to do."""
        return self._agent.fileno()

    def prepare(self, count: int) -> None:
        """Has so many environments on their way."""
        while len(self._coming) < count:
            self._coming.append(_Lease(self._agent.ask({"environment": self._request})))

    def attend(self) -> None:
        """Reads what the agent said, and asks for what comes next. Never waits."""
        if self._agent.read():
            self._go_on()

    def is_ready(self) -> bool:
        """Whether `lease` has something to give without waiting."""
        first = self._coming[0] if self._coming else None
        return first is not None and first.entering is not None and self._agent.has(first.entering)

    def lease(self) -> Door:
        """The environment that was asked for first, waited for if need be.

        Raises TestyardError: there is none to be had."""
        self.prepare(1)
        lease = self._coming.popleft()
        if lease.entering is None:
            self._enter(lease, self._agent.wait(lease.making, "environment", _PATIENCE).body)
        assert lease.identity is not None and lease.entering is not None
        return Door(lease.identity, self._network, self._agent.wait(lease.entering, "entered", _PATIENCE))

    def special(self, network: Optional[str], limits: Optional[dict[str, Any]]) -> Door:
        """An environment of another kind than usual, made now.

        Raises NotSupported: this host cannot give one; TestyardError."""
        request = environment_request(
            network=network or self._network, limits=limits, source=self._tree, strict_limits=bool(limits)
        )
        request["user"] = "root"
        made = self._agent.wait(self._agent.ask({"environment": request}), "environment", _PATIENCE)
        lease = _Lease(0)
        self._enter(lease, made.body)
        assert lease.identity is not None and lease.entering is not None
        return Door(lease.identity, request["network"], self._agent.wait(lease.entering, "entered", _PATIENCE))

    def keep(self, door: Door, seconds: float) -> None:
        """Lets an environment live on for so long, whoever is there.

        Raises TestyardError."""
        milliseconds = max(1, round(seconds * 1000))
        request = {"keep": {"environment": door.identity, "for_ms": milliseconds}}
        self._agent.wait(self._agent.ask(request), "done", _PATIENCE)
        # Answers to others may have come before.
        self._go_on()

    def release(self, door: Door) -> None:
        """Ends an environment and every process in it. What it wrote to the tree can be read until the door closes."""
        self._agent.forget({"release": door.identity})

    def leave(self) -> None:
        """In a fork: lets go of environments that are another's, which it would keep beyond their end."""
        self._agent.leave()

    def close(self) -> None:
        """Lets go of everything."""
        self._agent.close()

    def _go_on(self) -> None:
        for lease in self._coming:
            if lease.entering is None:
                made = self._agent.take(lease.making, "environment")
                if made is not None:
                    self._enter(lease, made.body)

    def _enter(self, lease: _Lease, made: Any) -> None:
        lease.identity = int(made["id"])
        lease.entering = self._agent.ask({"enter-with": {"environment": lease.identity, "source": self._source}})


def tree_around(folder: str) -> str:
    """The working tree around a folder: the top of its git repository, else the folder itself."""
    folder = os.path.realpath(folder)
    at = folder
    while True:
        if os.path.exists(os.path.join(at, ".git")):
            return at
        above = os.path.dirname(at)
        if above == at:
            return folder
        at = above
