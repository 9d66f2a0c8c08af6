"""One connection to a machine: frames in and out, one thread at a time."""

from __future__ import annotations

import collections
import contextlib
import json
import os
import select
import socket
import threading
from typing import Any, Callable, Deque, Iterator, NamedTuple, Optional, Sequence

from . import _protocol as protocol
from .errors import ConnectionLost, InvalidInput, NotSupported, ProtocolMismatch, TestyardError, from_problem

_WELCOME_SECONDS = 20.0
# Below what an allocator maps and unmaps for each read.
_READ = 64 * 1024


class Frame(NamedTuple):
    """What came: its kind, channel, stream, payload, and descriptors that came with it."""

    kind: int
    channel: int
    stream: int
    payload: bytes
    descriptors: tuple[int, ...]


class Connection:
    """A greeted connection to a machine's agent or supervisor."""

    def __init__(self, path: str, machine: str, role: str = "agent") -> None:
        self.machine = machine
        self._buffer = bytearray()
        self._attached: Deque[int] = collections.deque()
        self._sending = threading.Lock()
        self._next = 1
        self._owed: set[int] = set()
        self._owner = os.getpid()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._greet(path, role)
        except BaseException:
            self.close()
            raise

    def _greet(self, path: str, role: str) -> None:
        self._socket.settimeout(_WELCOME_SECONDS)
        try:
            self._socket.connect(path)
        except OSError as error:
            raise ConnectionLost(
                f"machine {self.machine} does not answer",
                causes=[f"{path}: {error.strerror or error}"],
                hints=[f"see how it is: testyard info {self.machine}", f"start it: testyard start {self.machine}"],
            ) from None
        versions = {"oldest": protocol.OLDEST_VERSION, "newest": protocol.VERSION}
        self.send(0, {"hello": {**versions, "role": role, "client": "testyard-python"}})
        welcome = self.event(0).get("welcome")
        if not isinstance(welcome, dict):
            raise ProtocolMismatch(f"machine {self.machine} did not say welcome")
        self.version = int(welcome["version"])
        if not protocol.OLDEST_VERSION <= self.version <= protocol.VERSION:
            raise ProtocolMismatch(
                f"machine {self.machine} speaks version {self.version} of the protocol",
                causes=[f"this package speaks {protocol.OLDEST_VERSION} to {protocol.VERSION}"],
                hints=[f"restart it with this package's program: testyard restart {self.machine}"],
            )
        self._socket.settimeout(None)

    def require(self, version: int, what: str) -> None:
        """Raises NotSupported where the machine speaks an older version than that."""
        if self.version < version:
            raise NotSupported(
                f"machine {self.machine} is too old to {what}",
                causes=[f"it speaks version {self.version} of the protocol, not {version}"],
                hints=[f"restart it: testyard restart {self.machine}"],
            )

    def stream(self) -> int:
        """The number of a new stream."""
        number, self._next = self._next, self._next + 1
        return number

    def fileno(self) -> int:
        """The socket's descriptor."""
        return self._socket.fileno()

    def is_usable(self) -> bool:
        """Whether it is open, at rest but for answers that nobody waits for, and this process's own."""
        if self._owner != os.getpid() or self._socket.fileno() < 0:
            return False
        waiting = select.poll()
        waiting.register(self._socket, select.POLLIN)
        try:
            while self._owed and (self._buffer or waiting.poll(0)):
                self._close_attached(self.receive())
        except TestyardError:
            return False
        if self._owed:
            return True
        # Readable means its end, or a word that nobody waits for: either way it is not at rest.
        return not self._buffer and not waiting.poll(0)

    def send_unawaited(self, request: Any) -> None:
        """Sends a request whose answer nobody waits for: it is dropped when it comes."""
        stream = self.stream()
        self.send(stream, request)
        self.owe(stream)

    def owe(self, stream: int) -> None:
        """Nobody waits for this stream's next message."""
        self._owed.add(stream)

    @contextlib.contextmanager
    def patience(self, seconds: float) -> Iterator[None]:
        """For so long at most each read waits meanwhile. Raises ConnectionLost."""
        self._socket.settimeout(seconds)
        try:
            yield
        finally:
            self._socket.settimeout(None)

    def close(self) -> None:
        """Ends it, and what it holds. A forked child only lets go of its own copy."""
        self._socket.close()
        while self._attached:
            os.close(self._attached.popleft())

    def lost(self, cause: str) -> ConnectionLost:
        """The error of a machine that went away."""
        hint = f"see what happened: testyard logs {self.machine}"
        return ConnectionLost(f"the connection to machine {self.machine} was lost", causes=[cause], hints=[hint])

    def send(self, stream: int, message: Any, descriptors: Sequence[int] = ()) -> None:
        """Sends a message."""
        payload = json.dumps(message, separators=(",", ":")).encode()
        if len(payload) > protocol.MAX_MESSAGE:
            hint = "pass long data on standard input or in a file"
            raise InvalidInput(f"the request is longer than the {protocol.MAX_MESSAGE >> 20} MiB of one", hints=[hint])
        self.send_frame(protocol.MESSAGE, 0, stream, payload, descriptors)

    def send_frame(self, kind: int, channel: int, stream: int, payload: bytes, descriptors: Sequence[int] = ()) -> None:
        """Sends a frame whole; the descriptors go with its first byte."""
        data = protocol.HEADER.pack(len(payload), kind, channel, len(descriptors), 0, stream) + payload
        try:
            with self._sending:
                if descriptors:
                    sent = socket.send_fds(self._socket, [data], list(descriptors))
                    data = data[sent:]
                if data:
                    self._socket.sendall(data)
        except socket.timeout:
            raise self.lost("it took no message in time") from None
        except OSError as error:
            raise self.lost(error.strerror or str(error)) from None

    def receive(self) -> Frame:
        """The next frame.

        Raises ConnectionLost at the end of the connection."""
        head = protocol.HEADER.size
        self._fill(head)
        length, kind, channel, attached, _, stream = protocol.HEADER.unpack_from(self._buffer)
        most = protocol.MAX_MESSAGE if kind == protocol.MESSAGE else protocol.MAX_PAYLOAD
        if length > most or attached > protocol.MAX_ATTACHED or not protocol.MESSAGE <= kind <= protocol.END:
            raise ProtocolMismatch(f"machine {self.machine} sent what is no frame")
        self._fill(head + length)
        payload = bytes(self._buffer[head : head + length])
        del self._buffer[: head + length]
        if attached > len(self._attached):
            raise ProtocolMismatch(f"machine {self.machine} announced more descriptors than it sent")
        if kind == protocol.MESSAGE:
            self._owed.discard(stream)
        return Frame(kind, channel, stream, payload, tuple(self._attached.popleft() for _ in range(attached)))

    @staticmethod
    def _close_attached(frame: Frame) -> None:
        for descriptor in frame.descriptors:
            os.close(descriptor)

    def _fill(self, wanted: int) -> None:
        while len(self._buffer) < wanted:
            try:
                data, ancillary, _, _ = self._socket.recvmsg(
                    _READ, socket.CMSG_SPACE(4 * protocol.MAX_ATTACHED), socket.MSG_CMSG_CLOEXEC
                )
            except socket.timeout:
                raise self.lost("it did not answer in time") from None
            except OSError as error:
                raise self.lost(error.strerror or str(error)) from None
            for level, kind, content in ancillary:
                if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                    usable = content[: len(content) - len(content) % 4]
                    self._attached.extend(memoryview(usable).cast("i"))
            if not data:
                raise self.lost("the other side closed it")
            self._buffer += data

    def event(self, stream: int, attached: Optional[list[int]] = None) -> dict[str, Any]:
        """The next event of a stream; its descriptors are appended to `attached`.

        Raises what `failed` tells."""
        while True:
            frame = self.receive()
            if frame.kind != protocol.MESSAGE or frame.stream != stream:
                self._close_attached(frame)
                continue
            message = json.loads(frame.payload)
            if isinstance(message, dict) and "failed" in message:
                self._close_attached(frame)
                raise self.problem(message["failed"])
            if attached is not None:
                attached.extend(frame.descriptors)
            return message if isinstance(message, dict) else {str(message): None}

    def problem(self, problem: Any) -> TestyardError:
        """The error that a `failed` means."""
        return from_problem(problem if isinstance(problem, dict) else {"message": str(problem)})

    def request(
        self, request: Any, descriptors: Sequence[int] = (), attached: Optional[list[int]] = None
    ) -> dict[str, Any]:
        """Sends a request and waits for its last event."""
        stream = self.stream()
        self.send(stream, request, descriptors)
        return self.event(stream, attached)


