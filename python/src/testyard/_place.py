"""What machines and environments have in common: commands run in them, and files lie in them."""

from __future__ import annotations

import os
from typing import Any, BinaryIO, Callable, Mapping, Optional, TypeVar, Union

from . import _given as given
from . import _protocol as protocol
from ._connection import Connections
from ._process import PIPE, Completed, Process, Target, Text, run, streams_of
from .errors import InvalidInput, TestyardError

User = Union[None, str, int]
Path = Union[str, "os.PathLike[str]"]
_Answer = TypeVar("_Answer")
#: How a command runs: its folder, variables, user and limit of time.
_How = tuple[Optional[Path], Optional[Mapping[str, str]], User, Optional[float]]


class Place:
    """A place to run commands in."""

    __test__ = False
    _connections: Connections

    def _place(self) -> Any:
        """Where commands run, in the protocol's words."""
        raise NotImplementedError

    def _environment(self) -> Optional[int]:
        """The number of the environment whose files are meant."""
        return None

    def _extras(self) -> dict[str, Any]:
        """What every command here is given besides."""
        return {}

    def run(
        self,
        command: protocol.Command,
        *,
        check: bool = True,
        timeout: Optional[float] = None,
        cwd: Optional[Path] = None,
        env: Optional[Mapping[str, str]] = None,
        user: User = None,
        input: Optional[Text] = None,
        text: bool = True,
    ) -> Completed:
        """Runs a command to its end.

        A string is given to the shell, a sequence of words is run verbatim. After `timeout` seconds the command ends,
        with all that it started. `user` is a name, `"root"` or a number. Raises CommandFailed (unless `check` is
        false), CommandTimedOut, CommandNotStarted, and what befalls the machine."""
        return self._run(command, (cwd, env, user, timeout), check=check, input=input, text=text)

    def spawn(
        self,
        command: protocol.Command,
        *,
        stdin: Target = None,
        stdout: Target = PIPE,
        stderr: Target = PIPE,
        cwd: Optional[Path] = None,
        env: Optional[Mapping[str, str]] = None,
        user: User = None,
        timeout: Optional[float] = None,
        text: bool = True,
        detach: bool = False,
    ) -> Process:
        """Starts a command. Its streams are `PIPE`, `DEVNULL` (or None), or files of this process, which it is handed.

        With `detach` it outlives this process. That there is no such program is told by `Process.wait`."""
        request = self._exec(command, cwd, env, user, timeout)
        streams = streams_of(stdin, stdout, stderr)
        given.flag(detach, "detach")
        connection = self._connections.take()
        return Process(
            connection,
            command,
            request,
            streams=streams,
            text=text,
            timeout=timeout,
            detach=detach,
        )

    def write_file(self, path: Path, data: Text, *, mode: int = 0o644, user: User = None) -> None:
        """Writes a file, whose folder must exist, whole or not at all. It belongs to `user`, else to whom commands run
        as here; relative paths are below that one's home."""
        from ._trees import Sender

        content = given.content(data)
        given.whole(mode, "mode of a file", 0, 0o7777)
        self._send(path, user, lambda out: Sender(out).bytes_as_file(content, mode))

    def read_file(self, path: Path, *, user: User = None) -> bytes:
        """What is in a file, at most 2 GiB.

        Raises NotFound, InvalidInput where it is a folder."""
        from ._trees import Receiver

        return self._receive(path, user, lambda source: Receiver(source).file())

    def read_text(self, path: Path, *, user: User = None) -> str:
        """The same as text; bytes that are no UTF-8 are replaced."""
        return self.read_file(path, user=user).decode("utf-8", "replace")

    def push(self, source: Path, destination: Path, *, user: User = None) -> None:
        """Copies a file or folder in, as `cp -r` would: into `destination` where that is a folder, else as it.
        `folder/.` means what is in a folder."""
        from ._trees import Sender, local_error

        path = given.path(source)
        if not os.path.exists(path):
            raise local_error(FileNotFoundError(), path)
        self._send(destination, user, lambda out: Sender(out).path(path))

    def pull(self, source: Path, destination: Path, *, user: User = None) -> None:
        """Copies a file or folder out, by the same rules. Set-user bits and devices do not come along."""
        from ._trees import Receiver

        path = os.path.abspath(given.path(destination))
        if not os.path.isdir(os.path.dirname(path)):
            raise InvalidInput(f"{os.path.dirname(path)} is no folder to copy into", hints=["make it first"])
        self._receive(source, user, lambda stream: Receiver(stream).tree(path))

    def _run(
        self, command: protocol.Command, how: _How, *, check: bool, input: Optional[Text], text: bool
    ) -> Completed:
        """Runs a command to its end in a place that is there."""
        request = self._exec(command, *how)
        return run(self._connections, command, request, check=check, timeout=how[3], input=input, text=text)

    def _exec(
        self,
        command: protocol.Command,
        cwd: Optional[Path],
        env: Optional[Mapping[str, str]],
        user: User,
        timeout: Optional[float],
    ) -> dict[str, Any]:
        """A command's request, its streams yet to be said. Mistakes are told before anything is connected."""
        return protocol.exec_request(
            command,
            place=self._place(),
            cwd=cwd,
            env=env,
            user=user,
            timeout=timeout,
            **self._extras(),
        )

    def _transfer(self, path: Path, user: User) -> dict[str, Any]:
        transfer: dict[str, Any] = {"path": protocol.raw(given.path(path)), "carrier": "pipe"}
        if user is not None:
            transfer["user"] = protocol.user_of(user)
        if self._environment() is not None:
            transfer["environment"] = self._environment()
        return transfer

    def _send(self, path: Path, user: User, write: Callable[[BinaryIO], object]) -> None:
        def move(outside: int) -> None:
            with open(outside, "wb", buffering=256 * 1024) as out:
                write(out)

        self._move({"push": self._transfer(path, user)}, move, ours_reads=False)

    def _receive(self, path: Path, user: User, read: Callable[[BinaryIO], _Answer]) -> _Answer:
        def move(outside: int) -> _Answer:
            with open(outside, "rb", buffering=256 * 1024) as source:
                answer = read(source)
                # The other side writes to the end, whatever of it is wanted.
                while source.read(1 << 20):
                    pass
                return answer

        return self._move({"pull": self._transfer(path, user)}, move, ours_reads=True)

    def _move(self, request: Any, move: Callable[[int], _Answer], *, ours_reads: bool) -> _Answer:
        from ._trees import local_error

        trouble: Optional[BaseException] = None
        answer: Any = None
        with self._connections.lent() as connection:
            connection.require(3, "take files over a pipe")
            stream = connection.stream()
            reading, writing = os.pipe()
            ours, theirs = (reading, writing) if ours_reads else (writing, reading)
            try:
                try:
                    connection.send(stream, request, [theirs])
                finally:
                    os.close(theirs)
                try:
                    descriptor, ours = ours, -1
                    answer = move(descriptor)
                except (TestyardError, OSError, EOFError) as error:
                    trouble = error
                try:
                    connection.event(stream)
                except TestyardError:
                    # What the machine says explains a broken pipe, but not what this side refused.
                    if trouble is None or isinstance(trouble, (BrokenPipeError, EOFError)):
                        raise
            finally:
                if ours >= 0:
                    os.close(ours)
        if isinstance(trouble, OSError):
            raise local_error(trouble, str(trouble.filename or "the transfer"))
        if trouble is not None:
            raise trouble
        return answer  # type: ignore[no-any-return]
