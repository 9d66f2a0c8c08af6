"""Which commands this process runs on a developer's machine, told to whoever asks: `testyard dev status` reads it.

One file a process in `dev/ID` of the runtime folder, under an exclusive lock that ends with the process. It is one
line: a
list of records as `docker ps --format json` has them. The command line does the same (crates/cli, `containers.rs`)."""

from __future__ import annotations

import fcntl
import json
import os
import threading
import time
from typing import Any, Optional


class Containers:
    """The commands that one process runs on one machine. Safe under threads and forks."""

    def __init__(self, socket: str, machine: str, image: str) -> None:
        # .../by-name/NAME is where a machine listens.
        self._folder = os.path.join(os.path.dirname(os.path.dirname(socket)), "dev", machine)
        self._image = image
        self._lock = threading.Lock()
        self._records: dict[str, dict[str, Any]] = {}
        self._file: Optional[int] = None
        self._path = ""
        self._owner = 0

    def add(self, name: str, command: str, environment: Optional[int]) -> None:
        """A command began, in this environment."""
        record = {
            "Names": name,
            "Status": "Up",
            "Image": self._image,
            "Command": command,
            "CreatedAt": time.strftime("%Y-%m-%d %H:%M:%S +0000 UTC", time.gmtime()),
            "ID": name if environment is None else f"e{environment}",
            "State": "running",
        }
        with self._lock:
            if self._owner != os.getpid():
                self._records.clear()
            self._records[name] = record
            self._write()

    def remove(self, name: str) -> None:
        """It ended."""
        with self._lock:
            if self._records.pop(name, None) is not None:
                self._write()

    def close(self) -> None:
        """Tells no more."""
        with self._lock:
            self._records.clear()
            if self._file is not None and self._owner == os.getpid():
                try:
                    os.unlink(self._path)
                except OSError:
                    pass
                os.close(self._file)
            self._file = None

    def _write(self) -> None:
        text = json.dumps(list(self._records.values())).encode() + b"\n"
        try:
            # Somebody else may have removed the file of a machine that was deleted.
            if self._file is None or self._owner != os.getpid():
                self._open()
            assert self._file is not None
            os.pwrite(self._file, text, 0)
        except OSError:
            pass  # Only the answers to `status` are poorer for it.

    def _open(self) -> None:
        for folder in (os.path.dirname(self._folder), self._folder):
            try:
                os.mkdir(folder, 0o700)
            except FileExistsError:
                pass
        self._owner = os.getpid()
        self._path = os.path.join(self._folder, f"{os.getpid()}-{os.urandom(4).hex()}.json")
        self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._file, fcntl.LOCK_EX)
