"""Environments of failed tests, kept where `--testyard-keep-failed` asks for that."""

from __future__ import annotations

from typing import Any, NamedTuple, Optional

from .. import _hold
from ..errors import TestyardError
from ..plugin import session_of
from ..plugin._places import kept
from ._door import Door
from ._yard import Yard


class Kept(NamedTuple):
    """What became of it."""

    #: For the failed test's report.
    section: tuple[str, str]
    #: Whether the environment lives on.
    lives: bool


class Keeping:
    """Keeps environments, or does not, as the session was told."""

    def __init__(self, config: Any, machine: str, yard: Yard) -> None:
        self._seconds: Optional[float] = session_of(config).settings.keep_failed
        self._machine = machine
        self._yard = yard

    def keep(self, door: Door, nodeid: str) -> Optional[Kept]:
        """Keeps a failed test's environment; None where nobody asks for that."""
        if self._seconds is None:
            return None
        name = f"{self._machine}/e{door.identity}"
        try:
            # Written down first: its machine lives on for what is written down.
            command = _hold.keep(name, self._seconds, nodeid)
            self._yard.keep(door, self._seconds)
        except TestyardError as error:
            return Kept((f"testyard {name}", f"not kept: {error}\n"), lives=False)
        return Kept((f"testyard {name}", kept(self._seconds, command)), lives=True)
