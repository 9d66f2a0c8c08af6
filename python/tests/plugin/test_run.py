"""A run as a whole: one machine for all workers, which ends with the run however that ends; what failures tell."""

from __future__ import annotations

import os
import re
import signal

import pytest

from support.home import came, settled

from .conftest import DEADLINE, Project, kill_group, lines_of

SHARED = """
import os
import pytest

@pytest.mark.parametrize("number", range(12))
def test_it(isolated_env, number):
    isolated_env.run("true")
    with open("used", "a") as file:
        file.write(f"{os.environ.get('PYTEST_XDIST_WORKER')} {isolated_env.machine.id}\\n")
"""


def test_all_workers_share_one_machine_and_the_last_deletes_it(anybodys_project: Project) -> None:
    anybodys_project.write("test_it.py", SHARED)
    anybodys_project.passes("-n4", count=12)
    used = [line.split() for line in lines_of(anybodys_project.home.work / "used")]
    assert len({worker for worker, _ in used}) > 1, used
    assert len({machine for _, machine in used}) == 1, used
    assert anybodys_project.home.machines() == []


def test_runs_side_by_side_have_machines_of_their_own(project: Project) -> None:
    project.write("test_it.py", SHARED)
    first, second = project.start(), project.start()
    assert first.wait(DEADLINE) == 0 and second.wait(DEADLINE) == 0
    assert len({line.split()[1] for line in lines_of(project.home.work / "used")}) == 2
    assert settled(project.home.machines) == []


HANGS = """
import os
import pytest

@pytest.mark.parametrize("number", range(4))
def test_it(isolated_env, vm, number):
    isolated_env.spawn("sleep 600")
    with open("begun", "a") as file:
        file.write(f"{os.getpid()}\\n")
    vm.run("sleep 600")
"""


@pytest.mark.parametrize("workers", [0, 4])
def test_a_killed_run_leaves_nothing(anybodys_project: Project, workers: int) -> None:
    home = anybodys_project.home
    anybodys_project.write("test_it.py", HANGS)
    process = anybodys_project.start(f"-n{workers}")
    try:
        begun = home.work / "begun"
        assert came(lambda: len(lines_of(begun)) >= max(workers, 1))
        assert len(home.machines()) == 1
        process.kill()
        process.wait()
        # No command of Testyard's is needed for it: what is asked is only whether its folder is still there.
        machines = home.state / "machines"
        left = settled(lambda: [folder.name for folder in machines.iterdir()])
        if left:
            # execnet's workers take their time to notice that they are alone.
            left = settled(lambda: [folder.name for folder in machines.iterdir()])
        assert left == []
    finally:
        kill_group(process)


def test_a_worker_that_is_killed_mid_test_costs_its_test_only(project: Project) -> None:
    project.write(
        "test_it.py",
        """
        import os, signal
        import pytest

        @pytest.mark.parametrize("number", range(6))
        def test_it(isolated_env, number):
            if number == 2:
                os.kill(os.getpid(), signal.SIGKILL)
            isolated_env.run("true")
        """,
    )
    done = project.run("-n2")
    assert "1 failed, 5 passed" in done.stdout, done.stdout + done.stderr
    assert project.home.machines() == []


FAILS = """
import pytest

@pytest.fixture
def prepared(isolated_env):
    isolated_env.run("echo from the fixture")

def test_it(isolated_env, prepared):
    isolated_env.spawn("echo spawned; exec sleep 600").stdout.readline()
    isolated_env.run("echo kept > /tmp/mark; echo wrote this; echo and that >&2")
    assert False

def test_passes(isolated_env):
    isolated_env.run("echo not shown")
"""


def test_a_failure_tells_what_its_environments_last_commands_wrote(project: Project) -> None:
    project.write("test_it.py", FAILS)
    told = project.fails()
    section = told[told.index("-- testyard pytest-") :]
    assert "$ echo from the fixture  [exit code 0]\nfrom the fixture\n" in section, told
    assert "[still running]\nspawned\n" in section, told
    assert "[exit code 0]\nwrote this\nand that\n" in section, told
    assert "not shown" not in section and "kept for" not in section, told


@pytest.mark.parametrize("options", [["--testyard-keep-failed=1h"], ["--testyard-keep-failed", "-n2"]])
def test_the_environment_of_a_failed_test_is_kept_on_request(project: Project, options: list[str]) -> None:
    home = project.home
    project.write("test_it.py", FAILS)
    told = project.fails(*options, "test_it.py")
    found = re.search(r"kept for 3600 s; look at it: TESTYARD_HOME=\S+ testyard env enter (\S+/e\d+)", told)
    assert found, told
    name = found.group(1)
    assert home.machines() == [name.split("/")[0]], "its machine is kept with it"
    assert home.testyard("env", "enter", name, "--", "cat", "/tmp/mark").stdout == "kept\n"
    listed = home.testyard("env", "list").stdout
    assert name in listed and "test_it.py::test_it" in listed and len(listed.splitlines()) == 1, listed
    home.testyard("env", "delete", name)
    assert settled(lambda: [folder.name for folder in (home.state / "machines").iterdir()]) == []


def test_a_machine_of_the_users_own_is_used_and_stays(project: Project) -> None:
    project.write(
        "test_it.py", "def test_it(machine, isolated_env): assert machine.name == 'warm' == isolated_env.machine.name\n"
    )
    for _ in range(2):
        project.passes("--testyard-machine=warm", count=1)
    assert project.home.machines() == ["warm"]
    project.write("pytest.ini", "[pytest]\naddopts = -p no:cacheprovider\ntestyard_machine = warm\n")
    project.passes("-n2", count=1)
    assert project.home.machines() == ["warm"]


def test_interrupted_runs_leave_nothing(project: Project) -> None:
    project.write("test_it.py", HANGS)
    process = project.start()
    try:
        assert came(lambda: lines_of(project.home.work / "begun"))
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(DEADLINE) == 2
        assert settled(lambda: [folder.name for folder in (project.home.state / "machines").iterdir()]) == []
    finally:
        kill_group(process)


def test_a_fork_of_the_test_process_ends_nothing_of_it(project: Project) -> None:
    project.write(
        "test_it.py",
        """
        import os

        def test_it(isolated_env, machine):
            child = os.fork()
            if child == 0:
                machine.close()
                os._exit(0)
            os.waitpid(child, 0)
            assert isolated_env.run("echo fine").stdout == "fine\\n"
        """,
    )
    project.passes(count=1)
