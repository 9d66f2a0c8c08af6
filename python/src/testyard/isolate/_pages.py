"""The pages of memory that every test writes, copied ahead of the test.

A fork shares its parent's memory, and pays a fault for each page when it first writes there. CPython writes wherever
it looks, as it counts references; for the smallest test that is some thousand pages. A process that is made ahead of
its test has them copied while the test before runs. Which they are is read from the first tests that end: the
parent's memory is where it is, so they are the same for all.

Only the kernel's own words are used: pages that a process alone has (`/proc/self/pagemap`), and a request to make a
range writable now (Linux 5.14; many ranges at once from 6.13). Where either is missing, tests fault as they go.
"""

from __future__ import annotations

import array
import contextlib
import ctypes
import os
from typing import Iterable, Optional

from . import _system

_SIZE = os.sysconf("SC_PAGE_SIZE")
_PRESENT = 1 << 63
_ALONE = 1 << 56
#: So many tests are heard; what all of them wrote is what every test writes.
_LEARNED = 3
#: What one call takes.
_MOST_RANGES = 1024

Ranges = list[tuple[int, int]]


def written() -> list[int]:
    """In a fork: the addresses of the pages that it has copied, or made, since."""
    found: list[int] = []
    with open("/proc/self/maps") as file:
        lines = file.readlines()
    pagemap = os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
    try:
        for line in lines:
            where, rights = line.split(None, 2)[:2]
            if rights[1] != "w" or rights[3] != "p":
                continue
            begin, end = (int(number, 16) for number in where.split("-"))
            entries = array.array("Q")
            entries.frombytes(os.pread(pagemap, (end - begin) // _SIZE * 8, begin // _SIZE * 8))
            found += [
                begin + index * _SIZE for index, entry in enumerate(entries) if entry & _PRESENT and entry & _ALONE
            ]
    finally:
        os.close(pagemap)
    return found


def ranges_of(pages: Iterable[int]) -> Ranges:
    """Addresses and sizes of what lies side by side."""
    found: Ranges = []
    for page in sorted(pages):
        if found and found[-1][0] + found[-1][1] == page:
            found[-1] = (found[-1][0], found[-1][1] + _SIZE)
        else:
            found.append((page, _SIZE))
    return found


class Pages:
    """The parent's knowledge of them."""

    def __init__(self) -> None:
        self._learned = 0
        self._common: Optional[set[int]] = None
        self._ranges: Optional[ctypes.Array[_system.Range]] = None

    def ask(self) -> bool:
        """Whether the next test is to tell what it wrote."""
        return self._learned < _LEARNED

    def learn(self, pages: Iterable[int]) -> None:
        """Takes what a test wrote."""
        self._learned += 1
        self._common = set(pages) if self._common is None else self._common & set(pages)
        found = ranges_of(self._common)[:_MOST_RANGES]
        self._ranges = (_system.Range * len(found))(*(_system.Range(*one) for one in found)) if found else None

    def copy(self) -> None:
        """In a fork: copies them now."""
        if self._ranges is not None:
            with contextlib.suppress(OSError):
                _system.make_writable(self._ranges)