class Exchange:
    """One command over one connection: its input, its output, and how it ended."""

    def __init__(self, connection: Connection, request: Any, descriptors: Sequence[int] = ()) -> None:
        self.connection = connection
        self.number = connection.stream()
        self._credit = protocol.WINDOW
        self._granted = threading.Condition()
        self._taken = [0, 0, 0]
        self.over = False
        connection.send(self.number, request, descriptors)

    def send(self, message: Any) -> None:
        """A word to the command: a signal, say."""
        self.connection.send(self.number, message)

    def feed_some(self, data: memoryview) -> memoryview:
        """Sends as much input as there is credit for; what is left."""
        while data and self._credit:
            part = data[: min(len(data), self._credit, protocol.MAX_PAYLOAD)]
            self._credit -= len(part)
            self.connection.send_frame(protocol.DATA, 0, self.number, bytes(part))
            data = data[len(part) :]
        return data

    def feed(self, data: memoryview) -> None:
        """Sends all of it, waiting for credit that another thread's `pump` notices.

        Raises BrokenPipeError once the command is over."""
        while data:
            with self._granted:
                while not self._credit and not self.over:
                    self._granted.wait()
                if self.over:
                    raise BrokenPipeError("the command has ended")
                part = data[: min(len(data), self._credit, protocol.MAX_PAYLOAD)]
                self._credit -= len(part)
            try:
                self.connection.send_frame(protocol.DATA, 0, self.number, bytes(part))
            except ConnectionLost:
                # Whoever heard the command's end closed it meanwhile.
                if self.over:
                    raise BrokenPipeError("the command has ended") from None
                raise
            data = data[len(part) :]

    def end_input(self) -> None:
        """No more input."""
        self.connection.send_frame(protocol.END, 0, self.number, b"")

    def pump(self, output: Callable[[int, bytes], object]) -> Optional[dict[str, Any]]:
        """Takes one frame in: output is given away, its credit given back. The last event, once it came.

        Raises what `failed` tells."""
        frame = self.connection.receive()
        if frame.stream != self.number:
            return None
        if frame.kind == protocol.DATA:
            output(frame.channel, frame.payload)
            self._give_back(frame.channel, len(frame.payload))
        elif frame.kind == protocol.CREDIT and frame.channel == 0:
            with self._granted:
                self._credit += int.from_bytes(frame.payload[:4], "little")
                self._granted.notify_all()
        elif frame.kind == protocol.MESSAGE:
            message = json.loads(frame.payload)
            if isinstance(message, dict):
                if "failed" in message:
                    raise self.connection.problem(message["failed"])
                return message
        return None

    def _give_back(self, channel: int, count: int) -> None:
        if channel > 2:
            return
        self._taken[channel] += count
        if self._taken[channel] >= protocol.WINDOW // 4:
            payload = self._taken[channel].to_bytes(4, "little")
            self._taken[channel] = 0
            self.connection.send_frame(protocol.CREDIT, channel, self.number, payload)

    def finish(self) -> None:
        """Wakes whoever waits to send more input."""
        with self._granted:
            self.over = True
            self._granted.notify_all()


