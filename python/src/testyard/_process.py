"""Commands: their results, and those that still run."""

from __future__ import annotations

import collections
import io
import os
import threading
from typing import IO, Any, Callable, Deque, Iterator, Mapping, NamedTuple, Optional, Union

from . import _given as given
from . import _protocol as protocol
from ._connection import Connection, Connections, Exchange
from .errors import (
    CommandFailed,
    CommandNotStarted,
    CommandTimedOut,
    ConnectionLost,
    InvalidInput,
    TestyardError,
    TimedOut,
)

#: A stream of a command that this process reads or writes.
PIPE = -1
#: A stream of a command that is `/dev/null`.
DEVNULL = -3

Target = Union[None, int, IO[Any]]
Text = Union[str, bytes]


class Completed(NamedTuple):
    """How a command ended."""

    #: The command as it was given.
    args: protocol.Command
    #: Its exit code: 128+n for signal n, 124 where its time was up, 127 where it could not be started.
    returncode: int
    #: What it wrote: text (bytes that are no UTF-8 replaced), or bytes with `text=False`.
    stdout: Any
    #: The same of its error output.
    stderr: Any
    #: What it used: `wall_us`, `cpu_us`, `memory_peak` in bytes and more, as in the JSON of `testyard exec`.
    usage: Mapping[str, Any]
    #: Whether it was ended because its time was up.
    timed_out: bool

    def check(self) -> Completed:
        """Itself, if the command ended with 0.

        Raises CommandFailed."""
        if self.returncode != 0:
            raise CommandFailed(self.args, self.returncode, self.stdout, self.stderr)
        return self


def run(
    connections: Connections,
    command: protocol.Command,
    request: dict[str, Any],
    *,
    check: bool,
    timeout: Optional[float],
    input: Optional[Text],
    text: bool,
) -> Completed:
    """Runs a command to its end, over a connection at rest."""
    data = ready(request, input, quiet=True)
    try:
        # Where nobody reads its end any more, closing ends the command.
        with connections.lent() as connection:
            done, _ = converse(Exchange(connection, request), command, data, text)
    except TestyardError as error:
        done = not_started(command, error, check, text)
    return checked(done, check, timeout)


def ready(request: dict[str, Any], input: Optional[Text], quiet: bool) -> Optional[bytes]:
    """Says in a request where a command's streams go that is run to its end; what it is given to read."""
    data = None if input is None else given.content(input)
    request["exec"].update(stdin="null" if data is None else "frames", stdout="frames", stderr="frames", quiet=quiet)
    return data


def converse(
    exchange: Exchange,
    command: protocol.Command,
    data: Optional[bytes],
    text: bool,
    started: Callable[[Mapping[str, Any]], object] = lambda _: None,
) -> tuple[Completed, Mapping[str, Any]]:
    """Follows a command to its end: how it ended, and what was told of that. Raises what `failed` tells."""
    parts: tuple[list[bytes], ...] = ([], [], [])

    def take(channel: int, part: bytes) -> None:
        parts[channel % 3].append(part)

    told = follow(exchange, take, data, started)
    out, err = (_text(b"".join(part)) if text else b"".join(part) for part in parts[1:])
    code, timed_out = protocol.code_of(told["status"])
    return Completed(command, code, out, err, told.get("usage", {}), timed_out), told


def follow(
    exchange: Exchange,
    take: Callable[[int, bytes], object],
    data: Optional[bytes] = None,
    started: Callable[[Mapping[str, Any]], object] = lambda _: None,
) -> Mapping[str, Any]:
    """Follows a command to its end, its output given away as it comes: what was told of its end. Raises what `failed`
    tells."""
    left = memoryview(data or b"")
    open_input = data is not None
    while True:
        if open_input:
            left = exchange.feed_some(left)
            if not left:
                exchange.end_input()
                open_input = False
        event = exchange.pump(take)
        if event is None:
            continue
        if "exited" in event:
            return event["exited"]  # type: ignore[no-any-return]
        if "started" in event:
            started(event["started"])


def not_started(command: protocol.Command, error: TestyardError, check: bool, text: bool) -> Completed:
    """A command that there is no program or folder for, as a shell tells it. Raises what is another error."""
    if error.kind != "command":
        raise error
    if check:
        raise CommandNotStarted(command, error) from None
    return Completed(command, 127, "" if text else b"", error.message if text else error.message.encode(), {}, False)


