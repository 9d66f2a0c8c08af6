"""Environments of failed tests, kept where `--testyard-keep-failed` asks for that."""

from __future__ import annotations

from typing import Any, Optional

from ..plugin import session_of
from ..plugin._places import Kept, keep
from ._door import Door
from ._yard import Yard


class Keeping:
    """Keeps environments, or does not, as the session was told."""

    def __init__(self, config: Any, machine: str, yard: Yard) -> None:
        self._seconds: Optional[float] = session_of(config).settings.keep_failed
        self._machine = machine
        self._yard = yard

    def name(self, door: Door) -> str:
        """What people call a test's environment."""
        return f"{self._machine}/e{door.identity}"

    def keep(self, door: Door, nodeid: str) -> Optional[Kept]:
        """Keeps a failed test's environment; None where nobody asks for that."""
        if self._seconds is None:
            return None
        return keep(self.name(door), self._seconds, nodeid, lambda seconds: self._yard.keep(door, seconds))
