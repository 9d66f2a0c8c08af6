"""What a child tells its parent: one JSON text a line. Whatever else a report holds arrives as text."""

from __future__ import annotations

import json
import os
import sys
import warnings
from typing import Any, Optional

_TUPLE = "\0tuple"


def _packed(value: Any) -> Any:
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, str):
        return str(value)
    if isinstance(value, tuple):
        return {_TUPLE: [_packed(one) for one in value]}
    if isinstance(value, (list, set, frozenset)):
        return [_packed(one) for one in value]
    if isinstance(value, dict):
        return {str(key): _packed(one) for key, one in value.items()}
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    try:
        return str(value)
    except Exception:
        return object.__repr__(value)


def _unpacked(value: Any) -> Any:
    if isinstance(value, list):
        return [_unpacked(one) for one in value]
    if isinstance(value, dict):
        if len(value) == 1 and _TUPLE in value:
            return tuple(_unpacked(one) for one in value[_TUPLE])
        return {key: _unpacked(one) for key, one in value.items()}
    return value


class Channel:
    """The child's end."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._owner = os.getpid()

    def send(self, kind: str, body: Any) -> None:
        """Says something; waits while the parent is busy. Nothing from a fork that the test made."""
        if os.getpid() != self._owner:
            return
        data = memoryview(json.dumps([kind, _packed(body)]).encode() + b"\n")
        while data:
            data = data[os.write(self._descriptor, data) :]


class Lines:
    """The parent's side: bytes in, messages out."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def feed(self, data: bytes) -> list[tuple[str, Any]]:
        """The messages that are whole now. What no child of ours writes is passed over."""
        self._rest += data
        *lines, rest = self._rest.split(b"\n")
        self._rest = bytearray(rest)
        messages = []
        for line in lines:
            try:
                kind, body = json.loads(bytes(line))
            except (ValueError, TypeError):
                continue
            messages.append((str(kind), _unpacked(body)))
        return messages


def warning_out(message: warnings.WarningMessage) -> dict[str, Any]:
    """A recorded warning as plain data."""
    category = message.category
    told = message.message
    arguments = told.args if isinstance(told, Warning) else (told,)
    simple = all(isinstance(one, (str, int, float, bool, type(None))) for one in arguments)
    return {
        "module": category.__module__,
        "category": category.__qualname__,
        "arguments": tuple(arguments) if simple else (str(told),),
        "text": str(told),
        "filename": message.filename,
        "lineno": message.lineno,
    }


def warning_in(data: Any) -> warnings.WarningMessage:
    """The warning again, of its own class where this process has that."""
    found: Any = sys.modules.get(data["module"])
    for part in data["category"].split("."):
        found = getattr(found, part, None)
    category: Any = found if isinstance(found, type) and issubclass(found, Warning) else UserWarning
    told: Optional[Warning] = None
    try:
        told = category(*data["arguments"])
        if str(told) != data["text"]:
            told = None
    except Exception:
        told = None
    message: Any = told if told is not None else data["text"]
    return warnings.WarningMessage(message, category, data["filename"], data["lineno"])