def checked(done: Completed, check: bool, timeout: Optional[float]) -> Completed:
    """The same. Raises CommandTimedOut and CommandFailed where that is asked for."""
    if check and done.timed_out:
        raise CommandTimedOut(done.args, timeout or 0, done.stdout, done.stderr)
    return done.check() if check else done


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")


class _Output(io.RawIOBase):
    """What a command writes, as a file: filled by one thread, read by others. Nothing bounds what is kept, so that
    a command never waits for its reader."""

    def __init__(self) -> None:
        super().__init__()
        self._parts: Deque[bytes] = collections.deque()
        self._all: list[bytes] = []
        self._ended = False
        self._more = threading.Condition()

    def add(self, data: bytes) -> None:
        with self._more:
            self._parts.append(data)
            self._all.append(data)
            self._more.notify_all()

    def end(self) -> None:
        with self._more:
            self._ended = True
            self._more.notify_all()

    def so_far(self) -> bytes:
        with self._more:
            return b"".join(self._all)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        with self._more:
            while not self._parts and not self._ended:
                self._more.wait()
            if not self._parts:
                return 0
            data = self._parts.popleft()
            count = min(len(data), len(view))
            if count < len(data):
                self._parts.appendleft(data[count:])
        view[:count] = data[:count]
        return count


class _Input(io.RawIOBase):
    """A command's standard input as a file."""

    def __init__(self, exchange: Exchange) -> None:
        super().__init__()
        self._exchange = exchange

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        self._exchange.feed(view)
        return len(view)

    def close(self) -> None:
        if not self.closed and not self._exchange.over:
            try:
                self._exchange.end_input()
            except TestyardError:
                pass  # Its command, or its machine, has ended: there is no input to end.
        super().close()


