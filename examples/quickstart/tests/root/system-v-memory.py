#!/usr/bin/python3 -BISs
"""Makes shared memory with a fixed key, and leaves it."""

import sys

sys.path.insert(0, ".")
import guard  # noqa: F401, E402
import ctypes  # noqa: E402

KEY, CREATE, EXCLUSIVE = 0x51C57A27, 0o1000, 0o2000
libc = ctypes.CDLL(None, use_errno=True)
number = libc.shmget(KEY, 8192, CREATE | EXCLUSIVE | 0o600)
assert number >= 0, f"shmget: error {ctypes.get_errno()}"
with open("/proc/sysvipc/shm") as table:
    rows = table.read().splitlines()[1:]
assert len(rows) == 1 and rows[0].split()[3] == "8192", rows
