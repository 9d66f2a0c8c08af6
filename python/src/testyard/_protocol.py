"""Frames and messages, as docs/protocol.md tells them. No input or output here."""

from __future__ import annotations

import struct
from typing import Any, Mapping, Optional, Sequence, Union

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
Command = Union[str, bytes, Sequence[Union[str, bytes]]]


def raw(text: Union[str, bytes, Any]) -> Raw:
    """Text as it travels: a string where it is UTF-8, else its bytes as numbers."""
    import os

    data = os.fsencode(text)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return list(data)


def unraw(value: Raw) -> str:
    """The other way round; bytes that are no UTF-8 are kept as Python's file names keep them."""
    import os

    return value if isinstance(value, str) else os.fsdecode(bytes(value))


def argv_of(command: Command) -> list[Raw]:
    """A command's words: a string is for the shell, a sequence is taken verbatim."""
    from .errors import InvalidInput

    if isinstance(command, (str, bytes)):
        words: Sequence[Union[str, bytes]] = ["/bin/sh", "-c", command]
    else:
        words = list(command)
    if not words:
        raise InvalidInput("the command has no words", hints=["give a string for the shell, or a list of words"])
    if any((b"\0" if isinstance(word, bytes) else "\0") in word for word in words):  # type: ignore[operator]
        raise InvalidInput("a word of the command holds a NUL byte, which no program can be given")
    return [raw(word) for word in words]


def user_of(user: Union[None, str, int]) -> Any:
    """Whom a command runs as, in the protocol's words."""
    if user is None:
        return None
    if isinstance(user, int):
        return {"numbered": {"uid": user, "gid": user}}
    if user == "root":
        return "root"
    if user.isdigit():
        return {"numbered": {"uid": int(user), "gid": int(user)}}
    return {"named": user}


def milliseconds(seconds: Optional[float], what: str) -> Optional[int]:
    """Seconds as the protocol counts time.

    Raises InvalidInput where they are no length of time."""
    from .errors import InvalidInput

    if seconds is None:
        return None
    if not 0 < seconds < 1e12:
        raise InvalidInput(f"{what} of {seconds!r} seconds is no length of time", hints=["give more than 0"])
    return max(1, int(seconds * 1000))


def exec_request(
    command: Command,
    *,
    place: Any,
    cwd: Optional[str],
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
        "env": [[raw(name), raw(value)] for name, value in (env or {}).items()],
        "stdin": stdin,
        "stdout": stdout,
        "stderr": stderr,
        "detach": detach,
        "quiet": quiet,
        "place": place,
    }
    if cwd is not None:
        request["cwd"] = raw(cwd)
    if user is not None:
        request["user"] = user_of(user)
    limit = milliseconds(timeout, "a timeout")
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
