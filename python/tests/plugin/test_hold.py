"""Machines that a process holds end with it, however it ends, and never while another holds them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from typing import Iterator

import pytest

from support import Home
from support.home import settled
from testyard import Machine, _hold
from testyard.errors import MachineNotFound

BACKEND = "host"  # what holds knows nothing of backends, and this one is there everywhere


@pytest.fixture(autouse=True)
def keeper_of_this_home(home: Home) -> Iterator[None]:
    """Each test has a keeper of its own home, and ends it."""
    _hold._forget_in_child()
    yield
    _hold._forget_in_child()


def start(home: Home, script: str) -> subprocess.Popen[str]:
    """A Python process in the home, which says something once it is ready."""
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)],
        env=home.environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    said = process.stdout.readline()
    assert said == "ready\n", said
    return process


def gone(home: Home, name: str) -> bool:
    return not settled(lambda: [one for one in home.machines() if one == name])


HOLDS = """
    import sys
    from testyard import Machine
    machine = Machine.create("held", backend="host", hold=True)
    print("ready", flush=True)
    sys.stdin.read()
"""


def test_a_killed_process_takes_its_machines_along(home: Home) -> None:
    process = start(home, HOLDS)
    assert home.machines() == ["held"]
    process.kill()
    process.wait()
    assert gone(home, "held")


def test_a_process_that_ends_takes_them_along(home: Home) -> None:
    process = start(home, HOLDS)
    process.communicate("")
    assert process.returncode == 0
    assert gone(home, "held")


def test_another_who_holds_keeps_it(home: Home) -> None:
    process = start(home, HOLDS)
    Machine.get("held").hold()
    process.kill()
    process.wait()
    machine = Machine.get("held")
    assert machine.state == "running"
    machine.unhold()
    with pytest.raises(MachineNotFound):
        Machine.get("held")


def test_what_was_never_held_stays(home: Home) -> None:
    Machine.create("mine", backend=BACKEND)
    Machine.create("held", backend=BACKEND, hold=True).unhold()
    assert home.machines() == ["mine"]
    Machine.get("mine").unhold()
    assert home.machines() == ["mine"]


def test_a_forked_child_that_lives_on_does_not_keep_it(home: Home) -> None:
    process = start(
        home,
        """
        import os, sys, time
        from testyard import Machine
        machine = Machine.create("held", backend="host", hold=True)
        child = os.fork()
        if child == 0:
            os.close(1)
            # Longer than the test; it is ended by it.
            time.sleep(600)
            os._exit(0)
        print("ready", flush=True)
        print(child, flush=True)
        sys.stdin.read()
        """,
    )
    assert process.stdout is not None
    child = int(process.stdout.readline())
    try:
        process.kill()
        process.wait()
        assert gone(home, "held")
        os.kill(child, 0)  # it lives
    finally:
        os.kill(child, signal.SIGKILL)


def test_a_forked_child_may_hold_for_itself(home: Home) -> None:
    process = start(
        home,
        """
        import os, sys
        from testyard import Machine
        machine = Machine.create("held", backend="host", hold=True)
        child = os.fork()
        if child == 0:
            Machine.get("held").hold()
            print("ready", flush=True)
            sys.stdin.read()
            os._exit(0)
        os.waitpid(child, 0)
        """,
    )
    # The first holder goes; the child's own keeper holds on.
    process.kill()
    process.wait()
    assert home.machines() == ["held"]
    assert process.stdin is not None
    process.stdin.close()
    assert gone(home, "held")


def test_a_process_started_by_it_does_not_keep_it(home: Home) -> None:
    process = start(
        home,
        """
        import subprocess, sys
        from testyard import Machine
        machine = Machine.create("held", backend="host", hold=True)
        child = subprocess.Popen(["sleep", "600"], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, close_fds=False)
        print("ready", flush=True)
        print(child.pid, flush=True)
        sys.stdin.read()
        """,
    )
    assert process.stdout is not None
    child = int(process.stdout.readline())
    try:
        process.kill()
        process.wait()
        assert gone(home, "held")
    finally:
        os.kill(child, signal.SIGKILL)


def test_a_keeper_that_was_killed_is_replaced(home: Home) -> None:
    machine = Machine.create("held", backend=BACKEND, hold=True)
    other = Machine.create("other", backend=BACKEND)
    (keeper,) = _hold._keepers
    killed = keeper.process
    killed.kill()
    killed.wait()
    other.hold()
    assert keeper.held >= {"other"}
    other.unhold()
    # `held` is either held again by the new keeper, or was deleted by a command that looked around in between.
    machine.unhold()
    assert gone(home, "held")


def test_threads_make_machines_side_by_side_and_all_of_them_end(home: Home) -> None:
    process = start(
        home,
        """
        import sys
        from concurrent.futures import ThreadPoolExecutor
        from testyard import Machine
        with ThreadPoolExecutor(4) as pool:
            made = list(pool.map(lambda number: Machine.create(f"held-{number}", backend="host", hold=True), range(6)))
        print("ready", flush=True)
        sys.stdin.read()
        """,
    )
    assert len(home.machines()) == 6
    process.kill()
    process.wait()
    assert settled(home.machines) == []


def test_ctrl_c_ends_the_program_and_then_the_machine(home: Home) -> None:
    process = start(home, HOLDS.replace("sys.stdin.read()", "sys.stdin.read() if True else None"))
    process.send_signal(signal.SIGINT)
    process.wait()
    assert gone(home, "held")


def test_nothing_is_left_of_a_keeper_that_holds_nothing(home: Home) -> None:
    machine = Machine.create("held", backend=BACKEND, hold=True)
    (keeper,) = _hold._keepers
    machine.delete(force=True)
    assert _hold._keepers == [] and keeper.process.returncode == 0
    with pytest.raises(MachineNotFound):
        _hold.hold("nobody")
    assert _hold._keepers == []


def test_another_home_has_another_keeper(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine.create("held", backend=BACKEND, hold=True)
    other = Home()
    with monkeypatch.context() as patch:
        for name, value in other.variables.items():
            patch.setenv(name, value)
        Machine.create("held", backend=BACKEND, hold=True).unhold()
        other.finish()
    assert home.machines() == ["held"]
    machine.unhold()
    assert home.machines() == []


def test_an_unknown_machine_cannot_be_held() -> None:
    with pytest.raises(MachineNotFound, match="there is no machine nobody"):
        _hold.hold("nobody")
