"""Pools: machines made ahead of need."""

from __future__ import annotations

import threading
from typing import Any, Optional

from .errors import InvalidInput, TestyardError, TimedOut
from .machine import Machine, fresh_name


class Pool:
    """So many machines of one kind, made side by side. A context manager that deletes them all at its end."""

    __test__ = False

    def __init__(self, count: int, *, name_prefix: str = "pool", **options: Any) -> None:
        """Makes `count` machines (1 to 100) with the options of `Machine.create`, each unknown to others until it is
        reachable. Where one of them fails, the others are deleted and its error is raised."""
        if not isinstance(count, int) or not 1 <= count <= 100:
            raise InvalidInput(f"{count!r} is no number of machines", hints=["ask for 1 to 100"])
        self._changed = threading.Condition()
        self._free: list[Machine] = []
        self._all: list[Machine] = []
        self._failed: Optional[BaseException] = None
        makers = [
            threading.Thread(target=self._make, args=(fresh_name(name_prefix), options), daemon=True)
            for _ in range(count)
        ]
        for maker in makers:
            maker.start()
        for maker in makers:
            maker.join()
        if self._failed is not None:
            self.close()
            raise self._failed

    def _make(self, name: str, options: dict[str, Any]) -> None:
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

        Raises TimedOut."""
        with self._changed:
            if not self._changed.wait_for(lambda: bool(self._free), timeout):
                raise TimedOut(f"no machine of the pool became free in {timeout:g} s")
            return self._free.pop()

    def give_back(self, machine: Machine) -> None:
        """It is free again; its files stay as they are."""
        with self._changed:
            if machine not in self._all or machine in self._free:
                raise InvalidInput(f"machine {machine.name} is not taken from this pool")
            self._free.append(machine)
            self._changed.notify()

    def close(self) -> None:
        """Deletes all of them. The first error is raised once all were tried."""
        with self._changed:
            machines, self._all, self._free = self._all, [], []
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
