"""What people do with a session: stop it, watch it, look into it, run tests again."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import select
import signal
import sys
import time
from typing import Iterator, Optional

import pytest

from support.home import settled

from .conftest import DEADLINE, Suite


class Terminal:
    """A pytest on a terminal of its own."""

    def __init__(self, suite: Suite, *options: str) -> None:
        command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *options]
        environment = suite.home.environment(TERM="dumb")
        self.said = ""
        self.pid, self._end = pty.fork()
        if self.pid == 0:
            try:
                os.chdir(suite.folder)
                os.execve(command[0], command, environment)
            finally:
                os._exit(70)

    def until(self, expression: Optional[str]) -> str:
        """What it says until that comes, or until it ends."""
        begin = len(self.said)
        deadline = time.monotonic() + DEADLINE
        while expression is None or not re.search(expression, self.said[begin:]):
            assert time.monotonic() < deadline, self.said
            if not select.select([self._end], [], [], 1.0)[0]:
                continue
            try:
                data = os.read(self._end, 4096)
            except OSError:
                data = b""
            if not data:
                assert expression is None, self.said
                break
            self.said += data.decode(errors="replace")
        return self.said[begin:]

    def type(self, text: str) -> None:
        """As a person would."""
        os.write(self._end, text.encode())

    def ends(self) -> int:
        """Its exit status, once it is over."""
        self.until(None)
        _, status = os.waitpid(self.pid, 0)
        self.pid = 0
        return os.waitstatus_to_exitcode(status)

    def close(self) -> None:
        """However the test went."""
        if self.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        os.close(self._end)


@contextlib.contextmanager
def terminal(suite: Suite, *options: str) -> Iterator[Terminal]:
    made = Terminal(suite, *options)
    try:
        yield made
    finally:
        made.close()


def test_the_debugger_has_the_terminal(suite: Suite) -> None:
    suite.write(
        "test_wrong.py",
        """
        import os
        PARENT = os.getpid()

        def test_wrong():
            answer, inside = 41, os.getpid() != PARENT
            assert answer == 42

        def test_right(): pass
        """,
    )
    with terminal(suite, "--testyard-isolate", "--pdb") as shown:
        shown.until(r"\(Pdb\) ")
        shown.type("p answer, inside\n")
        assert "(41, True)" in shown.until(r"\(41, \w+\)[\s\S]*\(Pdb\) ")
        shown.type("continue\n")
        assert shown.ends() == 1
        assert "1 failed, 1 passed" in shown.said


@pytest.mark.parametrize("how", ["--testyard-isolate", "--testyard-isolate=2"])
def test_an_interrupt_ends_the_session_and_leaves_nothing(suite: Suite, how: str) -> None:
    suite.write(
        "test_long.py",
        """
        import subprocess, sys, time

        def test_short(): pass

        def test_long(capfd):
            subprocess.Popen(["sleep", "86455"])
            with capfd.disabled():
                print("it is running", flush=True)
            time.sleep(3600)

        def test_never(): pass
        """,
    )
    with terminal(suite, how, "-v") as shown:
        # Side by side, either may be told first.
        shown.until(r"PASSED[\s\S]*it is running|it is running[\s\S]*PASSED")
        shown.type("\x03")
        assert shown.ends() == 2, shown.said
        assert "KeyboardInterrupt" in shown.said and "1 passed" in shown.said
        assert "INTERNALERROR" not in shown.said and "test_never PASSED" not in shown.said
    assert settled(lambda: [line for line in _command_lines() if "sleep\0" + "86455" in line]) == []


def _command_lines() -> list[str]:
    lines = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError), open(f"/proc/{name}/cmdline") as file:
            lines.append(file.read())
    return lines


@pytest.mark.parametrize("how", ["--testyard-isolate", "--testyard-isolate=2"])
def test_logs_are_told_live(suite: Suite, how: str) -> None:
    suite.write("pytest.ini", "[pytest]\nlog_cli = true\nlog_cli_level = INFO\n")
    suite.write(
        "test_logs.py",
        """
        import logging, pytest

        @pytest.fixture(scope="module")
        def higher(): logging.info("from above")

        def test_one(higher): logging.info("from the first")

        def test_two(): logging.info("from the second")
        """,
    )
    told = suite.told(how, passed=2)
    live = told.split("PASSES")[0]
    for text in ("from above", "from the first", "from the second"):
        assert live.count(text) == 1, told


@pytest.mark.parametrize("how", [("--testyard-isolate",), ("--testyard-isolate=3",), ("--testyard-isolate", "-n2")])
def test_what_fails_is_run_again(suite: Suite, how: tuple[str, ...]) -> None:
    pytest.importorskip("pytest_rerunfailures", reason="pytest-rerunfailures is not installed")
    suite.write(
        "test_again.py",
        """
        from pathlib import Path
        tries = []

        def test_third_time():
            tries.append(1)
            assert len(tries) == 3

        def test_never(): assert False

        def test_always(): assert tries == []
        """,
    )
    suite.told(*how, "--reruns=2", passed=2, failed=1, rerun=4)


@pytest.mark.parametrize(
    ("how", "limit", "counts"),
    [
        ("--testyard-isolate", "-x", {"passed": 1, "failed": 1}),
        ("--testyard-isolate", "--maxfail=2", {"passed": 2, "failed": 2}),
        ("--testyard-isolate=2", "-x", {"passed": 1, "failed": 1}),
    ],
)
def test_a_session_stops_at_failures(suite: Suite, how: str, limit: str, counts: dict[str, int]) -> None:
    suite.write(
        "test_stops.py",
        """
        import os, tempfile
        import pytest
        SHARED = tempfile.mkdtemp()

        @pytest.mark.parametrize("number", range(6))
        def test_one(number):
            open(os.path.join(SHARED, str(number)), "w").close()
            if number > 1:
                assert sorted(os.listdir(SHARED)) == [str(before) for before in range(number + 1)]
            assert number % 2 == 0

        @pytest.fixture(scope="module", autouse=True)
        def ran():
            yield
            print("ran:", sorted(os.listdir(SHARED)))
        """,
    )
    told = suite.told(how, limit, **counts)
    assert f"stopping after {counts['failed']} failures" in told
    if how == "--testyard-isolate":
        # What is made ready for the next test must not begin it.
        assert f"ran: {[str(number) for number in range(sum(counts.values()))]}" in told


def test_a_module_is_imported_by_one_test_for_all(suite: Suite) -> None:
    suite.write(
        "test_imports.py",
        """
        import os, sys
        import pytest

        @pytest.mark.parametrize("number", range(6))
        def test_imports(number):
            there = "this" in sys.modules
            own = "lazily" in sys.modules
            import lazily
            import this
            print(f"{number}: there {there}, own {own}")
        """,
    )
    suite.write("lazily.py", "print('a module of the suite')\n")
    lines = re.findall(r"(\d): there (\w+), own (\w+)", suite.told(passed=6))
    # The first knows nothing; the one after it may have been forked before the first was over.
    assert lines[0] == ("0", "False", "False")
    assert all(there == "True" for _, there, _ in lines[2:]), lines
    assert all(own == "False" for _, _, own in lines), lines
    apart = re.findall(r"there (\w+)", suite.told("-o", "testyard_isolate_imports=false", passed=6))
    assert apart == ["False"] * 6


def test_a_module_that_cannot_be_imported_here_disturbs_nobody(suite: Suite) -> None:
    suite.write(
        "test_imports.py",
        """
        import os, sys
        import pytest
        PARENT = os.getpid()

        class Refuses:
            def find_spec(self, name, path=None, target=None):
                if name in ("this", "antigravity") and os.getpid() == PARENT:
                    raise SystemExit("not here")
        sys.meta_path.insert(0, Refuses())

        @pytest.mark.parametrize("number", range(4))
        def test_imports(number):
            there = "this" in sys.modules
            import this
            assert not there
        """,
    )
    told = suite.told(passed=4)
    assert "not here" not in told


def test_folders_of_sessions_that_were_killed_are_removed(suite: Suite) -> None:
    suite.write("test_one.py", "def test_one(): pass\n")
    temporary = suite.home.path / "temporary"
    common = temporary / f"testyard-isolate-{os.getuid()}"
    for name in ("session-left", "session-used"):
        (common / name / "inside").mkdir(parents=True)
    common.chmod(0o700)
    used = os.open(common / "session-used", os.O_RDONLY)
    try:
        fcntl.flock(used, fcntl.LOCK_EX)
        suite.told(variables={"TMPDIR": str(temporary)}, passed=1)
    finally:
        os.close(used)
    assert os.listdir(common) == ["session-used"]


def test_snapshots_that_are_written_at_the_end_of_a_session(suite: Suite) -> None:
    pytest.importorskip("syrupy", reason="syrupy is not installed")
    suite.write(
        "test_snapshots.py",
        """
        import pytest

        @pytest.mark.parametrize("number", range(3))
        def test_kept(snapshot, number): assert {"number": number} == snapshot

        def test_other(): pass
        """,
    )
    told = suite.told("--snapshot-update", passed=4)
    assert "its fixture `snapshot` writes what it found when the session ends" in told
    suite.told(passed=4)
    suite.told("--testyard-isolate=2", "--snapshot-update", passed=4)
    assert suite.plain().returncode == 0
