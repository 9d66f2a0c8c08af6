"""What suites pass around: the stand-in for an SDK's client, and whatever has a `.dev`."""

from __future__ import annotations

from typing import Any, Optional

from ..errors import InvalidInput
from .environment import DevEnvironment


class Flow:
    """Stands where suites have their SDK's client: it has the `.dev`. What configures the SDK's is taken and left
    alone."""

    def __init__(self, config: Any = None, auto_init: bool = False, **options: Any) -> None:
        self.config = config
        self._options = options
        self._dev: Optional[DevEnvironment] = None

    @property
    def dev(self) -> DevEnvironment:
        """The developer's machine."""
        if self._dev is None:
            self._dev = DevEnvironment(self, **self._options)
        return self._dev

    def dev_context(self, auto_stop: bool = False) -> DevEnvironment:
        """The same as a context manager: started at its begin and, with `auto_stop`, stopped at its end."""
        return DevEnvironment(self, auto_stop=auto_stop, **self._options)

    def close(self) -> None:
        """Closes what is open."""
        if self._dev is not None:
            self._dev.close()

    def __enter__(self) -> Flow:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def dev_of(client: Any) -> Any:
    """The `.dev` of what a suite passes: a client, or the thing itself.

    Raises InvalidInput."""
    for candidate in (client, getattr(client, "dev", None)):
        if callable(getattr(candidate, "exec", None)) and callable(getattr(candidate, "ensure_started", None)):
            return candidate
    raise InvalidInput(
        f"{client!r} has no developer's machine", hints=["pass testyard.dev.Flow(), or testyard.dev.dev"]
    )
