"""The fixtures of whole machines, in runs of the real pytest."""

from __future__ import annotations

import sys

from support import testyard_program

from .conftest import Project

THREE_LINES = """
def test_test_vm(test_vm):
    assert isinstance(test_vm, str) and test_vm.run("echo hello").stdout == "hello\\n"

def test_test_vm_manager(test_vm_manager):
    with test_vm_manager(image="host") as manager:
        assert manager.created and manager.vm_name.run("true").returncode == 0

def test_vm_pool(vm_pool):
    names = vm_pool(2, image="host")
    assert len(set(names)) == 2 and all(name.run("true").returncode == 0 for name in names)
"""


def test_each_fixture_in_three_lines(anybodys_project: Project) -> None:
    anybodys_project.write("test_it.py", THREE_LINES)
    anybodys_project.passes(count=3)
    assert anybodys_project.home.machines() == []


def test_machines_of_a_failed_test_and_of_a_worker_that_was_killed_end(project: Project) -> None:
    project.write(
        "test_it.py",
        """
        import os, signal

        def test_fails(test_vm, test_vm_manager, vm_pool):
            test_vm_manager(image="host").create()
            vm_pool(2, image="host")
            assert False

        def test_dies(test_vm):
            os.kill(os.getpid(), signal.SIGKILL)
        """,
    )
    told = project.run("-n2").stdout
    assert "2 failed" in told and "crashed while running" in told, told
    assert project.home.machines() == []


def test_an_image_that_is_not_there_has_a_stand_in_which_is_named(project: Project) -> None:
    project.write(
        "test_it.py",
        """
        def test_named(test_vm_manager):
            with test_vm_manager(image="nosuch:1.0") as manager:
                assert manager.vm_name.run("true").returncode == 0

        def test_isolated_env(isolated_env):
            isolated_env.run("true")
        """,
    )
    told = project.passes("-o", "testyard_image=host", count=2)
    assert "nosuch:1.0 is not there: host stands in for it, as testyard_image says" in told, told


def test_a_test_that_names_no_image_runs_on_this_hosts_root_with_a_warning(project: Project) -> None:
    project.write("test_it.py", "def test_it(test_vm): assert test_vm.run('true').returncode == 0\n")
    assert "no image was named" in project.passes(count=1)


# A program that passes everything on, but no order to create anything before three have come.
MEETING = """#!{python}
import os, subprocess, sys, time

if sys.argv[1] != "hold":
    os.execv({real!r}, [{real!r}, *sys.argv[1:]])
until = time.monotonic() + 60
with subprocess.Popen([{real!r}, *sys.argv[1:]], stdin=subprocess.PIPE) as real:
    for line in sys.stdin.buffer:
        if line.startswith(b"create "):
            with open({begun!r}, "ab") as begun:
                begun.write(line)
            # A second attempt for one of them is no other one.
            while len(set(open({begun!r}, "rb"))) < 3:
                if time.monotonic() > until or os.path.exists({begun!r} + ".in-vain"):
                    open({begun!r} + ".in-vain", "w").close()
                    sys.exit("the others did not come")
                time.sleep(0.01)
        real.stdin.write(line)
        real.stdin.flush()
    real.stdin.close()
    sys.exit(real.wait())
"""


def test_a_pool_is_made_side_by_side(project: Project) -> None:
    begun = str(project.home.work / "begun")
    text = MEETING.format(python=sys.executable, real=str(testyard_program()), begun=begun)
    project.write("program", text)
    program = project.home.work / "program"
    program.chmod(0o755)
    project.write("test_it.py", "def test_it(vm_pool): assert len(set(vm_pool(3, image='host'))) == 3\n")
    project.passes(count=1, variables={"TESTYARD_BINARY": str(program)})
    assert project.home.machines() == []


def test_a_pool_of_no_number_is_refused(project: Project) -> None:
    project.write(
        "test_it.py",
        """
        import pytest
        from testyard.errors import InvalidInput

        @pytest.mark.parametrize("count", [0, -1, "two", True, 10_000])
        def test_it(vm_pool, count):
            with pytest.raises(InvalidInput, match="is no number of machines"):
                vm_pool(count)
        """,
    )
    project.passes(count=5)
