"""What the fixtures hand to tests: places that remember what their last commands wrote, so that a failure can tell it.

They are thin: each call goes to the environment or machine behind. Errors come without the package's own frames, so
that a traceback ends in the test.
"""

from __future__ import annotations

import collections
import os
from typing import TYPE_CHECKING, Any, Callable, Deque, Mapping, NamedTuple, Optional, Sequence, TypeVar, Union

from testyard._given import shown
from testyard.errors import MachineNotFound, NotFound, TestyardError

if TYPE_CHECKING:
    from testyard import Completed, Environment, Machine, Ports, Process

Command = Union[str, Sequence[Union[str, "os.PathLike[str]"]]]
Path = Union[str, "os.PathLike[str]"]
Answer = TypeVar("Answer")

#: How many commands a failure tells of, and how much of what each wrote, in characters.
REMEMBERED = 5
SHOWN = 4000
#: How many ports `isolated_env.ports` leases.
PORTS = 4


class Folder(str):
    """A folder's path in a place: a `str` that also knows `/`."""

    def __truediv__(self, name: Path) -> Folder:
        return Folder(os.path.join(self, os.fspath(name)))

    def __fspath__(self) -> str:
        return str(self)


class _As:
    """A machine whose commands run as another user than its own, as an environment's do."""

    def __init__(self, machine: Machine, user: Union[str, int]) -> None:
        self._machine = machine
        self._user = user

    def run(self, command: Any, **options: Any) -> Completed:
        return self._machine.run(command, **{"user": self._user, **options})

    def spawn(self, command: Any, **options: Any) -> Process:
        return self._machine.spawn(command, **{"user": self._user, **options})

    def __getattr__(self, name: str) -> Any:
        return getattr(self._machine, name)


class _Ran(NamedTuple):
    command: Any
    ended: Callable[[], str]
    wrote: Callable[[], str]


class Kept(NamedTuple):
    """What became of an environment that was to be kept."""

    #: Whether it lives on.
    lives: bool
    #: How to enter it, or why it is not kept.
    told: str


class RecordedPlace:
    """A place of a test's own: an environment in the run's machine, or a machine of its own."""

    __test__ = False

    def __init__(
        self,
        machine: Machine,
        environment: Optional[Environment],
        test_id: str,
        *,
        own: bool = False,
        user: Union[None, str, int] = None,
    ) -> None:
        #: The machine that it is in.
        self.machine = machine
        #: The test, as pytest names it.
        self.test_id = test_id
        self._environment = environment
        self._place: Any = environment or (machine if user is None else _As(machine, user))
        self._own = own
        self._ports: Optional[Ports] = None
        self._ran: Deque[_Ran] = collections.deque(maxlen=REMEMBERED)
        self._spawned: list[Process] = []
        self._kept = Kept(lives=False, told="")
        self._workspace: Optional[Folder] = None
        self._closed = False

    @property
    def shown(self) -> str:
        """How people name it: `MACHINE/e17`, or the machine."""
        return self.machine.name if self._environment is None else f"{self.machine.name}/{self._environment.id}"

    @property
    def ports(self) -> list[int]:
        """Four ports of the host that nobody else is given until the test ends. Commands find them in `TESTYARD_PORTS`.
        With a network of its own any other port is free, too."""
        if self._ports is None:
            from testyard import Ports

            self._ports = Ports(self.test_id)
            leased = self._ports.take(PORTS)
            if self._environment is not None:
                self._environment.ports = leased
        return self._ports.taken

    @property
    def workspace(self) -> Folder:
        """A folder that its commands may write in."""
        if self._workspace is None:
            if self._environment is not None:
                self._workspace = Folder(self._environment.workspace)
            else:
                self._workspace = Folder(self._place.run("mktemp -d /tmp/work-XXXXXX").stdout.strip())
        return self._workspace

    def run(
        self,
        command: Command,
        check: bool = True,
        timeout: Optional[float] = None,
        cwd: Optional[Path] = None,
        env: Optional[Mapping[str, str]] = None,
        **options: Any,
    ) -> Completed:
        """Runs a command to its end: a string by the shell, a list verbatim. `timeout` is in seconds.

        Gives `returncode`, `stdout` and `stderr`. With `check` another code than 0 raises CommandFailed, with both
        streams."""
        __tracebackhide__ = True
        try:
            done: Completed = self._place.run(command, check=False, timeout=timeout, cwd=cwd, env=env, **options)
        except TestyardError as error:
            raise error.with_traceback(None) from None
        code, both = done.returncode, _both(done.stdout, done.stderr)
        how = "time was up" if done.timed_out else f"exit code {code}"
        self._ran.append(_Ran(command, lambda: how, lambda: both))
        if check and code != 0:
            raise _failure(done, timeout)
        return done

    def spawn(self, command: Command, **options: Any) -> Process:
        """Starts a command; a handle with `kill`, `wait`, `poll`, `returncode` and `output()`, what it wrote so far.

        See `testyard.Environment.spawn` for the options. It ends with the test at the latest."""
        __tracebackhide__ = True
        try:
            process: Process = self._place.spawn(command, **options)
        except TestyardError as error:
            raise error.with_traceback(None) from None
        # A handle that nobody keeps would end its command.
        self._spawned.append(process)
        self._ran.append(_Ran(command, lambda: _state(process), lambda: _output(process)))
        return process

    def write_file(self, path: Path, data: Union[str, bytes], **options: Any) -> None:
        """Writes a file; folders above it are made."""
        __tracebackhide__ = True

        def write() -> None:
            try:
                self._place.write_file(path, data, **options)
            except NotFound:
                folder = os.path.dirname(os.fspath(path))
                user = {"user": options["user"]} if "user" in options else {}
                if not folder or self._place.run(["mkdir", "-p", "--", folder], check=False, **user).returncode != 0:
                    raise
                self._place.write_file(path, data, **options)

        unframed(write)

    def read_file(self, path: Path, **options: Any) -> bytes:
        """What is in a file."""
        __tracebackhide__ = True
        return unframed(lambda: self._place.read_file(path, **options))  # type: ignore[no-any-return]

    def read_text(self, path: Path, **options: Any) -> str:
        """The same as text."""
        __tracebackhide__ = True
        return unframed(lambda: self._place.read_text(path, **options))  # type: ignore[no-any-return]

    def push(self, source: Path, destination: Path, **options: Any) -> None:
        """Copies a file or folder of this host in."""
        __tracebackhide__ = True
        unframed(lambda: self._place.push(source, destination, **options))

    def pull(self, source: Path, destination: Path, **options: Any) -> None:
        """Copies a file or folder out."""
        __tracebackhide__ = True
        unframed(lambda: self._place.pull(source, destination, **options))

    def told(self) -> str:
        """What its last commands wrote."""
        text = ""
        for ran in self._ran:
            text += f"$ {_short(shown(ran.command))}  [{ran.ended()}]\n"
            wrote = ran.wrote()
            if wrote:
                text += wrote if wrote.endswith("\n") else wrote + "\n"
        return text

    def keep(self, seconds: float, test: str) -> str:
        """Keeps it so long; says how to enter it, or why it cannot be kept. Once."""
        if self._own:
            return "not kept: a machine of a test's own ends with it\n"
        if self._environment is None:
            return ""
        if not self._kept.lives:
            self._kept = keep(self.shown, seconds, test, self._environment.keep)
        return self._kept.told

    def close(self) -> None:
        """Ends it, unless it is kept. Fine to call twice, and when its machine is gone."""
        if self._closed:
            return
        self._closed = True
        self._spawned.clear()
        if self._ports is not None:
            self._ports.release()
        try:
            if self._environment is not None:
                if self._kept.lives:
                    self._environment._let_go()
                else:
                    self._environment.close()
        finally:
            if self._own:
                self._end_machine()

    def _end_machine(self) -> None:
        from testyard import _hold

        if not _hold.unhold(self.machine.name):
            try:
                self.machine.delete(force=True, missing_ok=True)
            except MachineNotFound:
                pass
        self.machine.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.shown}>"


