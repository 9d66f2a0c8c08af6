"""Several tests at once, and tests that stay in the warm interpreter."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from support.home import came, settled

from .conftest import Suite

MANY = """
    import os, time
    import pytest

    @pytest.fixture(scope="module")
    def mine():
        here = os.getpid()
        yield here

    @pytest.mark.parametrize("number", range(12))
    def test_many(number, mine):
        time.sleep(0.02 * (number % 3))
        open("number", "w").write(str(number))
        assert mine != os.getpid() and open("number").read() == str(number)
"""


@pytest.mark.parametrize("jobs", ["2", "5", "auto"])
def test_several_at_once_are_told_in_order(anybodys_suite: Suite, jobs: str) -> None:
    for name in ("test_a.py", "test_b.py"):
        anybodys_suite.write(name, MANY)
    told = anybodys_suite.told(f"--testyard-isolate={jobs}", "-v", passed=24)
    names = [line.split(" ")[0] for line in told.splitlines() if "PASSED" in line and "%]" in line]
    assert names == [f"test_{letter}.py::test_many[{number}]" for letter in "ab" for number in range(12)]


def test_workers_of_xdist_share_a_machine(anybodys_suite: Suite) -> None:
    pytest.importorskip("xdist", reason="pytest-xdist is not installed")
    anybodys_suite.write("test_a.py", MANY)
    told = anybodys_suite.told("-n", "2", passed=12)
    assert "warnings" not in told.splitlines()[-1]


def test_what_stays_here_is_said_loudly(suite: Suite) -> None:
    suite.write(
        "test_here.py",
        """
        import os, pytest
        HERE = os.getpid()

        @pytest.mark.testyard(isolation="none")
        def test_here(): assert os.getpid() == HERE

        def test_there(): assert os.getpid() != HERE

        def test_machine(isolated_env):
            assert os.getpid() == HERE and isolated_env.run("echo there").stdout == "there\\n"
        """,
    )
    for how in ("--testyard-isolate", "--testyard-isolate=2"):
        told = suite.told(how, passed=3)
        assert 'test_here.py::test_here runs in this process, not isolated: its mark says isolation="none"' in told
        assert "test_here.py::test_machine ran without isolation: its fixture `isolated_env`" in told


def test_threads_are_named(suite: Suite) -> None:
    suite.write(
        "test_threads.py",
        """
        import threading
        import pytest

        @pytest.fixture(scope="module")
        def server():
            stop = threading.Event()
            thread = threading.Thread(target=stop.wait, name="the-server")
            thread.start()
            yield
            stop.set()
            thread.join()

        def test_alone(): pass
        def test_beside(server): assert threading.active_count() == 1
        def test_beside_too(server): pass
        """,
    )
    told = suite.told(passed=3)
    line = (
        "thread the-server was alive when tests were forked, and is not in them (first: test_threads.py::test_beside)"
    )
    assert told.count(line) == 1


def test_event_loops_of_higher_scopes(suite: Suite) -> None:
    pytest.importorskip("pytest_asyncio", reason="pytest-asyncio is not installed")
    suite.write("pytest.ini", "[pytest]\nasyncio_default_fixture_loop_scope = session\n")
    suite.write(
        "test_loops.py",
        """
        import asyncio
        import pytest, pytest_asyncio

        @pytest_asyncio.fixture(loop_scope="session", scope="session")
        async def service():
            queue = asyncio.Queue()
            yield queue

        @pytest.mark.asyncio(loop_scope="session")
        @pytest.mark.parametrize("number", range(8))
        async def test_in_the_sessions_loop(service, number):
            await service.put(number)
            await asyncio.sleep(0.05)
            assert service.qsize() == 1 and await service.get() == number

        @pytest.mark.asyncio
        async def test_in_a_loop_of_its_own(): await asyncio.sleep(0)
        """,
    )
    suite.told("--testyard-isolate=4", passed=9)


def test_wrong_options_are_named(suite: Suite) -> None:
    suite.write("test_one.py", "def test_one(): pass\n")
    done = suite.run("--testyard-isolate=none")
    assert done.returncode == 4 and "--testyard-isolate" in done.stderr, done.stderr
    done = suite.run("--testyard-isolate-network=wide")
    assert done.returncode == 4 and "private" in done.stderr, done.stderr
    suite.write("pytest.ini", "[pytest]\ntestyard_expose = /there/is/none\n")
    done = suite.run()
    assert done.returncode == 4 and "/there/is/none" in done.stderr and "Traceback" not in done.stderr, done.stderr
    # Paths that follow the option are no number of tests.
    suite.write("pytest.ini", "[pytest]\n")
    suite.told("--testyard-isolate", "test_one.py", passed=1)


def test_nothing_is_left_of_a_killed_run(suite: Suite) -> None:
    suite.write("test_long.py", "import time\ndef test_long():\n    open('.coverage', 'w')\n    time.sleep(600)\n")
    command = [sys.executable, "-m", "pytest", "-s", "--testyard-isolate"]
    with subprocess.Popen(
        command, cwd=suite.folder, env=suite.home.environment(), stdout=subprocess.DEVNULL, start_new_session=True
    ) as run:
        began = came(suite.home.machines)
        os.kill(run.pid, signal.SIGKILL)
    assert began

    def left() -> list[str]:
        suite.home.testyard("reap", check=False)
        return suite.home.machines()

    assert settled(left) == []


def test_more_descriptors_than_select_takes(suite: Suite) -> None:
    suite.write(
        "test_many.py",
        """
        import os, resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(3000, hard), hard))
        KEPT = [os.open("/dev/null", os.O_RDONLY) for _ in range(1100)]

        def test_one(): assert KEPT[-1] > 1024

        def test_two(): pass
        """,
    )
    suite.told(passed=2)
    suite.told("--testyard-isolate=2", passed=2)
