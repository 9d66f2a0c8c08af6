"""Names of test VMs: unique under concurrency, and as values that know their machine."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Any

from testyard.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from testyard import Completed, Machine, MachineInfo

#: What a machine's name may have at most, in characters.
LONGEST = 63
_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"
_RANDOM = 10  # characters of base 36: 51 bits


def unique_name(prefix: str = "test-vm") -> str:
    """A name that no other call gives, in this process or any other: the prefix, the process, and 51 random bits.

    At most 63 characters; a longer prefix is cut. Raises `testyard.errors.InvalidInput` for a prefix that no machine's
    name can begin with.
    """
    if not isinstance(prefix, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", prefix):
        message = f"a machine's name cannot begin with {prefix!r}"
        raise InvalidInput(message, hints=["use letters, digits, `-`, `_` and `.`, beginning with a letter or digit"])
    # Read anew each time: a process forked since has another number and the system's generator, not a copied one.
    chance = int.from_bytes(os.urandom(8), "big") % len(_DIGITS) ** _RANDOM
    ending = f"-{_base36(os.getpid())}-{_base36(chance).rjust(_RANDOM, '0')}"
    return prefix[: LONGEST - len(ending)] + ending


def _base36(number: int) -> str:
    digits = ""
    while True:
        number, digit = divmod(number, len(_DIGITS))
        digits = _DIGITS[digit] + digits
        if not number:
            return digits


class VmName(str):
    """A VM's name that also runs commands and copies files in it.

    It is a plain `str` in every other way: for a helper, a command line, a dictionary.
    """

    __slots__ = ()

    @property
    def machine(self) -> Machine:
        """The machine of this name. Raises `testyard.errors.MachineNotFound`."""
        from testyard import Machine

        return Machine.get(str(self))

    def run(
        self,
        command: str | Sequence[str],
        *,
        check: bool = True,
        timeout: float | None = None,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        user: str | None = None,
        **options: Any,
    ) -> Completed:
        """Run a command in the VM; see `testyard.Machine.run`. `timeout` is in seconds."""
        with _closing(self.machine) as machine:
            return machine.run(command, check=check, timeout=timeout, cwd=cwd, env=env, user=user, **options)

    def push(self, source: str | os.PathLike[str], destination: str, *, user: str | None = None) -> None:
        """Copy a file or folder into the VM."""
        with _closing(self.machine) as machine:
            machine.push(source, destination, user=user)

    def pull(self, source: str, destination: str | os.PathLike[str], *, user: str | None = None) -> None:
        """Copy a file or folder out of the VM."""
        with _closing(self.machine) as machine:
            machine.pull(source, destination, user=user)

    def info(self) -> MachineInfo:
        """What the VM is now: its state, image, backend, …"""
        with _closing(self.machine) as machine:
            return machine.info()


class _closing:
    """Closes a machine's connection at the end; the machine itself stays."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine

    def __enter__(self) -> Machine:
        return self.machine

    def __exit__(self, *_: object) -> None:
        self.machine.close()