class IsolatedEnv(RecordedPlace):
    """The fixture `isolated_env`: an environment of the test's own."""


class Vm(RecordedPlace):
    """The fixture `vm`: machine-like, fresh for the test, root inside."""


def keep(name: str, seconds: float, test: str, let_live: Callable[[float], object]) -> Kept:
    """Keeps the environment of this name, `MACHINE/eNUMBER`, for so long; `let_live` has its machine do so."""
    from testyard import _hold

    try:
        # Written down first: its machine lives on for what is written down.
        command = _hold.keep(name, seconds, test)
        let_live(seconds)
    except TestyardError as error:
        return Kept(lives=False, told=f"not kept: {error}\n")
    home = os.environ.get("TESTYARD_HOME")
    prefix = f"TESTYARD_HOME={home} " if home else ""
    return Kept(lives=True, told=f"kept for {seconds:g} s; look at it: {prefix}{command}\n")


def unframed(action: Callable[[], Answer]) -> Answer:
    """What this gives; its errors come without the package's own frames."""
    __tracebackhide__ = True
    try:
        return action()
    except TestyardError as error:
        raise error.with_traceback(None) from None


def _failure(done: Completed, timeout: Optional[float]) -> TestyardError:
    from testyard.errors import CommandFailed, CommandNotStarted, CommandTimedOut

    if done.timed_out:
        return CommandTimedOut(done.args, timeout or 0, done.stdout, done.stderr)
    if done.returncode == 127 and not done.usage:
        return CommandNotStarted(done.args, TestyardError(str(done.stderr)))
    return CommandFailed(done.args, done.returncode, done.stdout, done.stderr)


def _both(stdout: Any, stderr: Any) -> str:
    texts = [str(text, "utf-8", "replace") if isinstance(text, bytes) else text for text in (stdout, stderr)]
    return "".join(_tail(text) if text.endswith("\n") else _tail(text) + "\n" for text in texts if text)


def _state(process: Process) -> str:
    try:
        code = process.poll()
    except TestyardError as error:
        return error.message
    return "still running" if code is None else f"exit code {code}"


def _output(process: Process) -> str:
    try:
        return _both(process.output(), process.errors())
    except (TestyardError, OSError, ValueError):
        return ""


def _tail(text: str) -> str:
    return text if len(text) <= SHOWN else f"[… {len(text) - SHOWN} characters left out]\n{text[-SHOWN:]}"


def _short(text: str) -> str:
    return text if len(text) <= 500 else text[:500] + " …"
