"""Frames and messages, as docs/protocol.md tells them. No input or output here."""

from __future__ import annotations

import os
import struct
from typing import Any, Mapping, Optional, Sequence, Union

from . import _given as given

OLDEST_VERSION = 2
VERSION = 4
HEADER = struct.Struct("<IBBBBI")
MESSAGE, DATA, CREDIT, END = 1, 2, 3, 4
MAX_PAYLOAD = 1 << 20
MAX_MESSAGE = 16 << 20
MAX_ATTACHED = 32
#: What each direction of a channel may send before it is given more, in bytes.
WINDOW = 256 * 1024

Raw = Union[str, "list[int]"]
Word = Union[str, bytes, "os.PathLike[str]"]
Command = Union[str, bytes, Sequence[Word]]


def raw(text: Union[str, bytes, Any]) -> Raw:
    """Text as it travels: a string where it is UTF-8, else its bytes as numbers."""
    data = os.fsencode(text)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return list(data)


def unraw(value: Raw) -> str:
    """The other way round; bytes that are no UTF-8 are kept as Python's file names keep them."""
    return value if isinstance(value, str) else os.fsdecode(bytes(value))


def argv_of(command: Command) -> list[Raw]:
    """A command's words: a string is for the shell, a sequence is taken verbatim."""
    return [raw(word) for word in given.words(command)]


def user_of(user: Union[None, str, int]) -> Any:
    """Whom a command runs as, in the protocol's words."""
    wanted = given.user(user)
    if wanted is None or wanted == "root":
        return wanted
    return {"named": wanted} if isinstance(wanted, str) else {"numbered": {"uid": wanted, "gid": wanted}}


def exec_request(
    command: Command,
    *,
    place: Any,
    cwd: Union[None, str, os.PathLike[str]],
    env: Optional[Mapping[str, str]],
    user: Union[None, str, int],
    timeout: Optional[float],
    stdin: Any = "null",
    stdout: Any = "null",
    stderr: Any = "null",
    detach: bool = False,
    quiet: bool = True,
    ports: Sequence[int] = (),
    source: Optional[int] = None,
    linger: Optional[str] = None,
) -> dict[str, Any]:
    """The request that runs a command."""
    request: dict[str, Any] = {
        "argv": argv_of(command),
        "env": [[raw(name), raw(value)] for name, value in given.variables(env)],
        "stdin": stdin,
        "stdout": stdout,
        "stderr": stderr,
        "detach": detach,
        "quiet": quiet,
        "place": place,
    }
    if cwd is not None:
        request["cwd"] = raw(given.path(cwd, "folder"))
    if user is not None:
        request["user"] = user_of(user)
    limit = given.milliseconds(timeout, "a timeout")
    if limit is not None:
        request["timeout_ms"] = limit
    if ports:
        request["ports"] = list(ports)
    if source is not None:
        request["source"] = source
    if linger is not None:
        request["linger"] = linger
    return {"exec": request}


def code_of(status: Any) -> tuple[int, bool]:
    """A command's exit code (128+n for signal n, 124 where its time was up), and whether its time was up."""
    if status == "timed-out":
        return 124, True
    if isinstance(status, dict) and "exited" in status:
        return int(status["exited"]), False
    if isinstance(status, dict) and "signalled" in status:
        return 128 + int(status["signalled"]), False
    return 255, False
