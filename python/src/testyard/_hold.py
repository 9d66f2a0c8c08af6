"""Machines that this process holds: they are deleted when the last process that holds them is gone, however it ended.

A small process, `testyard hold`, does the deleting. It reads requests from a pipe whose other end only this process
has, so the kernel tells it of this process's end. It is started at the first need; its own session keeps the terminal's
signals away.

A forked child does not hold: its copy of the pipe is closed at the fork, else machines would live as long as the last
child that happens to run on. One that wants to hold calls `hold` itself, and gets a keeper of its own.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
import threading
from typing import TYPE_CHECKING, Any, Optional, Sequence

from .errors import BinaryNotFound, ConnectionLost, TestyardError, from_problem

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


def unhold(name: str) -> bool:
    """Lets it go; whether it was deleted, because nobody else holds it. Not holding it is no error."""
    with _lock:
        keeper = _keepers.get(_home())
        if keeper is None or name not in keeper.held:
            return False
        try:
            answer = keeper.ask(f"release {name}")
        except ConnectionLost:
            # The keeper was killed: what nobody holds is deleted by the next command that looks around.
            return False
        finally:
            keeper.held.discard(name)
    return bool(answer.get("deleted"))


def unhold_all() -> None:
    """Lets go of all that this process holds in the home of this moment, and waits for what nobody else holds to go."""
    with _lock:
        keeper = _keepers.pop(_home(), None)
    if keeper is not None:
        keeper.let_go(wait=True)


def keep(environment: str, seconds: float, test: str) -> str:
    """Writes down that an environment, `MACHINE/eNUMBER`, is about to be kept. The command that enters it."""
    words = " ".join(test.split())
    return str(_ask(f"keep {environment} {max(1, round(seconds))}s {words}", None)["enter"])


class _Keeper:
    """The keeper process of this process, and what it was asked to hold."""

    def __init__(self) -> None:
        import subprocess

        from ._binary import program

        path = program()
        who = f"process {os.getpid()}: {os.path.basename(sys.argv[0] or 'python')}"
        try:
            # Its own session: what ends a terminal's processes shall not end it. Descriptors of ours are closed there.
            self.process: subprocess.Popen[bytes] = subprocess.Popen(
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
        self.held: set[str] = set()

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
        answer = json.loads(text)
        if "error" in answer:
            raise from_problem(answer["error"])
        return dict(answer)

    def let_go(self, wait: bool = False) -> None:
        """Closes this process's ends of its pipes; waits for it only where that is asked for."""
        if wait and self.process.stdin is not None:
            self.process.stdin.close()
            self.process.wait()
        # It may live as long as an environment that is kept. Without a code `Popen` warns that nobody waited for it.
        self.process.returncode = self.process.returncode or 0
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()


_lock = threading.Lock()
#: The keeper of each home: one that is started for a home knows no machine of another.
_keepers: dict[str, _Keeper] = {}


def _home() -> str:
    return os.environ.get("TESTYARD_HOME", "")


def _ask(line: str, name: Optional[str]) -> dict[str, Any]:
    home = _home()
    with _lock:
        if home not in _keepers:
            _keepers[home] = _Keeper()
        try:
            answer = _keepers[home].ask(line)
        except ConnectionLost:
            _keepers[home] = _again(_keepers[home])
            answer = _keepers[home].ask(line)
        if name is not None:
            _keepers[home].held.add(name)
        return answer


def _again(lost: _Keeper) -> _Keeper:
    """Another keeper in place of one that was killed, which holds what that one held and is still there."""
    lost.process.poll()
    keeper = _Keeper()
    for name in lost.held:
        try:
            keeper.ask(f"hold {name}")
        except ConnectionLost:
            raise
        except TestyardError:
            continue
        keeper.held.add(name)
    return keeper


def _forget_in_child() -> None:
    global _lock
    _lock = threading.Lock()
    _let_go_of_all()


def _let_go_of_all() -> None:
    while _keepers:
        _keepers.popitem()[1].let_go()


os.register_at_fork(after_in_child=_forget_in_child)
atexit.register(_let_go_of_all)
