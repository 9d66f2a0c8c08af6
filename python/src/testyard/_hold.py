"""Machines that this process holds: they are deleted when the last process that holds them is gone, however it ended.

A small process, `testyard hold`, does the deleting; several where several threads make machines at once. It reads
requests from a pipe whose other end only this process has, so the kernel tells it of this process's end. It is started
at need and ends when nothing is held; its own session keeps the terminal's signals away.

A forked child does not hold: its copy of the pipe is closed at the fork, else machines would live as long as the last
child that happens to run on. One that wants to hold calls `hold` itself, and gets a keeper of its own.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
import threading
import zlib
from typing import TYPE_CHECKING, Any, Optional, Sequence

from .errors import BinaryNotFound, ConnectionLost, ProtocolMismatch, TestyardError, WrongState, from_problem

if TYPE_CHECKING:
    import subprocess


def hold(name: str) -> dict[str, Any]:
    """Holds the machine of this name; holding twice is holding once. The machine, as the program's JSON has it.

    Raises MachineNotFound, and WrongState where its last holder has just let it go and it is ending."""
    return _ask(f"hold {name}", name)["machine"]  # type: ignore[no-any-return]


def create(arguments: Sequence[str]) -> dict[str, Any]:
    """`testyard create ARGUMENTS`, whose first is the name, held from before anything of it is made.

    Raises what creating raises."""
    import json

    return _ask(f"create {json.dumps(list(arguments))}", arguments[0])["machine"]  # type: ignore[no-any-return]


def create_cluster(arguments: Sequence[str]) -> dict[str, Any]:
    """`testyard cluster create ARGUMENTS`, kind and name first, held from before anything of it is made.

    Raises what creating raises."""
    import json

    return _ask(f"create-cluster {json.dumps(list(arguments))}", _CLUSTER + arguments[1])["cluster"]  # type: ignore[no-any-return]


def hold_cluster(name: str) -> dict[str, Any]:
    """Holds the cluster of this name; holding twice is holding once. The cluster, as the program's JSON has it.

    Raises ClusterNotFound, and WrongState where its last holder has just let it go and it is ending."""
    return _ask(f"hold-cluster {name}", _CLUSTER + name)["cluster"]  # type: ignore[no-any-return]


def unhold_cluster(name: str) -> bool:
    """Lets it go; whether it was deleted, because nobody else holds it. Not holding it is no error."""
    return unhold(_CLUSTER + name)


def unhold(name: str) -> bool:
    """Lets it go; whether it was deleted, because nobody else holds it. Not holding it is no error."""
    keeper = _holder_of(name)
    if keeper is None:
        return False
    with keeper.lock:
        keeper.held.discard(name)
        try:
            return bool(keeper.ask(_line("release", name)).get("deleted"))
        except (ConnectionLost, WrongState):
            # The keeper was killed: what nobody holds is deleted by the next command that looks around. Or another
            # thread was faster.
            return False
        finally:
            if not keeper.held:
                keeper.retire()


def unhold_all() -> None:
    """Lets go of all that this process holds in the home of this moment, and waits for what nobody else holds to go."""
    with _table:
        ours = [one for one in _keepers if one.home == _home()]
    for keeper in ours:
        with keeper.lock:
            keeper.held.clear()
            keeper.retire(patience=None)


def keep(environment: str, seconds: float, test: str) -> str:
    """Writes down that an environment, `MACHINE/eNUMBER`, is about to be kept. The command that enters it."""
    words = " ".join(test.split())
    return str(_ask(f"keep {environment} {max(1, round(seconds))}s {words}", None)["enter"])


class _Keeper:
    """A keeper process of this process, and what it was asked to hold."""

    def __init__(self) -> None:
        #: The home whose machines it holds: another one has other machines of the same names.
        self.home = _home()
        self.held: set[str] = set()
        #: Whoever has it may ask.
        self.lock = threading.Lock()
        self.process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        import subprocess

        from ._binary import program

        path = program()
        who = f"process {os.getpid()}: {os.path.basename(sys.argv[0] or 'python')}"
        try:
            # Its own session: what ends a terminal's processes shall not end it. Descriptors of ours are closed there.
            return subprocess.Popen(
                [path, "hold", "--for", who],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                bufsize=0,  # nothing of ours is left in a buffer that a forked child would write again
                start_new_session=True,
                cwd="/",
            )
        except OSError as error:
            raise BinaryNotFound(f"{path} does not start", causes=[error.strerror or str(error)]) from None

    def revive(self) -> None:
        """Another process in place of one that was killed, which holds what that one held and is still there."""
        self.let_go()
        with _table:
            self.process = self._start()
        names, self.held = self.held, set()
        for name in names:
            try:
                self.ask(_line("hold", name))
            except ConnectionLost:
                raise
            except TestyardError:
                continue
            self.held.add(name)

    def ask(self, line: str) -> dict[str, Any]:
        """One request. Raises what is wrong with it, and ConnectionLost where the keeper is gone."""
        import json

        assert self.process.stdin is not None and self.process.stdout is not None
        text, cause = b"", "it ended"
        try:
            self.process.stdin.write(line.encode() + b"\n")
            while not text.endswith(b"\n"):
                part = os.read(self.process.stdout.fileno(), 1 << 16)
                if not part:
                    break
                text += part
        except (OSError, ValueError) as error:
            cause = str(error)
        if not text.endswith(b"\n"):
            raise ConnectionLost(
                "the process that holds this one's machines is gone",
                causes=[cause],
                hints=["what nobody holds is deleted: testyard reap"],
            )
        try:
            answer = json.loads(text)
        except ValueError:
            words = text.decode("utf-8", "replace").strip()
            hint = "unset TESTYARD_BINARY to use the program of this package"
            raise ProtocolMismatch(f"the program testyard said what is no answer: {words}", hints=[hint]) from None
        if "error" in answer:
            raise from_problem(answer["error"])
        return dict(answer)

    def retire(self, patience: Optional[float] = 1.0) -> None:
        """Ends it, waiting so many seconds for that; whoever has its lock may call this."""
        import subprocess

        with _table:
            if self in _keepers:
                _keepers.remove(self)
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                stream.close()
        # It holds nothing, so that this takes no time; unless environments are kept in what it held.
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(patience)
        self.let_go()

    def let_go(self) -> None:
        """Closes this process's ends of its pipes, without waiting for it."""
        # It may live as long as an environment that is kept. Without a code `Popen` warns that nobody waited for it.
        if self.process.poll() is None:
            self.process.returncode = 0
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()


