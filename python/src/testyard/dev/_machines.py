"""Developer's machines as an SDK's provider needs them: by name, with what an SDK wants to know. Knows no SDK."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from datetime import datetime, timezone
from typing import NamedTuple, Optional

from .. import _binary
from .._process import Completed
from ..errors import MachineNotFound, TestyardError, WrongState
from ..machine import Machine, MachineInfo, checked_name, machine_info
from ._running import LOGIN_SHELL

#: What the machine stands for where nobody said.
DEFAULT_TYPE = "h100"


class Seen(NamedTuple):
    """A developer's machine as it was when somebody looked."""

    name: str
    #: As in the JSON of `testyard list`.
    state: str
    instance_type: str
    created_at: datetime
    started_at: datetime


class Machines:
    """All developer's machines of this home, and open connections to those that are used. Safe under threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: dict[str, Machine] = {}

    def ensure(self, name: str, instance_type: Optional[str]) -> Seen:
        """The machine of this name, running; made where there is none."""
        words = ["dev", "ensure-started", "--name", checked_name(name)]
        if instance_type:
            words += ["--instance-type", instance_type]
        return _seen(machine_info(_binary.call(words)["machine"]))

    def all(self) -> list[Seen]:
        """Newest first."""
        found = [_seen(info) for info in Machine.list() if info.raw["spec"].get("docker")]
        return sorted(found, key=lambda one: one.created_at, reverse=True)

    def find(self, name: str) -> Seen:
        """One of them.

        Raises MachineNotFound."""
        return _seen(Machine.get(name).info())

    def start(self, name: str) -> None:
        """Starts one that is stopped."""
        _binary.call(["start", checked_name(name)])

    def stop(self, name: str) -> None:
        """Stops it; its files stay."""
        self._forget(name)
        _binary.call(["stop", checked_name(name), "--force"])

    def delete(self, name: str) -> None:
        """Deletes it, with its files."""
        self._forget(name)
        _binary.call(["dev", "stop", "--name", checked_name(name), "--delete"])

    def run(self, name: str, command: str, timeout: Optional[float]) -> Completed:
        """Runs a command of the shell on the machine itself; what it answers need not be 0."""
        machine = self.machine(name)
        try:
            return machine.run(command, check=False, timeout=timeout)
        except TestyardError:
            self._forget(name)
            raise

    def shell(self, name: str, command: Optional[str], terminal: bool) -> int:
        """A shell on the machine, or a command, on this process's own streams; its exit code.

        Raises MachineNotFound, and WrongState where it does not run: nothing ran then."""
        state = self.find(name).state
        if state != "running":
            raise WrongState(f"machine {name} is {state}", hints=[f"start it: testyard start {name}"])
        words = [_binary.program(), "exec", checked_name(name)]
        if terminal and sys.stdin is not None and sys.stdin.isatty():
            words.append("--terminal")
        return subprocess.run([*words, "--", "sh", "-c", command or LOGIN_SHELL], check=False).returncode

    def machine(self, name: str) -> Machine:
        """A machine that is open."""
        with self._lock:
            machine = self._open.get(name)
        if machine is None:
            machine = Machine.get(name)
            with self._lock:
                machine = self._open.setdefault(name, machine)
        return machine

    def close(self) -> None:
        """Closes what is open; the machines go on running."""
        with self._lock:
            machines, self._open = list(self._open.values()), {}
        for machine in machines:
            machine.close()

    def _forget(self, name: str) -> None:
        with self._lock:
            machine = self._open.pop(name, None)
        if machine is not None:
            machine.close()


def text_of(done: Completed) -> str:
    """What a failed command said: its error output, else what it printed, else its exit code."""
    said = str(done.stderr).strip() or str(done.stdout).strip()[-2000:]
    return said or f"the command ended with exit code {done.returncode}"


def is_missing(error: TestyardError) -> bool:
    """Whether there is no such machine."""
    return isinstance(error, MachineNotFound)


def times_of(info: MachineInfo) -> tuple[datetime, datetime]:
    """When a machine was created, and when it was last started: its socket was made then."""
    created = datetime.fromtimestamp(info.created_ms / 1000, timezone.utc)
    try:
        return created, datetime.fromtimestamp(os.stat(info.socket or "").st_mtime, timezone.utc)
    except OSError:
        return created, created


def _seen(info: MachineInfo) -> Seen:
    return Seen(info.name, info.state, _instance_type(info), *times_of(info))


def _instance_type(info: MachineInfo) -> str:
    """As `testyard dev ensure-started` was told; it is kept beside the machine's socket."""
    state = os.environ.get("TESTYARD_HOME") or os.path.join(
        os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state"), "testyard"
    )
    try:
        with open(os.path.join(state, "runtime", "dev", info.id, "instance-type")) as file:
            return file.read().strip() or DEFAULT_TYPE
    except OSError:
        return DEFAULT_TYPE
