"""How long things may take, and what is tried again: one table of limits and one policy, for the whole package.

What may be tried again is decided by the type of an error alone, never by its text. A command's own failure, a name
that is taken, an image that is not there: each would fail again, and is told at once.
"""

from __future__ import annotations

import os
import random
import time
from typing import TYPE_CHECKING, Any, Callable, NamedTuple, Optional, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

__all__ = ["RETRY", "RetryPolicy", "Timeouts", "is_transient", "limit_of", "set_timeouts", "timeouts"]

Result = TypeVar("Result")


class Timeouts(NamedTuple):
    """Every limit, in seconds, each above 0. `TESTYARD_TIMEOUT_<NAME>` overrides one; `set_timeouts` overrides any."""

    create: float = 300.0  # one attempt to create a machine, its image being there
    ready: float = 60.0  # until a first command has run in a machine that was created or started
    start: float = 120.0  # one attempt to start a machine
    stop: float = 60.0  # one attempt to stop a machine
    delete: float = 60.0  # one attempt to delete a machine
    query: float = 30.0  # info, list and whatever else only looks
    command: float = 300.0  # a command of `execute_with_retry` that names no limit of its own
    build: float = 1800.0  # building, importing or exporting an image
    total: float = 900.0  # all attempts of one call together; no new one begins after it

    @classmethod
    def of_environment(cls, environment: Optional[Mapping[str, str]] = None) -> Timeouts:
        """The table with what the environment variables override.

        Raises `testyard.errors.InvalidInput` where one of them is no number of seconds above 0.
        """
        variables = os.environ if environment is None else environment
        found: dict[str, float] = {}
        for name in cls._fields:
            variable = f"TESTYARD_TIMEOUT_{name.upper()}"
            text = variables.get(variable, "").strip()
            if text:
                found[name] = _seconds(text, variable)
        return cls(**found)


def _seconds(value: Any, name: str) -> float:
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        seconds = float("nan")
    if 0 < seconds < float("inf"):
        return seconds
    from .errors import InvalidInput

    message = f"{name} is {value!r}, which is no number of seconds above 0"
    raise InvalidInput(message, hints=[f"for example: {name}=90"])


# Which limit bounds a call of the program; what is not here takes as long as it takes.
_LIMIT_OF = {
    "create": "create",
    "clone": "create",
    "start": "start",
    "restart": "start",
    "stop": "stop",
    "delete": "delete",
    "rename": "query",
    "info": "query",
    "list": "query",
    "image build": "build",
    "image import": "build",
    "image export": "build",
    "image list": "query",
}


def limit_of(arguments: Sequence[str]) -> Optional[float]:
    """The limit of a call of the program `testyard`, in seconds; None where it has none."""
    name = _LIMIT_OF.get(" ".join(arguments[:2])) or _LIMIT_OF.get(arguments[0])
    return None if name is None else float(getattr(timeouts(), name))


_overrides: dict[str, float] = {}


def timeouts() -> Timeouts:
    """The limits in force: what `set_timeouts` said, else the environment variables, else the table."""
    return Timeouts.of_environment()._replace(**_overrides)


def set_timeouts(**limits: Optional[float]) -> Timeouts:
    """Override limits of this process, in seconds; None takes an override back. Returns the limits now in force.

    Raises `testyard.errors.InvalidInput` for a limit that does not exist or is not above 0.
    """
    checked: dict[str, Optional[float]] = {}
    for name, value in limits.items():
        if name not in Timeouts._fields:
            from .errors import InvalidInput

            raise InvalidInput(f"there is no timeout {name}", hints=[f"there are: {', '.join(Timeouts._fields)}"])
        checked[name] = None if value is None else _seconds(value, name)
    for name, seconds in checked.items():
        if seconds is None:
            _overrides.pop(name, None)
        else:
            _overrides[name] = seconds
    return timeouts()


def is_transient(error: BaseException) -> bool:
    """Whether the same call may succeed a moment later: the infrastructure failed, not what was asked of it."""
    from .errors import TestyardError

    return isinstance(error, TestyardError) and error.transient


class RetryPolicy(NamedTuple):
    """Exponential delays with full jitter: before attempt n+1 a random span up to `first_delay * factor ** (n - 1)`.

    Bounded twice: in `attempts`, and by `timeouts().total` seconds after which no attempt begins.
    """

    attempts: int = 5
    first_delay: float = 0.1  # seconds: the upper bound of the first delay
    factor: float = 2.0
    longest_delay: float = 5.0  # seconds: the upper bound of every delay

    def bounds(self) -> Iterator[float]:
        """The upper bounds of the delays, in seconds, one for each attempt but the first."""
        from . import _given as given

        given.whole(self.attempts, "number of attempts", 0, 1 << 16)
        for name in ("first_delay", "factor", "longest_delay"):
            given.seconds(getattr(self, name), f"a {name.replace('_', ' ')}")
        bound = self.first_delay
        for _ in range(self.attempts - 1):
            yield min(bound, self.longest_delay)
            bound *= self.factor

    def call(
        self,
        action: Callable[[], Result],
        *,
        total: Optional[float] = None,
        transient: Callable[[BaseException], bool] = is_transient,
        failed: Optional[Callable[[BaseException, int, float], None]] = None,
        pause: Optional[Callable[[float], None]] = None,
        clock: Callable[[], float] = time.monotonic,
        jitter: Callable[[float, float], float] = random.uniform,
    ) -> Result:
        """Call `action` until it succeeds, fails with what is not transient, or the bounds are reached.

        `total` is in seconds; `failed` is told each error that is tried again, its attempt (from 1) and the delay in
        seconds. The last error is raised as it is. `pause` is `time.sleep` as it is then: gevent may have replaced it.
        """
        sleep = time.sleep if pause is None else pause
        end = clock() + (timeouts().total if total is None else total)
        for attempt, bound in enumerate(self.bounds(), start=1):
            try:
                return action()
            except Exception as error:
                delay = jitter(0.0, bound)
                if not transient(error) or clock() + delay >= end:
                    raise
                if failed is not None:
                    failed(error, attempt, delay)
            sleep(delay)
        return action()


#: The one policy.
RETRY = RetryPolicy()


def ensured(
    what: str,
    *,
    get: Callable[[], Result],
    create: Callable[[], Result],
    start: Callable[[Result], object],
    absent: type[Exception],
    taken: type[Exception],
) -> Result:
    """What has a name, running: found, made or started, whoever else wants the same at the same time."""
    from .errors import WrongState

    error: Optional[Exception] = None
    until = time.monotonic() + timeouts().start
    while time.monotonic() < until:
        try:
            found: Any = get()
        except absent:
            try:
                made: Any = create()
            except taken as told:
                error = told
            else:
                made._created = False
                return made  # type: ignore[no-any-return]
        else:
            if found._info.state == "running":
                return found  # type: ignore[no-any-return]
            try:
                start(found)
                return found  # type: ignore[no-any-return]
            except (WrongState, absent) as told:
                error = told
        # Somebody else is just creating, starting or deleting it.
        time.sleep(0.1)
    raise error or WrongState(f"{what} does not come to rest")
