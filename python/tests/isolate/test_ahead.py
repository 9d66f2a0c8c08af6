"""What is made ready for the next test while one runs: its process, and its memory."""

from __future__ import annotations

import ctypes
import mmap
import os
from typing import Any, Callable

import pytest

from testyard.isolate import _pages, _system

from .conftest import Suite

SIZE = mmap.PAGESIZE


def in_fork(action: Callable[[], Any]) -> str:
    """What an action returns in a fork of this process, as text."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(writer, repr(action()).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader) as file:
        said = file.read()
    os.waitpid(pid, 0)
    return said


class Memory:
    """Some pages of this process, all written."""

    def __init__(self, count: int) -> None:
        self.map = mmap.mmap(-1, count * SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.map.write(b"x" * count * SIZE)
        first = ctypes.addressof(ctypes.c_char.from_buffer(self.map))
        self.pages = [first + index * SIZE for index in range(count)]

    def among(self, pages: list[int]) -> list[int]:
        """Which of them are among these, by their index."""
        return [index for index, page in enumerate(self.pages) if page in set(pages)]


def test_a_fork_knows_what_it_wrote() -> None:
    memory = Memory(9)

    def write() -> list[int]:
        memory.map[3 * SIZE] = memory.map[7 * SIZE + 5] = 1
        return memory.among(_pages.written())

    assert in_fork(write) == "[3, 7]"


@pytest.mark.parametrize("several_at_once", [True, False])
def test_pages_that_all_wrote_are_copied_ahead(several_at_once: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not several_at_once:
        # As on an older kernel.
        monkeypatch.setattr(_system, "_SYS_PROCESS_MADVISE", 100_000)
    _system.load()
    memory = Memory(9)
    pages = _pages.Pages()
    pages.learn([*memory.pages[2:6], memory.pages[8]])
    assert pages.ask()
    pages.learn(memory.pages[3:])
    pages.learn(memory.pages)
    assert not pages.ask()

    def copy() -> tuple[list[int], bool]:
        pages.copy()
        return memory.among(_pages.written()), memory.map[:] == b"x" * 9 * SIZE

    assert in_fork(copy) == "([3, 4, 5, 8], True)"


def test_pages_that_are_gone_are_passed_over() -> None:
    _system.load()
    memory = Memory(4)
    pages = _pages.Pages()
    pages.learn([*memory.pages, SIZE])
    assert in_fork(lambda: pages.copy() or memory.map[:] == b"x" * 4 * SIZE) == "True"


def test_nothing_is_copied_before_something_is_known() -> None:
    _pages.Pages().copy()
    assert _pages.ranges_of([]) == []
    assert _pages.ranges_of([3 * SIZE, SIZE, 2 * SIZE, 7 * SIZE]) == [(SIZE, 3 * SIZE), (7 * SIZE, SIZE)]


AHEAD = """
    import os, tempfile, time
    import pytest
    SHARED = tempfile.mkdtemp()
    PARENT = os.getpid()

    def forked():
        # Before it joins an environment, and not in the second fork that an ordinary user's tests take.
        if os.getppid() in (0, PARENT):
            open(os.path.join(SHARED, str(time.monotonic_ns())), "w").close()

    os.register_at_fork(after_in_child=forked)

    @pytest.mark.parametrize("number", range(4))
    def test_one(number):
        deadline = time.monotonic() + 100
        wanted = min(number + 2, 4)
        while len(os.listdir(SHARED)) < wanted:
            assert time.monotonic() < deadline, "the next test's process is not made while this one runs"
            time.sleep(0.01)
"""


def test_the_next_process_is_made_while_one_runs(anybodys_suite: Suite) -> None:
    anybodys_suite.write("test_ahead.py", AHEAD)
    anybodys_suite.told(passed=4)


def test_a_process_made_ahead_in_vain_is_ended(suite: Suite) -> None:
    suite.write("test_ahead.py", AHEAD)
    suite.write(
        "conftest.py",
        """
        import pytest

        @pytest.hookimpl(trylast=True)
        def pytest_runtest_logfinish(nodeid):
            if "test_one[1]" in nodeid:
                SESSION[0].shouldstop = "enough"

        SESSION = []

        def pytest_sessionstart(session):
            SESSION.append(session)
        """,
    )
    told = suite.told(passed=2)
    assert "enough" in told
