"""Clean-up that survives the process, whichever way it ends."""

from __future__ import annotations

import sys
import time

import pytest

from support import Home
from testyard import _hold
from testyard._vms import watch
from testyard.vms import create_test_vm

CREATES = """
import os, signal, sys
from testyard.vms import create_vm_with_retry, register_test_vm_for_cleanup
assert create_vm_with_retry("host", "mine", auto_cleanup=sys.argv[2] == "auto")
if sys.argv[2] == "after":
    register_test_vm_for_cleanup("mine")
print("made", flush=True)
if sys.argv[1] == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
if sys.argv[1] == "raised":
    raise RuntimeError("the test's own")
"""

BEFORE = CREATES.replace("assert create", "register_test_vm_for_cleanup('mine')\nassert create", 1)

# The surface that such suites have beside the helpers: a raw call of the program.
RAW = """
import subprocess, sys
from testyard._binary import program
from testyard.vms import register_test_vm_for_cleanup
register_test_vm_for_cleanup("mine")
subprocess.run([program(), "create", "mine"], check=True, stdout=subprocess.DEVNULL)
print("made", flush=True)
if sys.argv[1] == "forked":
    import os, time
    if os.fork() == 0:
        os.setsid()
        os.close(1)
        os.close(2)
        for _ in range(600):  # lives on until the VM is gone
            time.sleep(0.1)
            if b"mine" not in subprocess.run([program(), "list"], capture_output=True).stdout:
                break
if sys.argv[1] == "killed":
    import os, signal
    os.kill(os.getpid(), signal.SIGKILL)
"""


def ended(home: Home, script: str, *arguments: str) -> None:
    """Runs a script to its end, however that is."""
    done = home.run([sys.executable, "-c", script, *arguments])
    assert done.stdout == "made\n", done.stderr


def gone(home: Home) -> bool:
    """Whether its machines go by themselves; nothing here deletes one."""
    end = time.monotonic() + 60
    while home.machines() and time.monotonic() < end:
        time.sleep(0.05)
    return home.machines() == []


@pytest.mark.parametrize("how", ["returned", "raised", "killed"])
@pytest.mark.parametrize("when", ["auto", "after"])
def test_a_registered_vm_goes_with_its_process(module_home: Home, how: str, when: str) -> None:
    ended(module_home, CREATES, how, when)
    assert gone(module_home)


@pytest.mark.parametrize("how", ["returned", "killed"])
def test_a_name_may_be_registered_before_its_vm_is_made(module_home: Home, how: str) -> None:
    ended(module_home, BEFORE, how, "never")
    assert gone(module_home)


@pytest.mark.parametrize("how", ["returned", "killed", "forked"])
def test_a_name_registered_before_a_raw_call_made_it_goes(module_home: Home, how: str) -> None:
    ended(module_home, RAW, how)
    assert gone(module_home)


def test_a_vm_older_than_its_registration_is_somebody_elses(module_home: Home) -> None:
    module_home.testyard("create", "mine")
    assert watch.awaited(["await mine 5\n", "await other 6\n", "forget other\n", "forget none\n"]) == {"mine": 5}
    watch.delete("mine", int(time.time() * 1000) + 60_000)
    assert module_home.machines() == ["mine"]
    watch.delete("mine", 0)
    watch.delete("mine", 0)
    assert module_home.machines() == []


def test_a_vm_that_nobody_registered_stays(module_home: Home) -> None:
    ended(module_home, CREATES, "killed", "never")
    assert module_home.machines() == ["mine"]
    module_home.testyard("delete", "mine")


def test_one_process_holds_vms_of_several_homes(module_home: Home, home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    for where in (module_home, home, module_home):
        monkeypatch.setenv("TESTYARD_HOME", str(where.state))
        create_test_vm("host")
    assert (len(module_home.machines()), len(home.machines())) == (2, 1)
    for where in (module_home, home):
        monkeypatch.setenv("TESTYARD_HOME", str(where.state))
        _hold.unhold_all()
        assert where.machines() == []
