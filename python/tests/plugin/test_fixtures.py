"""The fixtures, in runs of the real pytest."""

from __future__ import annotations

from .conftest import Project

THREE_LINES = """
def test_machine(machine):
    assert machine.run("echo hello").stdout == "hello\\n"

def test_isolated_env(isolated_env):
    isolated_env.run("rm -r /usr/share/doc", user="root")
    assert isolated_env.run("test -e /usr/share/doc", check=False).returncode == 1

def test_workspace(isolated_env, workspace):
    assert isolated_env.run(f"touch {workspace}/here && ls {workspace}").stdout == "here\\n"

def test_ports(ports):
    assert len(set(ports.take(3))) == 3

def test_vm(vm):
    vm.write_file("/root/new/folder/file", "text")
    assert vm.read_file("/root/new/folder/file") == b"text" and vm.run("id -u").stdout == "0\\n"
"""


def test_each_fixture_in_three_lines(anybodys_project: Project) -> None:
    anybodys_project.write("test_it.py", THREE_LINES)
    anybodys_project.passes(count=5)
    assert anybodys_project.home.machines() == []


def test_an_environment_has_what_the_surface_promises(project: Project) -> None:
    project.write(
        "test_it.py",
        """
        import os
        import pytest
        from testyard.errors import CommandFailed, CommandTimedOut

        def test_run(isolated_env):
            done = isolated_env.run("echo $A; pwd; echo err >&2; exit 3", check=False, cwd="/usr", env={"A": "b"})
            assert (done.returncode, done.stdout, done.stderr) == (3, "b\\n/usr\\n", "err\\n")
            with pytest.raises(CommandFailed, match="(?s)exit code 3.*out.*err"):
                isolated_env.run("echo out; echo err >&2; exit 3")
            with pytest.raises(CommandTimedOut):
                isolated_env.run("sleep 60", timeout=0.2)
            assert isolated_env.run(["echo", "a  b"]).stdout == "a  b\\n"

        def test_spawn(isolated_env):
            process = isolated_env.spawn("echo begun; exec sleep 600")
            assert process.stdout.readline() == "begun\\n"
            assert process.poll() is None and process.returncode is None
            process.kill()
            assert process.wait() == 137 and process.returncode == 137
            assert process.output() == "begun\\n"

        def test_identity(isolated_env, machine):
            assert isolated_env.test_id.endswith("test_it.py::test_identity")
            assert isolated_env.machine.name == machine.name

        def test_ports(isolated_env):
            ports = isolated_env.ports
            assert len(set(ports)) == 4 and ports == isolated_env.ports
            assert isolated_env.run("echo $TESTYARD_PORTS").stdout.strip()

        def test_files(isolated_env, workspace, tmp_path):
            (tmp_path / "a").write_text("a")
            isolated_env.push(tmp_path / "a", workspace / "a")
            isolated_env.pull(workspace / "a", tmp_path / "b")
            assert (tmp_path / "b").read_text() == "a" == isolated_env.read_text(workspace / "a")

        def test_two_tests_share_nothing_1(isolated_env):
            isolated_env.run("test ! -e /tmp/mark && touch /tmp/mark")

        def test_two_tests_share_nothing_2(isolated_env):
            isolated_env.run("test ! -e /tmp/mark && touch /tmp/mark")

        def test_no_handle_need_be_kept(isolated_env):
            isolated_env.spawn("python3 -m http.server 8080")
            isolated_env._environment.listening(8080)

        def test_torn_down_twice(isolated_env, vm):
            isolated_env.close()
            isolated_env.close()
            vm.close()

        def test_closed_places_say_so(isolated_env):
            isolated_env.close()
            with pytest.raises(Exception, match="is closed"):
                isolated_env.run("true")
        """,
    )
    project.passes(count=10)


def test_a_test_asks_for_its_place_with_the_marker(project: Project) -> None:
    project.write(
        "test_it.py",
        """
        import os
        import pytest

        pytestmark = pytest.mark.testyard(user="root")

        def test_the_modules_marker(isolated_env):
            assert isolated_env.run("id -u").stdout == "0\\n"

        @pytest.mark.testyard(network="none")
        def test_network(isolated_env):
            assert "state DOWN" in isolated_env.run("ip link show lo", user="root").stdout

        @pytest.mark.testyard(limits={"disk": "1M"})
        def test_disk(isolated_env):
            assert isolated_env.run("head -c 2M /dev/zero > /tmp/big", check=False).returncode != 0

        @pytest.mark.testyard(source=True)
        def test_source(isolated_env, request):
            here = str(request.config.rootpath)
            assert "test_it.py" in isolated_env.run("ls", cwd=here).stdout
            isolated_env.run("echo > new", cwd=here)
            assert not (request.config.rootpath / "new").exists()

        @pytest.mark.testyard(isolation="machine")
        def test_own_machine(isolated_env, machine):
            assert isolated_env.machine.name != machine.name
            isolated_env.run("touch /tmp/mine")
            assert isolated_env.workspace

        @pytest.mark.testyard(isolation="workspace")
        def test_workspace(isolated_env):
            assert isolated_env.run("test -d $TESTYARD_WORKSPACE && pwd").stdout

        @pytest.mark.testyard(isolation="none")
        def test_none(isolated_env, machine):
            isolated_env.run("touch /tmp/shared")
            machine.run("rm /tmp/shared")

        @pytest.mark.testyard(backend="host", isolation="workspace")
        def test_backend(isolated_env, machine):
            assert isolated_env.machine.info().backend == "host"
            assert isolated_env.machine.name != machine.name
        """,
    )
    project.home.work.chmod(0o755)
    project.passes(count=8)
    assert project.home.machines() == []
