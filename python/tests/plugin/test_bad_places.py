"""What is not there, or of another version, is an error where a fixture is used: with its cause, never a crash."""

from __future__ import annotations

import sys

from .conftest import Project

USES = """
def test_uses(isolated_env): pass

def test_does_not(tmp_path): pass
"""


def check_told(told: str, *words: str) -> None:
    for word in words:
        assert word in told, (word, told)
    assert "src/testyard" not in told and "site-packages/testyard" not in told, "no frame of the package\n" + told


def test_no_program_is_an_error_of_the_tests_that_need_it(project: Project) -> None:
    project.write("test_it.py", USES)
    told = project.fails(variables={"TESTYARD_BINARY": "/nowhere/testyard"})
    check_told(
        told, "1 passed, 1 error", "TESTYARD_BINARY names /nowhere/testyard, which is no program", "hint: correct it"
    )


def test_a_program_that_breaks_is_told(project: Project) -> None:
    project.write("test_it.py", USES)
    project.write("program", "#!/bin/sh\necho 'no such luck' >&2\nexit 1\n")
    program = project.home.work / "program"
    program.chmod(0o755)
    told = project.fails(variables={"TESTYARD_BINARY": str(program)})
    check_told(told, "1 passed, 1 error", "the process that holds this one's machines is gone")


SERVER = """#!{python}
import json, os, socket, sys, threading

path = os.path.join({folder!r}, "socket")
listener = socket.socket(socket.AF_UNIX)
listener.bind(path)
listener.listen()

def serve():
    while True:
        connection, _ = listener.accept()
        connection.recv(1 << 16)
        welcome = json.dumps({{"welcome": {{"version": 99, "server": "later", "generation": 0}}}}).encode()
        connection.sendall(len(welcome).to_bytes(4, "little") + bytes([1, 0, 0, 0, 0, 0, 0, 0]) + welcome)

threading.Thread(target=serve, daemon=True).start()
machine = {{"name": "m", "id": "abcdefghij", "state": "running", "created_ms": 0, "socket": path,
           "spec": {{"backend": "namespace", "image": "host"}}}}
for line in sys.stdin:
    print(json.dumps({{"version": 1, "held": "m", "machine": machine, "deleted": True}}), flush=True)
"""


def test_a_machine_that_speaks_another_version_is_told(project: Project) -> None:
    project.write("test_it.py", USES)
    project.write("program", SERVER.format(python=sys.executable, folder=str(project.home.work)))
    program = project.home.work / "program"
    program.chmod(0o755)
    told = project.fails(variables={"TESTYARD_BINARY": str(program)})
    check_told(told, "1 passed, 1 error", "version 99", "hint:")


def test_a_machine_that_goes_away_is_told(project: Project) -> None:
    project.write(
        "test_it.py",
        """
        def test_it(isolated_env):
            isolated_env.machine.delete(force=True)
            isolated_env.run("true")
        """,
    )
    told = project.fails()
    assert "1 failed" in told and "error" not in told.splitlines()[-1], told
    assert "testyard.errors." in told, told


def test_the_plugin_costs_nothing_until_it_is_used(project: Project) -> None:
    project.write(
        "test_it.py",
        """
        import sys

        def test_it():
            light = {"testyard", "testyard.plugin", "testyard.plugin._options",
                     "testyard.isolate", "testyard.isolate._options"}
            ours = {name for name in sys.modules if name.split(".")[0] == "testyard"}
            assert ours <= light, ours - light
        """,
    )
    # A program that could not even be started: none is.
    project.passes(count=1, variables={"TESTYARD_BINARY": "/nowhere/testyard"})
    project.write("test_it.py", "def test_it(isolated_env): pass\n")
    done = project.run("-p", "no:testyard")
    assert "fixture 'isolated_env' not found" in done.stdout


def test_a_wrong_value_ends_in_the_test_that_gave_it(project: Project) -> None:
    project.write(
        "test_it.py",
        """
        import asyncio
        import pathlib
        import pytest
        import testyard.aio

        @pytest.mark.testyard(source="/no/such/folder")
        def test_source(isolated_env): pass

        def test_word(isolated_env):
            isolated_env.run(["sleep", 5])

        def test_content(vm):
            vm.write_file("/tmp/x", 3)

        def test_option(test_vm_manager):
            test_vm_manager(imge="host")

        def test_image(vm_pool):
            vm_pool(1, image=7)

        def test_machine(machine):
            machine.run(["sleep", 6])

        def test_ports(ports):
            ports.take("many")

        def test_name(test_vm_manager):
            test_vm_manager("host", "no name").create()

        async def give():
            await testyard.aio.Image.delete("--all")

        def test_asyncio():
            asyncio.run(give())

        def test_words_that_are_paths_and_bytes_are_told_of(isolated_env):
            isolated_env.run([pathlib.Path("/bin/echo"), b"a path"])
            isolated_env.run(b"echo bytes")
            assert False
        """,
    )
    told = project.fails()
    check_told(told, "there is no folder /no/such/folder", "$ /bin/echo a path", "$ echo bytes", "9 failed, 1 error")
    for value in (
        "5 is no word of a command",
        "3 is no text",
        "'imge' is no option of",
        "7 is no name of an image",
        "6 is no word of a command",
        "'many' is no number of ports",
        "a machine's name cannot begin with 'no name'",
        "'--all' is no name of an image",
    ):
        assert f"InvalidInput: {value}" in told, (value, told)
    # Who looks for a mistake of the package sees all of it.
    assert "testyard/ports.py" in project.fails("--full-trace", "-k", "test_ports")
