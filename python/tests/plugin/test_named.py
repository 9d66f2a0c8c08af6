"""Images, backends, users and networks that a project names: its places are in and of those."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

from support import needs_program, needs_user_namespaces

from .conftest import Project


def stored(project: Project, name: str) -> None:
    """Stores an image of this name: one program, and a file with the name."""
    archive = project.home.work / "root.tar"
    with tarfile.open(archive, "w") as out:
        out.add(Path(needs_program("busybox")).resolve(), "bin/sh")
        file = tarfile.TarInfo("name")
        file.size = len(name) + 1
        out.addfile(file, io.BytesIO(name.encode() + b"\n"))
    archive.chmod(0o644)
    done = project.home.run([str(project.python.with_name("testyard")), "image", "import", name, str(archive)])
    assert done.returncode == 0, done.stderr


NAME = """
import pytest

def name(place):
    return place.run("read -r name < /name && echo $name").stdout.strip()
"""


def test_a_run_has_a_machine_for_each_image_that_its_tests_name(anybodys_project: Project) -> None:
    needs_user_namespaces()
    for name in ("one:1", "two:1"):
        stored(anybodys_project, name)
    anybodys_project.write(
        "test_it.py",
        NAME
        + """
def test_none(isolated_env, machine):
    assert isolated_env.machine.name == machine.name and isolated_env.run("test -e /name", check=False).returncode == 1

@pytest.mark.testyard(image="one:1")
class TestOne:
    def test_isolated_env(self, isolated_env, machine):
        assert name(isolated_env) == "one:1" == isolated_env.machine.info().image
        assert isolated_env.machine.name != machine.name
        open("machines", "a").write(isolated_env.machine.name + "\\n")

    def test_vm(self, vm):
        assert name(vm) == "one:1"
        open("machines", "a").write(vm.machine.name + "\\n")

    def test_test_vm(self, test_vm):
        assert name(test_vm) == "one:1" == test_vm.info().image

    @pytest.mark.testyard(isolation="machine")
    def test_own_machine(self, isolated_env):
        assert name(isolated_env) == "one:1"

    @pytest.mark.testyard(image="two:1")
    def test_the_nearest_wins(self, isolated_env):
        assert name(isolated_env) == "two:1"
        open("others", "w").write(isolated_env.machine.name + "\\n")

@pytest.mark.testyard(user="1234", image="two:1", needs="user-namespace-range")
def test_user(test_vm):
    assert test_vm.info().user.split(":")[0] == "1234"
""",
    )
    told = anybodys_project.run().stdout
    assert "= 7 passed in " in told or ("= 6 passed, 1 skipped in " in told and "needs user-namespace-range" in told), (
        told
    )
    one = (anybodys_project.home.work / "machines").read_text().split()
    assert len(one) == 2 and len(set(one)) == 1, "tests of one image share its machine"
    assert (anybodys_project.home.work / "others").read_text().strip() not in one


def test_the_projects_image_and_backend_are_those_of_all_that_name_none(project: Project) -> None:
    needs_user_namespaces()
    stored(project, "one:1")
    project.write(
        "test_it.py",
        NAME
        + """
def test_isolated_env(isolated_env):
    assert name(isolated_env) == "one:1"

def test_test_vm(test_vm):
    assert name(test_vm) == "one:1"

@pytest.mark.testyard(image="host")
def test_named(isolated_env):
    assert isolated_env.run("test -e /name", check=False).returncode == 1
""",
    )
    project.passes("-o", "testyard_image=one:1", count=3)
    # The command line comes first.
    project.passes("-o", "testyard_image=host", "--testyard-image=one:1", "-k", "test_isolated_env", count=1)
    project.write("test_it.py", "def test_it(machine): assert machine.info().backend == 'host'\n")
    project.passes("-o", "testyard_backend=host", count=1)
    project.passes("-o", "testyard_backend=namespace", "--testyard-backend=host", count=1)


def test_networks_are_those_that_were_named(anybodys_project: Project) -> None:
    needs_user_namespaces()
    anybodys_project.write(
        "test_it.py",
        """
        import os
        import pytest

        MINE = os.readlink("/proc/self/ns/net")

        def routes(place):
            return len(place.run("grep -v ^Iface /proc/net/route", check=False).stdout.splitlines())

        @pytest.fixture(params=["isolated_env", "vm"])
        def place(request):
            return request.getfixturevalue(request.param)

        def is_mine(place):
            return place.run("readlink /proc/self/ns/net").stdout.strip() == MINE

        @pytest.mark.testyard(network="host")
        def test_host(place):
            assert is_mine(place)

        @pytest.mark.testyard(network="private")
        def test_private(place):
            assert not is_mine(place) and routes(place) == 0
            assert place.run("cat /sys/class/net/lo/operstate").stdout != "down\\n"

        @pytest.mark.testyard(network="none")
        def test_none(place):
            assert not is_mine(place) and routes(place) == 0

        @pytest.mark.testyard(network="outbound", needs="pasta")
        def test_outbound(place):
            assert not is_mine(place) and routes(place) > 0
        """,
    )
    told = anybodys_project.run("-n2").stdout
    assert "= 8 passed in " in told or ("= 6 passed, 2 skipped in " in told and "needs pasta" in told), told


def test_the_key_keeps_environments_of_failed_tests(project: Project) -> None:
    needs_user_namespaces()
    project.write(
        "test_it.py",
        """
        import pytest

        def test_it(isolated_env):
            isolated_env.run("false")

        @pytest.mark.testyard(isolation="machine", network="private")
        def test_own_machine(isolated_env):
            isolated_env.run("false")
        """,
    )
    told = project.fails("-o", "testyard_keep_failed=30m")
    assert told.count("kept for 1800 s") == 1 and "not kept: a machine of a test's own ends with it" in told, told
    assert len(project.home.machines()) == 1
