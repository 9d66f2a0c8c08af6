"""How calls that block are awaited, and commands for asyncio: the ground of `testyard.aio`."""

from __future__ import annotations

import asyncio
import functools
import threading
from typing import TYPE_CHECKING, Any, AsyncIterator, Callable, Generic, Mapping, Optional, TypeVar, cast

from . import _given as given
from ._place import Path, Place, User
from ._process import PIPE, Completed, Text, checked, not_started
from ._process import Process as BlockingProcess
from ._protocol import Command
from .errors import CommandNotStarted, InvalidInput, TestyardError

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

    from ._options import SpawnOptions

_Inner = TypeVar("_Inner", bound=Any)
_PlaceInner = TypeVar("_PlaceInner", bound=Place)
_Answer = TypeVar("_Answer")


async def call(function: Callable[..., _Answer], *arguments: Any, **options: Any) -> _Answer:
    """Does this in a thread."""
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(None, functools.partial(function, *arguments, **options))


async def made(
    undo: Callable[[_Answer], object], function: Callable[..., _Answer], *arguments: Any, **options: Any
) -> _Answer:
    """Makes something in a thread. A caller that is cancelled meanwhile leaves nothing of it: it is undone, in that
    thread, so that also the end of the event loop waits for it."""
    making = _Making(functools.partial(function, *arguments, **options), undo)
    try:
        return await call(making.make)
    except asyncio.CancelledError:
        finished = making.forsake()
        if finished is not None:
            asyncio.get_running_loop().run_in_executor(None, making.undone, finished)
        raise


class _Making(Generic[_Answer]):
    """Something that is being made, and may be wanted no more before it is there."""

    def __init__(self, function: Callable[[], _Answer], undo: Callable[[_Answer], object]) -> None:
        self._function = function
        self._undo = undo
        self._lock = threading.Lock()
        self._forsaken = False
        self._finished: Optional[_Answer] = None

    def make(self) -> _Answer:
        finished = self._function()
        with self._lock:
            self._finished = finished
            forsaken = self._forsaken
        if forsaken:
            self.undone(finished)
        return finished

    def forsake(self) -> Optional[_Answer]:
        """It is wanted no more; what is there already, for the caller to undo."""
        with self._lock:
            self._forsaken = True
            return self._finished

    def undone(self, finished: _Answer) -> None:
        try:
            self._undo(finished)
        except TestyardError:
            pass  # Nobody is there to be told. What is left is held by nobody, and goes with what it is in.


class Face(Generic[_Inner]):
    """An object of the blocking interface, whose calls are awaited."""

    __test__ = False
    #: What it is the face of.
    _of: type[Any] = object

    def __init__(self, inner: _Inner) -> None:
        if not isinstance(inner, self._of):
            hint = f"find it or make it: await testyard.aio.{type(self).__name__}.get(…), create(…)"
            raise given.refused(inner, f"testyard.{self._of.__name__}", hint)
        #: The object of the blocking interface.
        self.blocking = inner

    async def close(self) -> None:
        """As the blocking object's `close`."""
        await call(self.blocking.close)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await call(self.blocking.__exit__, None, None, None)

    def __repr__(self) -> str:
        return f"<async {self.blocking!r}>"


class Held(Face[_Inner]):
    """What has a name, and lives for as long as somebody holds it."""

    @property
    def name(self) -> str:
        """What people call it."""
        return str(self.blocking.name)

    async def state(self) -> str:
        """Its state now."""
        return await call(lambda: str(self.blocking.state))

    async def hold(self) -> None:
        """Deletes it when the last process that holds it is gone, however that ended."""
        await call(self.blocking.hold)

    async def unhold(self) -> None:
        """Lets go of it. Whoever is the last to do so deletes it."""
        await call(self.blocking.unhold)


