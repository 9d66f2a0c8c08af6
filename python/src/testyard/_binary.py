"""The program `testyard`: where it is, and what it answers."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING, Any, Dict, Mapping, Optional, Sequence

from . import _given as given
from .errors import BinaryNotFound, ProtocolMismatch, from_exit, from_problem

if TYPE_CHECKING:
    import subprocess


def program() -> str:
    """The path of the program: `$TESTYARD_BINARY`, else beside this interpreter, else on `PATH`.

    Raises BinaryNotFound."""
    named = os.environ.get("TESTYARD_BINARY")
    if named:
        if os.path.isfile(named) and os.access(named, os.X_OK):
            return named
        raise BinaryNotFound(
            f"TESTYARD_BINARY names {named}, which is no program",
            hints=["correct it, or unset it to use the program that came with this package"],
        )
    import sysconfig

    beside = os.path.join(sysconfig.get_path("scripts"), "testyard")
    found = beside if os.access(beside, os.X_OK) else shutil.which("testyard")
    if not found:
        raise BinaryNotFound(
            "the program testyard is not there",
            causes=[f"it is neither {beside} nor on PATH"],
            hints=["install the wheel: pip install testyard", "or say where it is: TESTYARD_BINARY=/path/to/testyard"],
        )
    return found


def call(
    arguments: Sequence[str],
    *,
    timeout: Optional[float] = None,
    stdin: Optional[bytes] = None,
    variables: Optional[Mapping[str, str]] = None,
) -> dict[str, Any]:
    """Runs `testyard ARGUMENTS --json` and reads the one document that it prints.

    `variables` are set for it besides those of this process: what a command line would show to everybody. `timeout` is
    in seconds; without it, the table of limits has one (`testyard.vms.Timeouts`). Raises the error that the program
    told, TimedOut where it took longer."""
    import json
    import subprocess

    from ._retry import limit_of

    if timeout is None:
        timeout = limit_of(arguments)
    options: dict[str, Any] = {"stdin": subprocess.DEVNULL} if stdin is None else {"input": stdin}
    if variables:
        options["env"] = {**os.environ, **variables}
    try:
        done = _ran([*arguments, "--json"], timeout=timeout, **options)
    except subprocess.TimeoutExpired:
        from .errors import TimedOut

        hint = "raise the limit: testyard.vms.set_timeouts, or TESTYARD_TIMEOUT_… of docs/lifecycle.md"
        raise TimedOut(f"testyard {arguments[0]} took longer than {timeout:g} s", hints=[hint]) from None
    try:
        answer = json.loads(done.stdout) if done.stdout.strip() else {}
    except ValueError:
        answer = {}
    if isinstance(answer, dict) and "error" in answer:
        raise from_problem(answer["error"])
    if done.returncode != 0 or not isinstance(answer, dict):
        raise from_exit(done.returncode, done.stderr.decode("utf-8", "replace"))
    return _Answer(answer)


class _Answer(Dict[str, Any]):
    """What the program said. A part that is not there is told: another program of that name, or another version."""

    def __missing__(self, part: str) -> Any:
        raise ProtocolMismatch(
            f"{program()} said nothing of {part!r}",
            causes=["it is no `testyard`, or one of another version than this package"],
            hints=["see which one it is: testyard --version", "unset TESTYARD_BINARY to use the one of this package"],
        )


def _ran(arguments: Sequence[str], **options: Any) -> subprocess.CompletedProcess[bytes]:
    import subprocess

    line = [program(), *(given.text(word, "word for testyard") for word in arguments)]
    try:
        return subprocess.run(line, capture_output=True, **options)
    except OSError as error:
        hint = "see what it is: file " + line[0]
        raise BinaryNotFound(f"{line[0]} does not start", causes=[error.strerror or str(error)], hints=[hint]) from None
