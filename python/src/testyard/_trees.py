"""Files and folders as streams: the form that travels within one host (form 3 of the transfer crate)."""

from __future__ import annotations

import os
import stat
import struct
import time
from typing import BinaryIO, Callable, Optional

from .errors import InfrastructureError, InvalidInput, NotFound, PermissionRefused, TestyardError

_MAGIC = b"TYFILES\x03"
_DIRECTORY, _FILE, _LINK, _HARD_LINK, _LEAVE, _END = 1, 2, 3, 4, 5, 6
_CHUNK = 1 << 20
_HOLE, _RUN = 0xFFFF_FFFF, 0xFFFF_FFFE
_TIME = struct.Struct("<qI")
_U16, _U32, _U64 = struct.Struct("<H"), struct.Struct("<I"), struct.Struct("<Q")
_MAX_NAME, _MAX_TARGET, _MAX_DEPTH = 255, 4095, 400
_MAX_ENTRIES = 10_000_000
#: 16 TiB, what ext4 holds.
_MAX_FILE = 1 << 44
#: What `read_file` takes into memory at most, in bytes.
_MAX_READ = 1 << 31


def local_error(error: OSError, what: str) -> TestyardError:
    """An error of this side's files in the package's own words."""
    cause = [error.strerror or str(error)]
    if isinstance(error, FileNotFoundError):
        return NotFound(f"{what} does not exist", hints=["check how it is spelled"])
    if isinstance(error, PermissionError):
        return PermissionRefused(f"{what} is not permitted", causes=cause)
    return InfrastructureError(f"{what} failed", causes=cause)


class Sender:
    """Writes a stream."""

    def __init__(self, out: BinaryIO) -> None:
        self._write = out.write
        self._entries = 0
        self._bytes = 0
        self._links: dict[tuple[int, int], int] = {}
        self._write(_MAGIC)

    def bytes_as_file(self, data: bytes, mode: int) -> None:
        """The whole stream: one file without a name of its own."""
        self._head(_FILE, b"", mode, time.time_ns())
        self._write(_U32.pack(0))
        view = memoryview(data)
        for start in range(0, len(view), _CHUNK):
            part = view[start : start + _CHUNK]
            self._write(_U32.pack(len(part)))
            self._write(part)
        self._write(_U32.pack(0))
        self._bytes += len(data)
        self._end()

    def path(self, path: str) -> None:
        """The whole stream: the file or folder at this path, under its own name; `folder/.` means what is in it."""
        contents = path.endswith("/.") or path == "."
        name = b"" if contents else os.fsencode(os.path.basename(os.path.abspath(path)))
        # What the caller names may be a link; what is below a folder is sent as it is.
        facts = os.stat(path)
        if not stat.S_ISDIR(facts.st_mode) and not stat.S_ISREG(facts.st_mode):
            raise InvalidInput(f"{path} is no file or folder", hints=["devices, pipes and sockets are not copied"])
        self._entry(os.fsencode(path), name, 0, facts)
        self._end()

    def _entry(self, path: bytes, name: bytes, depth: int, facts: os.stat_result) -> None:
        mode = stat.S_IMODE(facts.st_mode)
        if depth > _MAX_DEPTH:
            raise InvalidInput(f"{os.fsdecode(path)} lies more than {_MAX_DEPTH} folders deep")
        if stat.S_ISDIR(facts.st_mode):
            self._head(_DIRECTORY, name, mode, facts.st_mtime_ns)
            for child in sorted(os.listdir(path)):
                below = os.path.join(path, child)
                self._entry(below, child, depth + 1, os.lstat(below))
            self._write(bytes([_LEAVE]))
        elif stat.S_ISREG(facts.st_mode):
            self._file(path, name, mode, facts)
        elif stat.S_ISLNK(facts.st_mode):
            target = os.readlink(path)
            self._write(bytes([_LINK]) + _U16.pack(len(name)) + name + _when(facts.st_mtime_ns))
            self._write(_U16.pack(len(target)) + target)
            self._entries += 1
        # Sockets, pipes and devices are left out, as `testyard push` does.

    def _file(self, path: bytes, name: bytes, mode: int, facts: os.stat_result) -> None:
        number = 0
        if facts.st_nlink > 1:
            known = self._links.get((facts.st_dev, facts.st_ino))
            if known is not None:
                self._write(bytes([_HARD_LINK]) + _U16.pack(len(name)) + name + _U32.pack(known))
                self._entries += 1
                return
            number = len(self._links) + 1
            self._links[facts.st_dev, facts.st_ino] = number
        with open(path, "rb", buffering=0) as file:
            self._head(_FILE, name, mode, facts.st_mtime_ns)
            self._write(_U32.pack(number))
            while True:
                try:
                    data = file.read(_CHUNK)
                except OSError as error:
                    error.filename = os.fsdecode(path)
                    raise
                if not data:
                    break
                self._write(_U32.pack(len(data)))
                self._write(data)
                self._bytes += len(data)
        self._write(_U32.pack(0))

    def _head(self, kind: int, name: bytes, mode: int, when_ns: int) -> None:
        self._entries += 1
        self._write(bytes([kind]) + _U16.pack(len(name)) + name + _U32.pack(mode) + _when(when_ns))

    def _end(self) -> None:
        self._write(bytes([_END]) + _U64.pack(self._entries) + _U64.pack(self._bytes))


