"""What callers give: each value is taken as what it can mean, or told by name, with a hint.

All that is wrong raises InvalidInput, before anything is connected or started: nobody shall have to read a traceback of
this package to learn that a port was a number and not a text."""

from __future__ import annotations

import contextlib
import os
from typing import Any, Callable, Iterable, Mapping, Optional, Sequence, Union

#: What a waiting thread can be told at most, in seconds; more means the same.
_LONGEST = 1e8
_UNITS = " KMGT"


def refused(value: object, what: str, hint: str) -> Exception:
    """The error of a value that is no such thing."""
    from .errors import InvalidInput

    shown = repr(value)
    return InvalidInput(f"{shown if len(shown) <= 200 else shown[:200] + '…'} is no {what}", hints=[hint])


def text(value: Any, what: str, *, empty: bool = True) -> str:
    """A text, bytes or path, as Python's file names have it."""
    try:
        given = os.fsdecode(value)
        os.fsencode(given)
    except TypeError:
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        hint = f"write {str(value)!r}" if number else "give a text"
        raise refused(value, what, hint) from None
    except UnicodeError:
        raise refused(value, what, "it holds half of a surrogate pair, which is no character") from None
    if "\0" in given:
        raise refused(value, what, "leave out its NUL byte: no program can be given one")
    if not given and not empty:
        raise refused(value, what, "it is empty")
    return given


def words(command: Any) -> list[str]:
    """A command's words: a text is for the shell, a sequence is taken verbatim."""
    from .errors import InvalidInput

    hint = "give a text for the shell, or a list of words"
    if isinstance(command, (str, bytes)):
        return ["/bin/sh", "-c", text(command, "command")]
    if isinstance(command, os.PathLike):
        raise refused(command, "command", f"write [{os.fspath(command)!r}]")
    # The order of a set's words, or a mapping's, is nobody's command.
    if isinstance(command, (Mapping, set, frozenset)) or not isinstance(command, Iterable):
        raise refused(command, "command", hint)
    found = [text(word, "word of a command") for word in command]
    if not found:
        raise InvalidInput("the command has no words", hints=[hint])
    return found


def shown(command: Any) -> str:
    """A command as people read it."""
    if isinstance(command, (str, bytes)):
        return os.fsdecode(command)
    try:
        return " ".join(os.fsdecode(word) for word in command)
    except TypeError:
        return repr(command)


def variables(env: Optional[Mapping[Any, Any]]) -> list[tuple[str, str]]:
    """Variables of a command."""
    if env is None:
        return []
    if not isinstance(env, Mapping):
        raise refused(env, "set of variables", "give a dict of texts")
    found = []
    for name, value in env.items():
        key = text(name, "name of a variable", empty=False)
        if "=" in key:
            raise refused(key, "name of a variable", "leave out its `=`")
        found.append((key, text(value, f"value of the variable {key}")))
    return found


def content(data: Any) -> bytes:
    """What a file is to hold, or a command to read."""
    try:
        return data.encode() if isinstance(data, str) else memoryview(data).tobytes()
    except TypeError:
        hint = f"write {str(data)!r}" if _is_number(data) else "give a text or bytes"
        raise refused(
            data, "text, and no bytes", "give what its read() gives" if hasattr(data, "read") else hint
        ) from None
    except UnicodeError:
        raise refused(data, "text in UTF-8", "give bytes") from None


def path(value: Any, what: str = "path") -> str:
    """A path, here or in a machine."""
    return text(value, what, empty=False)


def folder(value: Any) -> str:
    """The real path of a folder of this host. Raises NotFound where there is none."""
    from .errors import NotFound

    found = os.path.realpath(path(value, "folder"))
    if not os.path.lexists(found):
        raise NotFound(f"there is no folder {found}", hints=["give one of this host"])
    if not os.path.isdir(found):
        raise refused(found, "folder", "give a folder of this host")
    return found


