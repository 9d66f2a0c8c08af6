"""Commands in containers of a developer's machine, over its socket."""

from __future__ import annotations

import codecs
import contextlib
import os
import sys
from typing import Any, Callable, Mapping, NamedTuple, Optional, Sequence

from .. import _protocol as protocol
from .._connection import Exchange
from .._process import Completed, follow
from ..machine import Machine
from ._containers import Containers

Sink = Callable[[int, bytes], object]

#: A shell for who sits before it. An `exec` that fails ends `sh`: what is not there must not be tried.
LOGIN_SHELL = 'shell="${SHELL:-bash}"; command -v "$shell" >/dev/null || shell=sh; exec "$shell" -l'


class Found(NamedTuple):
    """A machine that was found, and what this process runs on it."""

    machine: Machine
    containers: Containers


def run_contained(
    found: Found,
    spec: Mapping[str, Any],
    command: str,
    sink: Sink,
    *,
    timeout: Optional[float] = None,
    env: Optional[Mapping[str, str]] = None,
    cwd: Optional[str] = None,
    words: Optional[Sequence[str]] = None,
) -> Completed:
    """Runs a command in a fresh container, told to whoever asks what runs."""
    # Its host name is that of its environment: one of its own would make each container another kind, and those that
    # the machine makes ahead would be nobody's.
    name = fresh_name()
    try:
        return exchange(
            found,
            {"fresh": spec},
            words or ["sh", "-c", command],
            sink,
            timeout=timeout,
            env=env,
            cwd=cwd,
            started=lambda environment: found.containers.add(name, command, environment),
        )
    finally:
        found.containers.remove(name)


def exchange(
    found: Found,
    place: Any,
    words: Sequence[str],
    sink: Sink,
    *,
    timeout: Optional[float],
    env: Optional[Mapping[str, str]],
    cwd: Optional[str],
    started: Callable[[Optional[int]], object] = lambda _: None,
) -> Completed:
    request = protocol.exec_request(
        words,
        place=place,
        cwd=cwd,
        env=env,
        user=None,
        timeout=timeout,
        stdin="null",
        stdout="frames",
        stderr="frames",
        quiet=False,
    )
    # Where nobody reads its end any more, closing ends the command.
    with found.machine._connections.lent() as connection:
        told = follow(Exchange(connection, request), sink, started=lambda told: started(told.get("environment")))
    code, timed_out = protocol.code_of(told["status"])
    return Completed(words, code, "", "", told.get("usage", {}), timed_out)


class Printer:
    """Passes a command's output on to `sys.stdout` and `sys.stderr`, whatever they are at the moment."""

    def __init__(self) -> None:
        self._decoders = [codecs.getincrementaldecoder("utf-8")("replace") for _ in range(2)]

    def __call__(self, channel: int, data: bytes) -> None:
        self._print(channel, self._decoders[channel - 1].decode(data))

    def end(self) -> None:
        """What was half a character stays so."""
        for channel in (1, 2):
            self._print(channel, self._decoders[channel - 1].decode(b"", True))

    def _print(self, channel: int, text: str) -> None:
        stream = sys.stdout if channel == 1 else sys.stderr
        if text and stream is not None:
            with contextlib.suppress(BrokenPipeError):
                stream.write(text)
                stream.flush()


def fresh_name() -> str:
    return f"flow-dev-exec-{os.urandom(4).hex()}"
