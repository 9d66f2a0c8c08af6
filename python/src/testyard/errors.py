"""What can go wrong, one class a cause.

Every error has a message that names the thing, the causes behind it (outermost first) and hints at what to do next.
``str(error)`` shows all three, a line each.
"""

from __future__ import annotations

from typing import Any, Mapping, Optional, Sequence

__all__ = [
    "BinaryNotFound",
    "Busy",
    "CommandFailed",
    "CommandNotStarted",
    "CommandTimedOut",
    "ConnectionLost",
    "InfrastructureError",
    "InvalidInput",
    "MachineExists",
    "MachineNotFound",
    "NotFound",
    "NotSupported",
    "PermissionRefused",
    "PortsExhausted",
    "ProtocolMismatch",
    "TestyardError",
    "TimedOut",
    "WrongState",
]


class TestyardError(Exception):
    """The root of all errors of this package."""

    __test__ = False
    #: The word that Testyard's JSON has for it.
    kind: str = "bug"
    #: Whether the same call may succeed a moment later.
    transient: bool = False

    def __init__(
        self, message: str, *, causes: Sequence[str] = (), hints: Sequence[str] = (), kind: Optional[str] = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.causes = tuple(causes)
        self.hints = tuple(hints)
        if kind is not None:
            self.kind = kind

    def __str__(self) -> str:
        lines = [self.message]
        lines += [f"because: {cause}" for cause in self.causes]
        lines += [f"hint: {hint}" for hint in self.hints]
        return "\n".join(lines)

    def __reduce__(self) -> Any:
        return (_rebuilt, (type(self), self.args, self.__dict__))


def _rebuilt(cls: type[TestyardError], arguments: tuple[Any, ...], state: dict[str, Any]) -> TestyardError:
    """An error that travelled between processes, as it was."""
    error = cls.__new__(cls)
    error.args = arguments
    error.__dict__.update(state)
    return error


class InvalidInput(TestyardError, ValueError):
    """A call was wrong in itself: a name, an option, a value."""

    kind = "usage"


class NotFound(TestyardError, LookupError):
    """The named thing does not exist."""

    kind = "not-found"


class MachineNotFound(NotFound):
    """There is no machine of that name."""


class MachineExists(TestyardError):
    """The name is taken."""

    kind = "already-exists"


class ClusterNotFound(NotFound):
    """There is no cluster of that name."""


class ClusterExists(TestyardError):
    """The cluster's name is taken."""

    kind = "already-exists"


class WrongState(TestyardError):
    """The thing exists, but its state forbids this: a stopped machine, say."""

    kind = "wrong-state"


class Busy(WrongState):
    """Commands run in the machine, or somebody else holds it."""


class NotSupported(TestyardError):
    """This host cannot do it; the hint names what would provide the ability."""

    kind = "unsupported"


class PermissionRefused(TestyardError, PermissionError):
    """Not permitted to this user."""

    kind = "denied"

    # PermissionError's own would print its arguments.
    __str__ = TestyardError.__str__


class InfrastructureError(TestyardError):
    """The machine or the host failed, not the command. ``transient`` says whether a retry makes sense."""

    kind = "system"


class ConnectionLost(InfrastructureError):
    """The other side went away, or did not answer in time."""

    kind = "unavailable"
    transient = True


class TimedOut(InfrastructureError):
    """A deadline passed."""

    kind = "timed-out"
    transient = True


class PortsExhausted(InfrastructureError):
    """Not enough ports are free on this host."""

    kind = "exhausted"


class ProtocolMismatch(InfrastructureError):
    """The machine speaks no version of the protocol that this package knows."""

    kind = "protocol"


class BinaryNotFound(TestyardError):
    """The program ``testyard`` is not where it is looked for."""

    kind = "not-found"


class CommandFailed(TestyardError):
    """A command ended with another code than 0. The message holds what it wrote."""

    kind = "command"

    def __init__(self, command: Any, returncode: int, stdout: Any = "", stderr: Any = "", *, where: str = "") -> None:
        from ._given import shown as shown_

        shown = shown_(command)
        how = f"exit code {returncode}" if returncode < 128 else f"exit code {returncode} (signal {returncode - 128})"
        parts = [f"command failed{where} with {how}: {shown}"]
        parts += [f"{name}:\n{_tail(text)}" for name, text in (("stdout", stdout), ("stderr", stderr)) if text]
        super().__init__("\n".join(parts))
        self.command = command
        self.returncode = returncode
        self.stdout = stdout
        self.stderr = stderr


class CommandNotStarted(CommandFailed):
    """There is no such program in the machine, or it cannot be executed. `returncode` is 127, as a shell's."""

    def __init__(self, command: Any, cause: TestyardError) -> None:
        super().__init__(command, 127, "", cause.message)
        self.message = cause.message
        self.causes = cause.causes
        self.hints = cause.hints


class CommandTimedOut(CommandFailed, TimedOut):
    """A command was ended, with all it had started, because its time was up."""

    kind = "timed-out"
    # It is the command that took too long, not the machine: the same call takes as long again.
    transient = False

    def __init__(self, command: Any, timeout: float, stdout: Any = "", stderr: Any = "", *, where: str = "") -> None:
        super().__init__(command, 124, stdout, stderr, where=where)
        self.timeout = timeout
        self.message = f"its time of {timeout:g} s was up: {self.message}"


def _tail(text: Any, limit: int = 16 * 1024) -> str:
    """The end of a command's output; errors stay readable whatever it wrote."""
    whole = text.decode("utf-8", "replace") if isinstance(text, bytes) else str(text)
    if len(whole) <= limit:
        return whole.rstrip("\n")
    return f"[… {len(whole) - limit} characters left out]\n" + whole[-limit:].rstrip("\n")


_KINDS: Mapping[str, type[TestyardError]] = {
    "usage": InvalidInput,
    "not-found": NotFound,
    "already-exists": MachineExists,
    "wrong-state": WrongState,
    "unsupported": NotSupported,
    "denied": PermissionRefused,
    "exhausted": InfrastructureError,
    "unavailable": ConnectionLost,
    "timed-out": TimedOut,
    "interrupted": InfrastructureError,
    "protocol": ProtocolMismatch,
    "command": InvalidInput,
    "service": InfrastructureError,
    "system": InfrastructureError,
    "bug": TestyardError,
}


def from_problem(problem: Mapping[str, Any]) -> TestyardError:
    """The error that a problem in Testyard's JSON means."""
    kind = str(problem.get("kind", "bug"))
    message = str(problem.get("message", "something failed without a word"))
    cls = _KINDS.get(kind, InfrastructureError)
    if kind == "not-found" and message.startswith("there is no machine"):
        cls = MachineNotFound
    if kind == "not-found" and message.startswith("there is no cluster"):
        cls = ClusterNotFound
    if kind == "already-exists" and "cluster" in message.split(" ")[:3]:
        cls = ClusterExists
    if kind == "wrong-state" and ("busy" in message or " running in" in message):
        cls = Busy
    return cls(message, causes=problem.get("causes", ()), hints=problem.get("hints", ()), kind=kind)


def from_exit(code: int, stderr: str) -> TestyardError:
    """The error of a program that ended without telling a problem in JSON."""
    text = stderr.strip() or "it said nothing"
    lines = [line.split(":", 1)[-1].strip() if line.startswith("error:") else line for line in text.splitlines()]
    hints = [line.split(":", 1)[1].strip() for line in lines if line.startswith("hint:")]
    told = [line for line in lines if not line.startswith("hint:") and line.strip()]
    kind = {2: "usage", 69: "system", 70: "bug", 130: "interrupted"}.get(code, "system")
    return from_problem({"kind": kind, "message": told[0] if told else text, "causes": told[1:4], "hints": hints})
