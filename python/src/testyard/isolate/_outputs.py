"""What a test wrote to the working tree and is to stay: caches, coverage data, snapshots.

Read from the environment's own layer, which holds what was written and nothing else, and put in place by renames. Links
and devices stay where they are, and no link of either side is followed.
"""

from __future__ import annotations

import os
import re
import stat
from typing import Iterable, Iterator, Optional, Sequence

DEFAULTS = (
    ".coverage",
    ".coverage.*",
    ".pytest_cache",
    "__pycache__",
    ".hypothesis",
    "__snapshots__",
    "snapshots",
    ".benchmarks",
)
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_CHUNK = 1 << 20
_STAGING = ".testyard-returning-"


class Outputs:
    """Which files come back."""

    def __init__(self, tree: str, patterns: Iterable[str]) -> None:
        self._tree = tree
        self._pattern = re.compile("|".join(_expression(pattern) for pattern in patterns) or r"(?!)")
        self._number = 0

    def bring(self, changes: int) -> list[str]:
        """Copies what matches from the layer whose folder `upper` lies in the open folder `changes`.

        The paths that came, relative to the tree. Raises OSError where the tree takes none."""
        came: list[str] = []
        upper = _opened("upper", changes)
        if upper is None:
            return came
        try:
            for path in _files(upper, ()):
                name = "/".join(path)
                if self._pattern.fullmatch(name) and not path[-1].startswith(_STAGING):
                    self._copy(upper, path)
                    came.append(name)
        finally:
            os.close(upper)
        return came

    def _copy(self, upper: int, path: Sequence[str]) -> None:
        source = _within(upper, path[:-1], make=False)
        if source is None:
            return
        try:
            file = os.open(path[-1], _FILE, dir_fd=source)
        except OSError:
            return
        finally:
            os.close(source)
        top = os.open(self._tree, _FOLDER)
        try:
            target = _within(top, path[:-1], make=True)
            if target is None:
                return
            try:
                self._put(file, path[-1], target)
            finally:
                os.close(target)
        finally:
            os.close(top)
            os.close(file)

    def _put(self, file: int, name: str, target: int) -> None:
        facts = os.fstat(file)
        if not stat.S_ISREG(facts.st_mode):
            return
        self._number += 1
        staged = f"{_STAGING}{os.getpid()}-{self._number}"
        copy = os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=target)
        try:
            while True:
                data = memoryview(os.read(file, _CHUNK))
                if not data:
                    break
                while data:
                    data = data[os.write(copy, data) :]
            os.fchmod(copy, facts.st_mode & 0o777)
            os.utime(copy, ns=(facts.st_atime_ns, facts.st_mtime_ns))
            os.rename(staged, name, src_dir_fd=target, dst_dir_fd=target)
        except OSError:
            os.unlink(staged, dir_fd=target)
            raise
        finally:
            os.close(copy)


def _expression(pattern: str) -> str:
    """As git's ignore files have it: a name anywhere, or a path from the top; either with all that is in it."""
    anchored = "/" in pattern.strip("/")
    pieces = []
    rest = pattern.strip("/")
    while rest:
        if rest.startswith("**/"):
            pieces.append("(?:.*/)?")
            rest = rest[3:]
        elif rest.startswith("**"):
            pieces.append(".*")
            rest = rest[2:]
        else:
            pieces.append({"*": "[^/]*", "?": "[^/]"}.get(rest[0], re.escape(rest[0])))
            rest = rest[1:]
    return ("" if anchored else "(?:.*/)?") + "".join(pieces) + "(?:/.*)?"


def _opened(name: str, folder: int) -> Optional[int]:
    try:
        return os.open(name, _FOLDER, dir_fd=folder)
    except OSError:
        return None


def _files(folder: int, way: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    with os.scandir(folder) as entries:
        found = [(entry.name, entry.stat(follow_symlinks=False).st_mode) for entry in entries]
    for name, mode in found:
        if stat.S_ISREG(mode):
            yield (*way, name)
        elif stat.S_ISDIR(mode):
            inner = _opened(name, folder)
            if inner is not None:
                try:
                    yield from _files(inner, (*way, name))
                finally:
                    os.close(inner)


def _within(folder: int, way: Sequence[str], make: bool) -> Optional[int]:
    """The folder at the end of a way that leads over folders only."""
    at = os.dup(folder)
    for name in way:
        following = _opened(name, at)
        if following is None and make:
            try:
                os.mkdir(name, dir_fd=at)
            except FileExistsError:
                pass
            following = _opened(name, at)
        os.close(at)
        if following is None:
            return None
        at = following
    return at
