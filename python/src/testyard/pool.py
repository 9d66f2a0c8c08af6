"""Pools: machines made ahead of need."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Optional

from . import _given as given
from .errors import InvalidInput, TestyardError, TimedOut
from .machine import Machine, fresh_name

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ._options import MachineOptions


class Pool:
    """So many machines of one kind, made side by side. A context manager that deletes them all at its end."""

    __test__ = False

    def __init__(self, count: int, *, name_prefix: str = "pool", **options: Unpack[MachineOptions]) -> None:
        """Makes `count` machines (1 to 100) with the options of `Machine.create`, each unknown to others until it is
        reachable. Where one of them fails, the others are deleted and its error is raised."""
        given.whole(count, "number of machines", 1, 100)
        given.options(options, Machine.create, "Machine.create")
        self._begin()
        names = [fresh_name(name_prefix) for _ in range(count)]
        makers = [threading.Thread(target=self._make, args=(name, options), daemon=True) for name in names]
        for maker in makers:
            maker.start()
        for maker in makers:
            maker.join()
        if self._failed is not None:
            self.close()
            raise self._failed

    def _begin(self) -> None:
        self._changed = threading.Condition()
        self._free: list[Machine] = []
        self._all: list[Machine] = []
        self._failed: Optional[BaseException] = None
        self._closed = False

    def _make(self, name: str, options: MachineOptions) -> None:
        try:
            machine = Machine.create(name, **options)
        except BaseException as error:  # noqa: BLE001 - raised where the pool was asked for
            self._failed = error
            return
        with self._changed:
            self._all.append(machine)
            self._free.append(machine)

    @property
    def machines(self) -> list[Machine]:
        """All of them, taken or not."""
        return list(self._all)

    def take(self, timeout: Optional[float] = None) -> Machine:
        """One that nobody else has, waited for at most `timeout` seconds.

        Raises TimedOut, and InvalidInput where the pool is closed."""
        patience = given.seconds(timeout, "a timeout")
        with self._changed:
            if not self._changed.wait_for(lambda: bool(self._free) or self._closed, patience):
                raise TimedOut(f"no machine of the pool became free in {timeout:g} s")
            if self._closed:
                raise InvalidInput("the pool is closed", hints=["take machines before that"])
            return self._free.pop()

    def give_back(self, machine: Machine) -> None:
        """It is free again; its files stay as they are."""
        with self._changed:
            if machine not in self._all or machine in self._free:
                shown = machine.name if isinstance(machine, Machine) else repr(machine)
                raise InvalidInput(f"machine {shown} is not taken from this pool", hints=["give back what `take` gave"])
            self._free.append(machine)
            self._changed.notify()

    def close(self) -> None:
        """Deletes all of them. The first error is raised once all were tried."""
        with self._changed:
            machines, self._all, self._free = self._all, [], []
            self._closed = True
            self._changed.notify_all()
        first: Optional[TestyardError] = None
        for machine in machines:
            try:
                machine.delete(force=True, missing_ok=True)
            except TestyardError as error:
                first = first or error
        if first is not None:
            raise first

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
