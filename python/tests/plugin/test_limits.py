"""Limits of the marker are there: each one ends what goes beyond it, with each isolation, or the test is skipped."""

from __future__ import annotations

import re

from support import needs_user_namespaces, skip

from .conftest import Project, project_is_root

LIMITS = """
import pytest

FORKS = "for i in $(seq 60); do sleep 30 & done; echo all of them"
TAKES = ["python3", "-c", "print(len(bytearray(b'x') * (200 << 20)))"]
# As much of a processor as there is, for a second of its clock.
BURNS = ["python3", "-c", "import time as t\\nuntil = t.monotonic() + 1\\nwhile t.monotonic() < until: pass\\n"
         "print(t.process_time() / (t.monotonic() - until + 1))"]

def pids(place):
    done = place.run(FORKS, check=False)
    return "all of them" not in done.stdout and "fork" in done.stderr

def memory(place):
    done = place.run(TAKES, check=False)
    return done.returncode != 0 and not done.stdout

def cpus(place):
    return float(place.run(BURNS).stdout) < 0.3

def disk(place):
    return place.run("head -c 8M /dev/zero > /var/tmp/big", check=False, user="root").returncode != 0

@pytest.fixture(params=["isolated_env", "vm"])
def place(request):
    return request.getfixturevalue(request.param)

def test_without_limits_all_of_it_works(place):
    assert not pids(place) and not memory(place) and not disk(place)

@pytest.mark.testyard(limits={"pids": 30})
def test_pids(place):
    assert pids(place) and not memory(place)

@pytest.mark.testyard(limits={"memory": "64M"})
def test_memory(place):
    assert memory(place) and not pids(place)

@pytest.mark.testyard(limits={"cpus": 0.1})
def test_cpus(place):
    assert cpus(place)

@pytest.mark.testyard(limits={"disk": "1M"})
def test_disk(place):
    assert disk(place)

# More isolation than asked for is fine, fewer limits are not.
@pytest.mark.testyard(limits={"pids": 30, "memory": "64M"})
class TestEachIsolation:
    @pytest.mark.testyard(isolation="none")
    def test_none(self, isolated_env):
        assert pids(isolated_env) and memory(isolated_env)

    @pytest.mark.testyard(isolation="workspace")
    def test_workspace(self, isolated_env):
        assert pids(isolated_env) and memory(isolated_env)

    @pytest.mark.testyard(isolation="machine")
    def test_machine(self, isolated_env):
        assert pids(isolated_env) and memory(isolated_env)

@pytest.mark.testyard(isolation="machine", limits={"disk": "64M", "cpus": 0.1})
def test_of_a_machine(isolated_env):
    done = isolated_env.run("head -c 128M /dev/zero > /var/tmp/big", check=False)
    assert done.returncode != 0 and cpus(isolated_env)
"""


def check_all_hold(project: Project, *options: str, count: int) -> None:
    """All of them passed, or were skipped with a reason that names what cannot be limited here."""
    told = project.run(*options).stdout
    assert re.search(rf"= (?:{count} passed|\d+ passed, \d+ skipped) in ", told), told
    reasons = re.findall(r"^SKIPPED .*", told, re.MULTILINE)
    named = "this host cannot limit|backend namespace cannot give a machine with a disk"
    assert all(re.search(named, reason) for reason in reasons), told
    if reasons and project_is_root() and project.home.owner is None:
        skip("control groups for limits cannot be written here", host=True)


def test_limits_of_the_marker_hold(anybodys_project: Project) -> None:
    needs_user_namespaces()
    anybodys_project.write("test_it.py", LIMITS)
    check_all_hold(anybodys_project, "-n2", count=14)


def test_more_than_an_isolation_has_is_given_by_a_stronger_one(project: Project) -> None:
    needs_user_namespaces()
    project.write(
        "test_it.py",
        """
        import os
        import pytest

        HERE = os.path.dirname(__file__)
        MINE = os.readlink("/proc/self/ns/net")

        def network(place):
            return place.run("readlink /proc/self/ns/net").stdout.strip()

        @pytest.mark.parametrize("isolation", [
            pytest.param(word, marks=pytest.mark.testyard(isolation=word)) for word in ("none", "workspace", "machine")
        ])
        class TestEach:
            def test_as_it_is(self, isolated_env, isolation):
                assert network(isolated_env) == MINE
                assert isolated_env.run(["test", "-e", HERE + "/new"], check=False).returncode == 1

            @pytest.mark.testyard(user="nobody", needs="user-namespace-range")
            def test_user(self, isolated_env, isolation):
                assert isolated_env.run("id -un").stdout == "nobody\\n"
                assert isolated_env.spawn("id -un").stdout.read() == "nobody\\n"
                assert isolated_env.run("id -u", user="root").stdout == "0\\n"

            @pytest.mark.testyard(user=1234, needs="user-namespace-range")
            def test_number(self, isolated_env, isolation):
                assert isolated_env.run("id -u").stdout == "1234\\n"

            @pytest.mark.testyard(network="private")
            def test_network(self, isolated_env, isolation):
                assert network(isolated_env) != MINE

            @pytest.mark.testyard(source=True)
            def test_source(self, isolated_env, isolation):
                assert "test_it.py" in isolated_env.run(["ls", HERE]).stdout
                isolated_env.run(["touch", HERE + "/new"], user="root")
                assert not os.path.exists(HERE + "/new")
        """,
    )
    project.home.work.chmod(0o755)
    told = project.run("-n2").stdout
    # Where one id is all that there is, nobody can become another user.
    assert "= 15 passed in " in told or "= 9 passed, 6 skipped in " in told, told


# The same of the test's own process and what it starts.
ISOLATED = """
import subprocess
import sys
import time
import pytest

def pids():
    begun = []
    try:
        begun += (subprocess.Popen(["sleep", "30"]) for _ in range(60))
    except OSError:
        return True
    finally:
        for one in begun:
            one.kill()
            one.wait()
    return False

def memory():
    return subprocess.run([sys.executable, "-c", "bytearray(b'x') * (200 << 20)"]).returncode != 0

def test_without_limits_all_of_it_works():
    assert not pids() and not memory()

@pytest.mark.testyard(limits={"pids": 30})
def test_pids():
    assert pids() and not memory()

@pytest.mark.testyard(limits={"memory": "128M"})
def test_memory():
    assert memory() and not pids()

@pytest.mark.testyard(limits={"cpus": 0.1})
def test_cpus():
    began, used = time.monotonic(), time.process_time()
    while time.monotonic() < began + 1:
        pass
    assert (time.process_time() - used) / (time.monotonic() - began) < 0.3
"""


def test_limits_of_isolated_tests_hold(project: Project) -> None:
    needs_user_namespaces()
    if not project_is_root():
        skip("an ordinary user has no cgroup to write", host=True)
    project.write("test_it.py", ISOLATED)
    check_all_hold(project, "--testyard-isolate", count=4)