class Process(Face[BlockingProcess]):
    """A command that runs."""

    _of = BlockingProcess

    @property
    def args(self) -> Command:
        """The command as it was given."""
        return self.blocking.args

    @property
    def returncode(self) -> Optional[int]:
        """Its exit code once it has ended."""
        return self.blocking.returncode

    @property
    def usage(self) -> Mapping[str, Any]:
        """What it used, once it has ended."""
        return self.blocking.usage

    @property
    def timed_out(self) -> bool:
        """Whether it was ended because its time was up."""
        return self.blocking.timed_out

    @property
    def pid(self) -> int:
        """Its process id on the host; 0 where that is only known inside."""
        return self.blocking.pid

    def poll(self) -> Optional[int]:
        """Its exit code, or None while it runs."""
        return self.blocking.poll()

    def output(self) -> Any:
        """All that it wrote to its standard output so far, read or not."""
        return self.blocking.output()

    def errors(self) -> Any:
        """The same of its error output."""
        return self.blocking.errors()

    async def wait(self, timeout: Optional[float] = None) -> int:
        """Waits for its end, at most `timeout` seconds; its exit code."""
        return await call(self.blocking.wait, timeout)

    async def communicate(self, input: Optional[Text] = None, timeout: Optional[float] = None) -> tuple[Any, Any]:
        """Gives it `input`, waits for its end, and returns what it wrote that was not read."""
        return await call(self.blocking.communicate, input, timeout)

    async def write(self, data: Text) -> None:
        """Writes to its standard input, which is `PIPE`."""
        await call(self.blocking._write, data)

    async def end_input(self) -> None:
        """No more input."""
        await call(self.blocking._end_input)

    async def lines(self) -> AsyncIterator[Any]:
        """The lines of its standard output, as they come."""
        if self.blocking.stdout is None:
            raise InvalidInput("its output goes elsewhere", hints=["spawn it with stdout=PIPE"])
        while True:
            line = await call(self.blocking.stdout.readline)
            if not line:
                return
            yield line

    def __aiter__(self) -> AsyncIterator[Any]:
        return self.lines()

    async def send_signal(self, signal: int) -> None:
        """Sends it a signal. One that has ended is left alone."""
        await call(self.blocking.send_signal, signal)

    async def terminate(self) -> None:
        """SIGTERM to it."""
        await call(self.blocking.terminate)

    async def kill(self, signal: Optional[int] = None) -> None:
        """Ends it and all that it started; with a signal, only sends it that."""
        await call(self.blocking.kill, signal)


async def run(
    place: Place,
    command: Command,
    *,
    check: bool,
    timeout: Optional[float],
    input: Optional[Text],
    text: bool,
    **options: Any,
) -> Completed:
    """Runs a command to its end; one whose caller is cancelled is ended with all that it started."""
    stdin = None if input is None else PIPE
    try:
        process = await made(
            BlockingProcess.kill, place.spawn, command, stdin=stdin, timeout=timeout, text=text, **options
        )
        try:
            out, err = await call(process.communicate, input)
        except asyncio.CancelledError:
            process.kill()
            raise
    except CommandNotStarted as error:
        return not_started(command, error, check, text)
    code = process.returncode if process.returncode is not None else 255
    done = Completed(command, code, out, err, process.usage, process.timed_out)
    return checked(done, check, timeout)


class AsyncPlace(Face[_PlaceInner]):
    """A place to run commands in."""

    async def run(
        self,
        command: Command,
        *,
        check: bool = True,
        timeout: Optional[float] = None,
        cwd: Optional[Path] = None,
        env: Optional[Mapping[str, str]] = None,
        user: User = None,
        input: Optional[Text] = None,
        text: bool = True,
    ) -> Completed:
        """As `Machine.run`. A caller that is cancelled ends the command."""
        how: dict[str, Any] = {"cwd": cwd, "env": env, "user": user}
        return await run(self.blocking, command, check=check, timeout=timeout, input=input, text=text, **how)

    async def spawn(self, command: Command, **options: Unpack[SpawnOptions]) -> Process:
        """As `Machine.spawn`."""
        given.options(options, Place.spawn, "Machine.spawn")
        return Process(await made(BlockingProcess.kill, self.blocking.spawn, command, **cast(Any, options)))

    async def write_file(self, path: Path, data: Text, *, mode: int = 0o644, user: User = None) -> None:
        """As `Machine.write_file`."""
        await call(self.blocking.write_file, path, data, mode=mode, user=user)

    async def read_file(self, path: Path, *, user: User = None) -> bytes:
        """As `Machine.read_file`."""
        return await call(self.blocking.read_file, path, user=user)

    async def read_text(self, path: Path, *, user: User = None) -> str:
        """As `Machine.read_text`."""
        return await call(self.blocking.read_text, path, user=user)

    async def push(self, source: Path, destination: Path, *, user: User = None) -> None:
        """As `Machine.push`."""
        await call(self.blocking.push, source, destination, user=user)

    async def pull(self, source: Path, destination: Path, *, user: User = None) -> None:
        """As `Machine.pull`."""
        await call(self.blocking.pull, source, destination, user=user)