class Process:
    """A command that runs. Use it as a context manager, or call `wait` or `close`: it ends at the latest with this
    process, however that ends."""

    def __init__(
        self,
        connection: Connection,
        command: protocol.Command,
        request: dict[str, Any],
        *,
        streams: tuple[list[Any], list[int]],
        text: bool,
        timeout: Optional[float],
        detach: bool,
    ) -> None:
        self.args = command
        #: Its exit code once it has ended, as of `Completed`.
        self.returncode: Optional[int] = None
        #: What it used, once it has ended.
        self.usage: Mapping[str, Any] = {}
        self.timed_out = False
        #: Its process id on the host; 0 where that is only known inside.
        self.pid = 0
        self._timeout = timeout
        self._connection = connection
        self._ended = threading.Event()
        self._error: Optional[BaseException] = None
        self._outputs = [_Output(), _Output()]
        targets, descriptors = streams
        said = {"stdin": targets[0], "stdout": targets[1], "stderr": targets[2]}
        request["exec"].update(said, quiet=False, detach=detach)
        try:
            self._exchange = Exchange(connection, request, descriptors)
        except BaseException:
            connection.close()
            raise
        raw_input = _Input(self._exchange) if targets[0] == "frames" else None
        #: Its standard input to write to, where that was asked for.
        self.stdin: Any = raw_input
        if raw_input is not None and text:
            # Without a buffer of its own: what is written is on its way.
            self.stdin = io.TextIOWrapper(raw_input, encoding="utf-8", write_through=True)
        readers = [self._reader(index, targets[index + 1], text) for index in (0, 1)]
        #: What it writes, to read from, where that was asked for.
        self.stdout: Any = readers[0]
        #: The same of its error output.
        self.stderr: Any = readers[1]
        self._text = text
        self._await_start()
        self._thread = threading.Thread(target=self._serve, name="testyard-command", daemon=True)
        self._thread.start()

    def _reader(self, index: int, target: Any, text: bool) -> Any:
        if target != "frames":
            return None
        buffered = io.BufferedReader(self._outputs[index])
        return io.TextIOWrapper(buffered, encoding="utf-8", errors="replace") if text else buffered

    def _await_start(self) -> None:
        try:
            while True:
                event = self._exchange.pump(self._take)
                if event is None:
                    continue
                if "started" in event:
                    self.pid = int(event["started"].get("pid", 0))
                else:
                    self._exited(event)
                return
        except BaseException:
            self._connection.close()
            raise

    def _take(self, channel: int, data: bytes) -> None:
        if 1 <= channel <= 2:
            self._outputs[channel - 1].add(data)

    def _exited(self, event: Mapping[str, Any]) -> None:
        if "exited" in event:
            code, self.timed_out = protocol.code_of(event["exited"]["status"])
            self.usage = event["exited"].get("usage", {})
            self.returncode = code

    def _serve(self) -> None:
        try:
            while self.returncode is None:
                event = self._exchange.pump(self._take)
                if event is not None:
                    self._exited(event)
        except BaseException as error:  # noqa: BLE001 - told to whoever waits
            told = isinstance(error, TestyardError) and error.kind == "command"
            self._error = CommandNotStarted(self.args, error) if told else error  # type: ignore[arg-type]
        finally:
            for output in self._outputs:
                output.end()
            self._exchange.finish()
            self._connection.close()
            self._ended.set()

    def poll(self) -> Optional[int]:
        """Its exit code, or None while it runs."""
        return self.wait(0) if self._ended.is_set() else None

    def wait(self, timeout: Optional[float] = None) -> int:
        """Waits for its end, at most `timeout` seconds; its exit code.

        Raises TimedOut while it goes on running, CommandNotStarted where there is no such program, ConnectionLost where
        its machine is gone."""
        if not self._ended.wait(given.seconds(timeout, "a timeout")):
            raise TimedOut(f"the command still runs after {timeout:g} s: {self.args!r}")
        if self._error is not None and self.returncode is None:
            raise self._error
        return self.returncode if self.returncode is not None else 255

    def communicate(self, input: Optional[Text] = None, timeout: Optional[float] = None) -> tuple[Any, Any]:
        """Gives it `input`, waits for its end (at most `timeout` seconds), and returns its unread output."""
        data = b"" if input is None else given.content(input)
        given.seconds(timeout, "a timeout")
        if self.stdin is not None:
            try:
                if data:
                    self._write(data)
                self._end_input()
            except BrokenPipeError:
                pass
        elif data:
            self._check_input()
        self.wait(timeout)
        out, err = (stream.read() if stream is not None else None for stream in (self.stdout, self.stderr))
        return out, err

    def _write(self, data: Text) -> None:
        """Writes text or bytes to its standard input, whichever of both it was opened for."""
        self._check_input()
        (self.stdin.buffer if self._text else self.stdin).write(given.content(data))

    def _end_input(self) -> None:
        self._check_input()
        self.stdin.close()

    def _check_input(self) -> None:
        if self.stdin is None:
            raise InvalidInput("the command was started without an input", hints=["spawn it with stdin=PIPE"])

    def output(self) -> Any:
        """All that it wrote to its standard output so far, read or not."""
        data = self._outputs[0].so_far()
        return _text(data) if self._text else data

    def errors(self) -> Any:
        """The same of its error output."""
        data = self._outputs[1].so_far()
        return _text(data) if self._text else data

    def send_signal(self, signal: int) -> None:
        """Sends it a signal. One that has ended is left alone."""
        self._say({"signal": given.signal(signal)})

    def terminate(self) -> None:
        """SIGTERM to it."""
        self.send_signal(15)

    def kill(self, signal: Optional[int] = None) -> None:
        """Ends it and all that it started; with a signal, only sends it that."""
        self._say("kill" if signal is None else {"signal": given.signal(signal)})

    def _say(self, message: Any) -> None:
        if self._ended.is_set():
            return
        try:
            self._exchange.send(message)
        except ConnectionLost:
            pass  # It has just ended.

    def close(self) -> None:
        """Ends it, if it still runs, and waits for that."""
        if not self._ended.is_set():
            self.kill()
            if not self._ended.wait(30):
                self._connection.close()

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[Any]:
        """The lines of its standard output."""
        if self.stdout is None:
            raise InvalidInput("its output goes elsewhere", hints=["spawn it with stdout=PIPE"])
        return iter(self.stdout)

    def __repr__(self) -> str:
        state = "running" if self.returncode is None else f"ended with {self.returncode}"
        return f"<Process {self.args!r} {state}>"


def streams_of(*targets: Target) -> tuple[list[Any], list[int]]:
    """Streams in the protocol's words, and the descriptors of those that are files.

    Raises InvalidInput where one of them is none."""
    descriptors: list[int] = []
    return [_target(one, descriptors) for one in targets], descriptors


def _target(target: Target, descriptors: list[int]) -> Any:
    if target is None or (isinstance(target, int) and target == DEVNULL):
        return "null"
    if isinstance(target, int) and target == PIPE:
        return "frames"
    number = given.descriptor(target)
    if os.isatty(number):
        raise InvalidInput("a terminal cannot be handed to a machine", hints=["use PIPE, or `testyard exec -t`"])
    descriptors.append(number)
    return {"attached": len(descriptors) - 1}
