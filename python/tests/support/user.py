"""Being root of the host or an ordinary user, and becoming one."""

from __future__ import annotations

import os
import pwd
from pathlib import Path
from typing import Sequence

# The user that `cargo xtask test` makes for its second round.
ORDINARY = "tester"


def is_host_root() -> bool:
    """Whether this process is root of the host, not of a user namespace."""
    return os.geteuid() == 0 and Path("/proc/self/uid_map").read_text().split() == ["0", "0", "4294967295"]


def ordinary_user() -> pwd.struct_passwd | None:
    """The ordinary user that tests may be or become; none where there is none."""
    if os.geteuid() != 0:
        return pwd.getpwuid(os.geteuid())
    try:
        return pwd.getpwnam(ORDINARY)
    except KeyError:
        return None


def as_ordinary_user(command: Sequence[str]) -> list[str]:
    """The command as the ordinary user runs it; unchanged where this process already is one.

    A `Home` that such a command uses must have been made for that user: `Home(owner=ordinary_user())`.
    """
    user = ordinary_user()
    if os.geteuid() != 0:
        return list(command)
    if user is None:
        raise LookupError(f"there is no user {ORDINARY}; call needs_ordinary_user() first")
    become = ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--init-groups", "--"]
    return [*become, *command]
