"""Clean-up that survives the process, whichever way it ends."""

from __future__ import annotations

import sys
import time

import pytest

from support import Home
from testyard import _hold
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


def test_a_name_registered_before_a_raw_call_made_it_goes_at_exit(module_home: Home) -> None:
    ended(module_home, RAW)
    assert gone(module_home)


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