def _when(nanoseconds: int) -> bytes:
    return _TIME.pack(nanoseconds // 1_000_000_000, nanoseconds % 1_000_000_000)


class Receiver:
    """Reads a stream. What a machine sends is hostile: nothing is made but below the folder that is given, through
    folders that this object made itself, and without set-user bits."""

    def __init__(self, source: BinaryIO) -> None:
        self._source = source
        self._files: dict[int, str] = {}
        self._entries = 0
        self._limit = _MAX_FILE
        if self._exactly(8) != _MAGIC:
            raise InfrastructureError("the machine sent what is no tree")

    def file(self) -> bytes:
        """The content of the one file that the stream is."""
        kind = self._byte()
        if kind == _DIRECTORY:
            raise InvalidInput("it is a folder", hints=["use pull for folders"])
        if kind != _FILE:
            raise InfrastructureError(f"the machine sent entry {kind}, which is no file")
        parts: list[bytes] = []
        self._name()
        self._exactly(4 + _TIME.size + 4)
        extra = [0]
        self._limit = _MAX_READ
        self._content(parts.append, lambda length: parts.append(bytes(length)), lambda count: extra.append(count))
        whole = b"".join(parts)
        return whole[: len(whole) - sum(extra)]

    def tree(self, destination: str) -> None:
        """Makes what comes at `destination`: into it where that is a folder and the tree has a name, else as it."""
        kind = self._byte()
        name = self._name()
        into = os.path.join(destination, name) if name and os.path.isdir(destination) else destination
        self._entry(kind, into, 0, top=True)

    def _entry(self, kind: int, path: str, depth: int, top: bool = False) -> None:
        self._entries += 1
        if depth > _MAX_DEPTH or self._entries > _MAX_ENTRIES:
            raise InfrastructureError("the machine sent more than any tree holds")
        if kind == _DIRECTORY:
            self._directory(path, depth, top)
        elif kind == _FILE:
            self._file(path)
        elif kind == _LINK:
            self._link(path)
        elif kind == _HARD_LINK:
            (number,) = _U32.unpack(self._exactly(4))
            if number not in self._files:
                raise InfrastructureError("the machine sent a hard link to nothing")
            _replace(path, lambda fresh: os.link(self._files[number], fresh, follow_symlinks=False))
        else:
            raise InfrastructureError(f"the machine sent an entry of kind {kind}")

    def _directory(self, path: str, depth: int, top: bool) -> None:
        (mode,) = _U32.unpack(self._exactly(4))
        when = self._time()
        if top and os.path.isdir(path):
            existing = True
        else:
            existing = os.path.isdir(path) and not os.path.islink(path)
        if not existing:
            os.mkdir(path, 0o700)
        while True:
            kind = self._byte()
            if kind == _LEAVE:
                break
            name = self._name()
            if not name:
                raise InfrastructureError("the machine sent an entry without a name")
            self._entry(kind, os.path.join(path, name), depth + 1)
        if not existing:
            os.chmod(path, mode & 0o777)
            os.utime(path, ns=(when, when))

    def _file(self, path: str) -> None:
        (mode,) = _U32.unpack(self._exactly(4))
        when = self._time()
        (number,) = _U32.unpack(self._exactly(4))

        def make(fresh: str) -> None:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            with open(os.open(fresh, flags, 0o600), "wb") as out:
                ahead, back = _seek(out, 1), _seek(out, -1)
                self._content(out.write, ahead, back)
                out.truncate()
            os.chmod(fresh, mode & 0o777)
            os.utime(fresh, ns=(when, when))

        _replace(path, make)
        if number:
            self._files[number] = path

    def _link(self, path: str) -> None:
        when = self._time()
        (length,) = _U16.unpack(self._exactly(2))
        target = self._exactly(length)
        if not target or length > _MAX_TARGET or b"\0" in target:
            raise InfrastructureError("the machine sent a link that leads nowhere")
        _replace(path, lambda fresh: os.symlink(target, os.fsencode(fresh)))
        os.utime(path, ns=(when, when), follow_symlinks=False)

    def _content(
        self, take: Callable[[bytes], object], skip: Callable[[int], object], trim: Callable[[int], object]
    ) -> None:
        total = 0
        while True:
            (length,) = _U32.unpack(self._exactly(4))
            if length == 0:
                return
            if length in (_HOLE, _RUN):
                (span,) = _U64.unpack(self._exactly(8))
                total += span
            else:
                span = length
                total += length
            if total > self._limit or (length < _RUN and length > _CHUNK):
                raise InvalidInput(f"the file holds more than {self._limit} bytes", hints=["use pull for large files"])
            if length == _HOLE:
                skip(span)
                continue
            left = span
            while left:
                part = self._exactly(min(left, _CHUNK))
                take(part)
                left -= len(part)
            if length == _RUN:
                # Only the first so many bytes are the file's: it became shorter while it was read.
                (real,) = _U64.unpack(self._exactly(8))
                trim(span - min(real, span))

    def _name(self) -> str:
        (length,) = _U16.unpack(self._exactly(2))
        name = self._exactly(length)
        if length > _MAX_NAME or name in (b".", b"..") or b"/" in name or b"\0" in name:
            raise InfrastructureError("the machine sent a name that is none")
        return os.fsdecode(name)

    def _time(self) -> int:
        seconds, nanoseconds = _TIME.unpack(self._exactly(_TIME.size))
        return int(seconds) * 1_000_000_000 + int(nanoseconds)

    def _byte(self) -> int:
        return self._exactly(1)[0]

    def _exactly(self, count: int) -> bytes:
        data = self._source.read(count) if count else b""
        if len(data) != count:
            raise EOFError("the stream ended early")
        return data


def _seek(out: BinaryIO, sign: int) -> Callable[[int], object]:
    return lambda length: out.seek(sign * length, os.SEEK_CUR)


def _replace(path: str, make: Callable[[str], object]) -> None:
    """Makes something beside `path` and moves it there whole; what was there before is replaced, if it is no folder."""
    folder, name = os.path.split(path)
    fresh: Optional[str] = os.path.join(folder, f".{name[:200]}.{os.getpid()}.{time.monotonic_ns():x}")
    try:
        assert fresh is not None
        make(fresh)
        os.rename(fresh, path)
        fresh = None
    finally:
        if fresh is not None:
            try:
                os.unlink(fresh)
            except FileNotFoundError:
                pass