class Connections:
    """Connections to one machine that are at rest, for the next who needs one. Safe under threads and forks."""

    _MOST = 8

    def __init__(self, path: Callable[[], str], machine: str) -> None:
        self._path = path
        self.machine = machine
        self._lock = threading.Lock()
        self._resting: list[Connection] = []

    def take(self) -> Connection:
        """One that nobody else uses."""
        while True:
            with self._lock:
                connection = self._resting.pop() if self._resting else None
            if connection is None:
                return Connection(self._path(), self.machine)
            if connection.is_usable():
                return connection
            connection.close()

    def give_back(self, connection: Connection) -> None:
        """It is at rest again."""
        with self._lock:
            if len(self._resting) < self._MOST:
                self._resting.append(connection)
                return
        connection.close()

    def close(self) -> None:
        """Ends all that are at rest."""
        with self._lock:
            resting, self._resting = self._resting, []
        for connection in resting:
            connection.close()

    @contextlib.contextmanager
    def lent(self) -> Iterator[Connection]:
        """One of them for a while. It is at rest again afterwards, unless what went wrong leaves it in the middle of
        something."""
        connection = self.take()
        try:
            yield connection
        except TestyardError as error:
            self._spare(connection, error)
            raise
        except BaseException:
            connection.close()
            raise
        self.give_back(connection)

    def tell(self, request: Any) -> None:
        """A request whose answer nobody waits for, over one of them."""
        with self.lent() as connection:
            connection.send_unawaited(request)

    def ask(
        self, request: Any, descriptors: Sequence[int] = (), attached: Optional[list[int]] = None
    ) -> dict[str, Any]:
        """A request over one of them."""
        with self.lent() as connection:
            return connection.request(request, descriptors, attached)

    def _spare(self, connection: Connection, error: TestyardError) -> None:
        """A refusal leaves the connection as it was; anything else does not."""
        if isinstance(error, (ConnectionLost, ProtocolMismatch)):
            connection.close()
        else:
            self.give_back(connection)
