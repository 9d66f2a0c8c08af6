"""One test's process: a fork of this interpreter that joins an environment, and what the parent knows of it."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import sys
import traceback
import warnings
from typing import Any, Iterator, NoReturn, Optional, Protocol

from . import _system
from ._door import Caller, Door, become, own_namespaces
from ._reports import Channel, Lines

_READ = 1 << 16


class Work(Protocol):
    """What a child does."""

    def prepare(self, channel: Channel, output: tuple[int, int]) -> None:
        """What can be done before it may begin."""

    def run(self, channel: Channel) -> None:
        """The rest."""


class Warm:
    """What every fork of this process needs to know, found out once."""

    def __init__(self, caller: Caller) -> None:
        _system.load()
        self.caller = caller
        self._namespaces = own_namespaces()
        self._pid_namespace = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
        #: Whether this process may choose the pid namespace of its next child; an ordinary user's may not.
        self._chooses = os.geteuid() == 0
        self._frozen = False

    def freeze(self) -> None:
        """Takes what is there now out of the garbage collector's sight, whose marks would copy every page of it."""
        if not self._frozen:
            self._frozen = True
            gc.collect()
            gc.freeze()

    def close(self) -> None:
        """Lets go of everything."""
        os.close(self._pid_namespace)
        if self._frozen:
            gc.unfreeze()

    def fork(self, door: Door, with_groups: bool, work: Work) -> Running:
        """Forks; in the child, in the environment, `work` is prepared at once and run once it may begin.

        Raises OSError: there is no process to be had, or the environment has ended already."""
        for stream in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__):
            with contextlib.suppress(Exception):
                stream.flush()  # type: ignore[union-attr]
        reader, writer = os.pipe()
        gate = os.pipe()
        output = (os.memfd_create("output"), os.memfd_create("errors"))
        try:
            with self._next_child_in(door):
                pid = os.fork()
        except BaseException:
            for descriptor in (reader, writer, *gate, *output):
                os.close(descriptor)
            raise
        if pid == 0:
            os.close(reader)
            os.close(gate[1])
            self._be_child(door, with_groups, writer, gate[0], output, work)
        os.close(writer)
        return Running(door, pid, reader, gate, output, stands_in=not self._chooses)

    @contextlib.contextmanager
    def _next_child_in(self, door: Door) -> Iterator[None]:
        with warnings.catch_warnings():
            # That threads are alive is told once, by name.
            warnings.simplefilter("ignore", DeprecationWarning)
            if not self._chooses:
                yield
                return
            _system.setns(door.pid_namespace)
            parent = os.getpid()
            try:
                yield
            finally:
                if os.getpid() == parent:
                    _system.setns(self._pid_namespace)

    def _be_child(
        self,
        door: Door,
        with_groups: bool,
        writer: int,
        gate: int,
        output: tuple[int, int],
        work: Work,
    ) -> NoReturn:
        status = 70
        try:
            if with_groups:
                door.join_groups()
            door.join(self._namespaces, pid_too=not self._chooses)
            os.close(self._pid_namespace)
            if not self._chooses:
                inner = os.fork()
                if inner:
                    _stand_in(inner, writer)
            become(self.caller)
            channel = Channel(writer)
            channel.send("inside", None)
            work.prepare(channel, output)
            if _may_begin(gate):
                work.run(channel)
            status = 0
        except BaseException:
            with contextlib.suppress(BaseException):
                Channel(writer).send("broken", traceback.format_exc())
        finally:
            for stream in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__):
                with contextlib.suppress(BaseException):
                    stream.flush()  # type: ignore[union-attr]
            os._exit(status)


def _may_begin(gate: int) -> bool:
    """Waits for the word; False where none will come."""
    try:
        return bool(os.read(gate, 1))
    except KeyboardInterrupt:
        return False
    finally:
        os.close(gate)


def _stand_in(inner: int, writer: int) -> NoReturn:
    """Waits for the real child, and ends as it ended; asked to end, it ends that first."""
    os.close(writer)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: os.kill(inner, signal.SIGKILL))
    _, status = os.waitpid(inner, 0)
    if os.WIFSIGNALED(status):
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        number = os.WTERMSIG(status)
        with contextlib.suppress(OSError):
            signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    os._exit(os.WEXITSTATUS(status))


class Running:
    """A child, seen from its parent."""

    def __init__(
        self, door: Door, pid: int, reader: int, gate: tuple[int, int], output: tuple[int, int], *, stands_in: bool
    ) -> None:
        self.door = door
        #: It is not the test's process itself, but waits for that.
        self._stands_in = stands_in
        self._pid = pid
        self._reader = reader
        #: Both ends: to write into it is no error, whoever has died.
        self._gate = gate
        self._output = output
        self._lines = Lines()
        self._pidfd = os.pidfd_open(pid)
        #: Its wait status, once it is known.
        self.status: Optional[int] = None
        #: It said that it is done.
        self.ended = False
        #: It got into its environment.
        self.inside = False

    def begin(self) -> None:
        """Lets it run."""
        os.write(self._gate[1], b"g")

    def descriptors(self) -> list[int]:
        """Readable when `listen` has something to do."""
        return [self._reader, self._pidfd]

    def listen(self) -> list[tuple[str, Any]]:
        """What it said since. After its end, everything that was left."""
        dead = bool(_system.readable([self._pidfd]))
        messages = []
        while _system.readable([self._reader]):
            data = os.read(self._reader, _READ)
            for kind, body in self._lines.feed(data):
                if kind == "inside":
                    self.inside = True
                elif kind == "end":
                    self.ended = True
                else:
                    messages.append((kind, body))
            if not data or not dead:
                break
        if dead and self.status is None:
            self.status = os.waitpid(self._pid, 0)[1]
        return messages

    @property
    def over(self) -> bool:
        """Whether nothing more is to come."""
        return self.ended or self.status is not None

    def kill(self) -> None:
        """Ends it at once, where it is still outside; inside, its environment's end ends it."""
        if self.status is None:
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def kill_inside(self) -> None:
        """Ends it, once it runs its test, in an environment that lives on."""
        if self.status is None:
            signal.pidfd_send_signal(self._pidfd, signal.SIGTERM if self._stands_in else signal.SIGKILL)

    def printed(self) -> list[tuple[str, str]]:
        """What it printed and could not say any more, as sections of a report."""
        sections = []
        for name, descriptor in zip(("stdout", "stderr"), self._output):
            size = os.fstat(descriptor).st_size
            text = os.pread(descriptor, min(size, _READ), max(0, size - _READ)).decode("utf-8", "replace")
            if text:
                sections.append(("Captured " + name, text))
        return sections

    def reap(self, wait: bool) -> bool:
        """Collects it; True once that is done."""
        if self.status is None:
            pid, status = os.waitpid(self._pid, 0 if wait else os.WNOHANG)
            if pid:
                self.status = status
        if self.status is None:
            return False
        self.close()
        return True

    def close(self) -> None:
        """Lets go of its descriptors."""
        for descriptor in (self._reader, self._pidfd, *self._gate, *self._output):
            if descriptor >= 0:
                os.close(descriptor)
        self._reader = self._pidfd = -1
        self._gate = self._output = (-1, -1)


def ending(status: int) -> str:
    """How a process ended, in words."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        try:
            name = signal.Signals(number).name
        except ValueError:
            name = "an unnamed signal"
        return f"was ended by {name} (signal {number})"
    return f"exited with status {os.WEXITSTATUS(status)} before the test was over"