def _line(word: str, name: str) -> str:
    """The request about what is held under this name."""
    if name.startswith(_CLUSTER):
        return f"{word}-cluster {name[len(_CLUSTER) :]}"
    return f"{word} {name}"


# What is held under a name that begins so is a cluster: no machine's name has a blank.
_CLUSTER = "cluster "
# One for each machine that is being made or deleted at the same time, at most this many.
_MOST = 8
_keepers: list[_Keeper] = []
# Held while the list is looked at or a keeper is started, and never while one is asked; and around every fork, so that
# no child has a pipe that is not in the list yet.
_table = threading.Lock()


def _ask(line: str, name: Optional[str]) -> dict[str, Any]:
    keeper = _take(name)
    try:
        try:
            answer = keeper.ask(line)
        except ConnectionLost:
            keeper.revive()
            try:
                answer = keeper.ask(line)
            except ConnectionLost as error:
                raise _explained(error) from None
        if name is not None:
            keeper.held.add(name)
        return answer
    finally:
        if not keeper.held:
            keeper.retire()
        keeper.lock.release()


def _explained(error: ConnectionLost) -> ConnectionLost:
    """The same, with what keeps every other command from running, too: such as a home that cannot be."""
    from ._binary import call

    try:
        call(["list"])["machines"]
    except TestyardError as told:
        causes, hints = [*error.causes, told.message, *told.causes], [*told.hints, *error.hints]
        return ConnectionLost(error.message, causes=causes, hints=hints)
    return error


def _home() -> tuple[Optional[str], ...]:
    return tuple(os.environ.get(name) for name in ("TESTYARD_HOME", "TESTYARD_BINARY", "HOME", "XDG_STATE_HOME"))


def _take(name: Optional[str]) -> _Keeper:
    """A keeper for this caller alone, until its lock is released: the machine's own, one that is free, or a new one."""
    while True:
        with _table:
            ours = [one for one in _keepers if one.home == _home()]
            keeper = next((one for one in ours if name in one.held), None)
            if keeper is None:
                for one in ours:
                    if one.lock.acquire(blocking=False):
                        return one
                if len(ours) < _MOST:
                    keeper = _Keeper()
                    _keepers.append(keeper)
                else:
                    keeper = ours[zlib.crc32(str(name).encode()) % len(ours)]
        keeper.lock.acquire()
        if keeper in _keepers:
            return keeper
        # It has just ended, because nothing was left to hold.
        keeper.lock.release()


def _holder_of(name: str) -> Optional[_Keeper]:
    with _table:
        return next((one for one in _keepers if name in one.held and one.home == _home()), None)


def _forget_in_child() -> None:
    global _table, _keepers
    _table = threading.Lock()
    keepers, _keepers = _keepers, []
    for keeper in keepers:
        keeper.let_go()


def _let_go_at_exit() -> None:
    for keeper in _keepers:
        keeper.let_go()


os.register_at_fork(
    before=lambda: _table.acquire() and None,
    after_in_parent=lambda: _table.release(),
    after_in_child=_forget_in_child,
)
atexit.register(_let_go_at_exit)