def whole(value: Any, what: str, least: int, most: int) -> int:
    """A whole number in a range."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise refused(value, what, f"give {least} to {most}, a number")
    return value


def flag(value: Any, what: str) -> bool:
    """True or False, and nothing that may mean either."""
    if not isinstance(value, bool):
        raise refused(value, f"value of {what}", "give True or False")
    return value


def seconds(value: Any, what: str) -> Optional[float]:
    """How long to wait: what is below 0 is over at once. None: without an end."""
    if value is None:
        return None
    number = _number(value, what)
    return max(0.0, min(number, _LONGEST))


def milliseconds(value: Any, what: str) -> Optional[int]:
    """A length of time above 0 as the protocol counts it."""
    if value is None:
        return None
    number = _number(value, what)
    if not 0 < number < 1e12:
        from .errors import InvalidInput

        raise InvalidInput(f"{what} of {value!r} seconds is no length of time", hints=["give more than 0"])
    return max(1, int(number * 1000))


def size(value: Any) -> Optional[int]:
    """Bytes, or a text such as `512M`; None where it is neither."""
    if isinstance(value, int):
        return value if not isinstance(value, bool) and value > 0 else None
    if not isinstance(value, str):
        return None
    import re

    found = re.match(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?\Z", value.strip(), re.IGNORECASE)
    if found is None:
        return None
    return int(float(found.group(1)) * 1024 ** _UNITS.index(found.group(2).upper() or " ")) or None


def limits(given: Optional[Mapping[Any, Any]]) -> dict[str, Union[int, float]]:
    """Limits as the protocol has them: bytes of memory and disk, processes, processors."""
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise refused(given, "set of limits", "give a dict: {'memory': '512M', 'pids': 100}")
    found: dict[str, Union[int, float]] = {}
    for name, value in given.items():
        one_of(name, ("memory", "pids", "cpus", "disk"), "limit")
        if name in ("memory", "disk"):
            amount = size(value)
            if amount is None:
                raise refused(value, f"size, for the limit {name}", "give bytes, or a text such as '512M'")
            found[name] = amount
        elif name == "pids":
            found[name] = whole(value, "limit of processes", 1, 1 << 22)
        else:
            found[name] = processors(value)
    return found


def processors(value: Any) -> Union[int, float]:
    """So many processors, or parts of one."""
    number = _number(value, "") if _is_number(value) else float("nan")
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            number = float(value)
    if not 0 < number < 1e6:
        raise refused(value, "number of processors", "give one above 0, such as 1.5")
    return int(number) if number == int(number) else number


def user(value: Any) -> Union[str, int, None]:
    """Whom something runs as: a name, or a number of a user."""
    if value is None:
        return None
    hint = "give a user's name, 'root', or a number"
    if isinstance(value, str):
        if value and all(letter.isprintable() and letter not in " :/" for letter in value) and value[0] != "-":
            if not (value.isascii() and value.isdigit()):
                return text(value, "user")
            number = int(value)
        else:
            raise refused(value, "user", hint)
    elif isinstance(value, int) and not isinstance(value, bool):
        number = value
    else:
        raise refused(value, "user", hint)
    # The last of all stands for nobody.
    if not 0 <= number < (1 << 32) - 1:
        raise refused(number, "user's number", hint)
    return number


def descriptor(target: Any) -> int:
    """The descriptor of an open file, socket or pipe of this process."""
    if target == -2:
        raise refused(target, "stream of a command", "say it in the command: 2>&1")
    try:
        number = int(target) if _is_number(target) else int(target.fileno())
        os.fstat(number)
    except (AttributeError, TypeError, ValueError, OSError, OverflowError):
        hint = "give PIPE, DEVNULL, or an open file"
        raise refused(target, "stream of a command", hint) from None
    return number


def signal(value: Any) -> int:
    """A signal's number."""
    import signal as signals

    if isinstance(value, str):
        raise refused(value, "number of a signal", "give one of the module signal: signal.SIGTERM")
    return whole(value, "number of a signal", 1, int(signals.NSIG) - 1)


def one_of(word: Any, choices: Sequence[str], what: str) -> str:
    """One of these words."""
    if not isinstance(word, str) or word not in choices:
        raise refused(word, what, near(word, choices))
    return word


def near(word: Any, choices: Sequence[str]) -> str:
    """A hint at the choice that was meant, or at all of them."""
    import difflib

    close = difflib.get_close_matches(str(word), choices, 1)
    return f"did you mean {close[0]!r}?" if close else f"choose one of {', '.join(choices)}"


def options(given: Mapping[str, Any], function: Callable[..., Any], what: str) -> None:
    """Options that are handed on to this function, whose keyword-only ones they must be."""
    known = tuple(getattr(function, "__kwdefaults__", None) or ())
    for name in given:
        if name not in known:
            raise refused(name, f"option of {what}", near(name, known))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _number(value: Any, what: str) -> float:
    try:
        number = float("nan") if isinstance(value, (bool, str, bytes)) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = float("nan")
    if number != number:
        from .errors import InvalidInput

        hint = "give a number of seconds"
        raise InvalidInput(f"{what} of {value!r} seconds is no length of time", hints=[hint])
    return number
