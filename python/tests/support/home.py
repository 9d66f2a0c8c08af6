"""A Testyard of the tests' own: its state, its environment, and the proof that it left nothing."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path
from typing import Callable, Mapping, Optional

from .user import as_ordinary_user

# Teardown is off the hot path: this many seconds after a reaper has passed, nothing may be left.
SETTLED_WITHIN = 60.0
# As long may one call of the command line take, in seconds.
COMMAND_DEADLINE = 120.0
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def testyard_program() -> Path:
    """The `testyard` under test: `$TESTYARD_BINARY`, else that beside the interpreter, as the package itself looks."""
    named = os.environ.get("TESTYARD_BINARY")
    beside = Path(sysconfig.get_path("scripts"), "testyard")
    found = Path(named) if named else beside
    if not found.exists():
        raise FileNotFoundError(f"{found} is not there: run the tests with `cargo xtask python --fast`")
    return found


def programs_folder() -> Path:
    """Where `testyard` and `testyard-agent` under test are."""
    return testyard_program().parent


class Home:
    """A `TESTYARD_HOME` below a new folder of `/tmp`, with an own `HOME` and working folder.

    `finish` deletes its machines, reaps, and raises `AssertionError` where a process, mount, socket or folder of a
    machine is left. The folder stays then: what is mounted there must not be removed with it.
    """

    def __init__(self, *, owner: pwd.struct_passwd | None = None) -> None:
        # Not in TMPDIR: sockets below must fit into 108 bytes.
        self.path = Path(tempfile.mkdtemp(prefix="ty-", dir="/tmp"))
        self.state = self.path / "state"
        self.work = self.path / "work"
        self.user_home = self.path / "home"
        self.owner = owner if owner is not None and owner.pw_uid != os.geteuid() else None
        for folder in (self.path, self.state, self.work, self.user_home):
            folder.mkdir(mode=0o700, exist_ok=True)
            if self.owner is not None:
                os.chown(folder, self.owner.pw_uid, self.owner.pw_gid)

    @property
    def variables(self) -> dict[str, str]:
        """What this home sets in the environment."""
        return {"TESTYARD_HOME": str(self.state), "HOME": str(self.user_home)}

    def environment(self, **more: str) -> dict[str, str]:
        """A whole environment for a child: nothing of the caller's but what the tests themselves need."""
        kept = {name: os.environ[name] for name in ("PYTHONPATH", "TESTYARD_BINARY") if name in os.environ}
        path = f"{Path(sys.executable).parent}:{SYSTEM_PATH}"
        return {"PATH": path, "LANG": "C.UTF-8", "RUST_BACKTRACE": "1", **kept, **self.variables, **more}

    def testyard(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """The real `testyard` to its end. `check` fails the test with both streams where it does not exit with 0."""
        done = self.run([str(testyard_program()), *arguments])
        if check:
            assert done.returncode == 0, f"{done.args} exited with {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def run(
        self, command: list[str], *, timeout: float = COMMAND_DEADLINE, variables: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Any program in this home's environment, as its owner, in its working folder; `timeout` in seconds."""
        if self.owner is not None:
            command = as_ordinary_user(command)
        environment = self.environment(**(variables or {}))
        return subprocess.run(
            command, env=environment, cwd=self.work, stdin=subprocess.DEVNULL, capture_output=True, text=True,
            timeout=timeout, check=False,
        )  # fmt: skip

    def machines(self) -> list[str]:
        """The names of its machines."""
        if not (self.state / "registry.sqlite").exists():
            return []
        listed = json.loads(self.testyard("list", "--json").stdout)
        return [machine["name"] for machine in listed["machines"]]

    def finish(self) -> None:
        """Deletes what is left, and fails where something of it is still there then."""
        left = self._clean_up()
        if left:
            raise AssertionError(f"left behind by {self.path}:\n" + "\n".join(left))
        shutil.rmtree(self.path)

    def _clean_up(self) -> list[str]:
        report = []
        for name in self.machines():
            deleted = self.testyard("delete", name, "--force", check=False)
            # What a supervisor rolls back may go by itself at this moment.
            if deleted.returncode != 0 and name in self.machines():
                report.append(f"delete {name} --force: {deleted.stderr}")
        if (self.state / "registry.sqlite").exists():
            reaped = self.testyard("reap", check=False)
            if reaped.returncode != 0:
                report.append(f"reap: {reaped.stderr}")
        return report or settled(lambda: leftovers(self.path))


def settled(look: Callable[[], list[str]], *, within: Optional[float] = None) -> list[str]:
    """What is still seen when things have had time to end, in seconds."""
    deadline = time.monotonic() + (SETTLED_WITHIN if within is None else within)
    while True:
        left = look()
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.02)


def came(look: Callable[[], object]) -> bool:
    """Whether this is true at last, within what one call of the command line may take."""
    return not settled(lambda: [] if look() else ["not yet"], within=COMMAND_DEADLINE)


def leftovers(home: Path) -> list[str]:
    """What belongs to one home: processes that carry its path, mounts and sockets below it, folders of machines."""
    needle = os.fsencode(home)
    left = []
    seen = set()
    # Who runs the tests carries the path as well.
    own = {os.getpid(), *_ancestors()}
    for process in Path("/proc").glob("[0-9]*"):
        if int(process.name) in own or _state(process) == "Z":
            continue
        line = _read(process / "cmdline")
        if needle in line or needle in _read(process / "environ"):
            left.append(
                f"process {process.name} ({line.replace(bytes(1), b' ').decode(errors='replace')[:200].strip()})"
            )
        try:
            namespace = os.readlink(process / "ns" / "mnt")
        except OSError:
            continue
        if namespace not in seen:
            seen.add(namespace)
            points = [
                mount for mount in _read(process / "mountinfo").splitlines() if _is_below(mount.split(b" ")[4], needle)
            ]
            left += [f"mount in {namespace}: {mount.decode(errors='replace')}" for mount in points]
    sockets = [socket for socket in _read(Path("/proc/net/unix")).splitlines() if needle + b"/" in socket]
    left += [f"socket {socket.split(b' ')[-1].decode(errors='replace')}" for socket in sockets]
    machines = home / "state" / "machines"
    return left + [f"folder {folder}" for folder in (machines.iterdir() if machines.is_dir() else ())]


def _ancestors() -> list[int]:
    found = []
    pid = os.getppid()
    while pid > 1:
        found.append(pid)
        fields = _read(Path(f"/proc/{pid}/stat")).rpartition(b")")[2].split()
        pid = int(fields[1]) if fields else 0
    return found


def _state(process: Path) -> str:
    fields = _read(process / "stat").rpartition(b")")[2].split()
    return fields[0].decode() if fields else "Z"


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def _is_below(point: bytes, folder: bytes) -> bool:
    return point == folder or point.startswith(folder + b"/")


def fail_loudly(message: str) -> None:
    """For the end of a session, where no test is left that could fail."""
    print(f"\nERROR {message}", file=sys.stderr)
