"""The machine of a session: made once, whatever the number of workers, and gone with the last of them."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import site
import stat
import sys
import sysconfig
import tempfile
from typing import Any, Optional

from ..errors import NotSupported, PermissionRefused, TestyardError
from ..machine import Machine, fresh_name
from ._yard import Place, tree_around

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_SESSION = "session-"
#: Where a machine's own folders are, or nothing of the host's is seen: see docs/machines.md.
_MASKED = ("/root", "/home", "/tmp", "/var/tmp", "/run")


class Session:
    """Owns the machine and what the tests share outside of it."""

    def __init__(self, config: Any) -> None:
        self._common = _common_folder()
        self.shared, self._lock = _shared_folder(self._common)
        self.temporary = os.environ.get("TMPDIR")
        self._config = config
        self._machine: Optional[Machine] = None
        self._place: Optional[Place] = None
        # What fixtures of higher scopes put into temporary folders is to be seen by every test.
        os.environ["TMPDIR"] = self.shared
        tempfile.tempdir = None

    def place(self) -> Place:
        """Where tests run; the machine is made when this is first asked for.

        Raises TestyardError: this host cannot, or the machine could not be made."""
        if self._place is None:
            tree = tree_around(str(self._config.rootpath))
            exposed = [*self._seen(tree), self._common + ":rw"]
            machine = Machine.create(fresh_name("pytest"), backend="namespace", expose=exposed, hold=True)
            self._machine = machine
            self._place = Place(machine.name, machine._socket(), tree, self.shared, network(self._config), {})
        return self._place

    def close(self) -> None:
        """Deletes the machine."""
        if self.temporary is None:
            os.environ.pop("TMPDIR", None)
        else:
            os.environ["TMPDIR"] = self.temporary
        tempfile.tempdir = None
        if self._machine is not None:
            machine, self._machine = self._machine, None
            # Its one holder lets it go, which deletes it. One that cannot be reached is the reaper's.
            with contextlib.suppress(TestyardError):
                machine.unhold()
            machine.close()
        shutil.rmtree(self.shared, ignore_errors=True)
        os.close(self._lock)

    def _seen(self, tree: str) -> list[str]:
        """What of the host the interpreter and the suite need, and a machine does not show by itself."""
        wanted = [sys.prefix, sys.base_prefix, sys.exec_prefix, *sysconfig.get_paths().values(), *sys.path]
        wanted += [site.getusersitepackages() if site.ENABLE_USER_SITE else "", str(self._config.invocation_params.dir)]
        wanted += [argument.split("::")[0] for argument in self._config.args]
        wanted += [os.path.dirname(str(path)) for path in [self._config.inipath] if path]
        explicit = [os.path.expanduser(path) for path in self._config.getini("testyard_expose")]
        missing = [path for path in explicit if not os.path.exists(path.split(":")[0])]
        if missing:
            raise NotSupported(f"testyard_expose names {missing[0]}, which is not there")
        hidden = {os.path.realpath(path) for path in wanted if path and os.path.exists(path) and _is_masked(path)}
        outside = sorted(path for path in hidden if not _covers(tree, path))
        top = [path for path in outside if not any(_covers(other, path) for other in outside if other != path)]
        return explicit + top


def _common_folder() -> str:
    """A folder of this user's alone, the same for every session: what a machine shows of its host is prepared once for
    an ordinary user, and again for every other list of paths."""
    path = os.path.join(os.path.realpath(tempfile.gettempdir()), f"testyard-isolate-{os.getuid()}")
    with contextlib.suppress(FileExistsError):
        os.mkdir(path, 0o700)
    facts = os.lstat(path)
    if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != os.getuid() or facts.st_mode & 0o077:
        raise PermissionRefused(f"{path} is not a folder of this user's alone", hints=["remove it, or set TMPDIR"])
    return path


def _shared_folder(common: str) -> tuple[str, int]:
    """A folder for this session, and the descriptor whose lock says that it is in use. Those of sessions that were
    killed are removed: the kernel has let their locks go."""
    whole = os.open(common, _FOLDER)
    try:
        fcntl.flock(whole, fcntl.LOCK_EX)
        for name in os.listdir(whole):
            if name.startswith(_SESSION):
                _remove_left(os.path.join(common, name))
        path = tempfile.mkdtemp(prefix=_SESSION, dir=common)
        lock = os.open(path, _FOLDER)
        fcntl.flock(lock, fcntl.LOCK_EX)
        return path, lock
    finally:
        os.close(whole)


def _remove_left(path: str) -> None:
    with contextlib.suppress(OSError):
        folder = os.open(path, _FOLDER)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path, ignore_errors=True)
        finally:
            os.close(folder)


def _covers(folder: str, path: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def _is_masked(path: str) -> bool:
    """Whether a machine does not show a path: it lies in a masked folder, or on another file system."""
    path = os.path.realpath(path)
    if any(_covers(folder, path) and path != folder for folder in _MASKED):
        return True
    return os.stat(path).st_dev != os.stat("/").st_dev


def network(config: Any) -> str:
    """The network that tests get unless they say otherwise."""
    return str(config.getoption("testyard_isolate_network", None) or config.getini("testyard_isolate_network"))


def to_worker(place: Place, temporary: Optional[str]) -> str:
    """The place as text, for a worker's input."""
    return json.dumps({"place": place._asdict(), "temporary": temporary})


def from_worker(text: str) -> tuple[Place, Optional[str]]:
    """The other way round."""
    data = json.loads(text)
    return Place(**data["place"]), data["temporary"]
