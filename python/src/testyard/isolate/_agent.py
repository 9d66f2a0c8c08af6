"""The agent of a machine, asked without waiting: requests go out ahead of need, their answers are read while tests run.

The warm interpreter is forked for each test, so there is no thread here, and no lock: one socket, one owner.
"""

from __future__ import annotations

import json
import os
import time
from typing import Any, NamedTuple, Optional, Sequence

from .. import _protocol as protocol
from .._connection import Connection
from .._source import open_source
from ..errors import InfrastructureError, TimedOut
from . import _system

#: The version of the protocol that has `enter-with`.
_SINCE = 4


class Reply(NamedTuple):
    """The last event of a request, and what came with it."""

    body: Any
    descriptors: list[int]


class Agent:
    """A connection to a machine's agent. The environments that it holds end with it, however this process ends."""

    def __init__(self, path: str, machine: str) -> None:
        self._connection = Connection(path, machine)
        self._connection.require(_SINCE, "let a running process into an environment that shows the working tree")
        self._replies: dict[int, Reply] = {}
        self._forgotten: set[int] = set()

    def fileno(self) -> int:
        """The socket, readable when there is something to `read`."""
        return self._connection.fileno()

    def show(self, path: str) -> int:
        """The number by which environments of this connection can show a folder of this host."""
        return open_source(self._connection, path)

    def ask(self, request: Any, descriptors: Sequence[int] = ()) -> int:
        """Sends a request; the number by which its answer is asked for."""
        stream = self._connection.stream()
        self._connection.send(stream, request, descriptors)
        return stream

    def forget(self, request: Any) -> None:
        """Sends a request whose answer nobody wants."""
        self._forgotten.add(self.ask(request))

    def read(self, seconds: float = 0.0) -> bool:
        """Takes in what was answered, waiting at most so long for the first of it. False when nothing came."""
        if not self._connection._buffer and not _system.readable([self.fileno()], seconds):
            return False
        while True:
            frame = self._connection.receive()
            if frame.kind != protocol.MESSAGE or frame.stream in self._forgotten:
                self._forgotten.discard(frame.stream)
                for descriptor in frame.descriptors:
                    os.close(descriptor)
            else:
                self._replies[frame.stream] = Reply(json.loads(frame.payload), list(frame.descriptors))
            if not self._connection._buffer and not _system.readable([self.fileno()]):
                return True

    def has(self, stream: int) -> bool:
        """Whether `take` has an answer."""
        return stream in self._replies

    def take(self, stream: int, kind: str) -> Optional[Reply]:
        """The answer to a request, if it came; its body is that of the event `kind`.

        Raises what `failed` tells."""
        reply = self._replies.pop(stream, None)
        if reply is None:
            return None
        body = reply.body if isinstance(reply.body, dict) else {reply.body: None}
        if "failed" in body:
            raise self._connection.problem(body["failed"])
        if kind not in body:
            raise InfrastructureError(f"the machine's agent answered {next(iter(body))} and not {kind}")
        return Reply(body[kind], reply.descriptors)

    def wait(self, stream: int, kind: str, seconds: float = 60.0) -> Reply:
        """The answer to a request, waited for at most so long, in seconds.

        Raises what `failed` tells, and TimedOut."""
        end = time.monotonic() + seconds
        while True:
            reply = self.take(stream, kind)
            if reply is not None:
                return reply
            if not self.read(end - time.monotonic()) and time.monotonic() >= end:
                raise TimedOut(f"the machine's agent did not answer within {seconds:g} seconds")

    def leave(self) -> None:
        """In a fork: lets go of what came for the parent."""
        for reply in self._replies.values():
            for descriptor in reply.descriptors:
                os.close(descriptor)
        self._replies = {}

    def close(self) -> None:
        """Lets go of everything that this connection holds."""
        self._connection.close()
