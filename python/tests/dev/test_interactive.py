"""The developer's machine by hand: shells, commands on this process's own streams, and what variables choose."""

from __future__ import annotations

import subprocess
import sys

import pytest

import testyard
from testyard.dev import DevContainerError, DevEnvironment, DevTask, DevVMStartupError


def typed(call: str, lines: str) -> subprocess.CompletedProcess[str]:
    """What a process of its own prints that makes this call, with these lines as its input."""
    code = f"from testyard.dev import DevEnvironment; dev = DevEnvironment(name='dev-test'); print(dev.{call})"
    return subprocess.run(
        [sys.executable, "-c", code], input=lines, capture_output=True, text=True, timeout=120, check=False
    )


def test_a_shell_takes_what_is_typed_and_ends_with_it(dev):
    shell = typed("connect()", "echo in the shell\nreadonly A=b; echo $A\nexit 3\n")
    assert shell.stdout.splitlines()[-3:] == ["in the shell", "b", "None"] and shell.returncode == 0, shell
    command = typed("connect('read line; echo said $line; echo wrong >&2; exit 3')", "typed\n")
    assert (command.stdout, command.stderr) == ("said typed\nNone\n", "wrong\n")
    # Without a command `run` is that shell, and tells of the machine.
    opened = typed("run()", "echo in the shell\n")
    assert "in the shell" in opened.stdout and "DevTask(name='dev-test'" in opened.stdout, opened


def test_a_machine_without_bash_has_a_shell_still(contained):
    contained.machine.run("rm -f /bin/bash /usr/bin/bash")
    shell = typed("connect()", "echo in the shell\n")
    assert shell.stdout.splitlines()[-2:] == ["in the shell", "None"], shell


def test_an_interactive_command_has_this_process_own_streams(dev, capfd):
    assert dev.exec("echo said; echo wrong >&2; exit 5", interactive=True) == 5
    assert capfd.readouterr() == ("said\n", "wrong\n")
    assert typed("exec('cat; exit 6', interactive=True)", "typed\n").stdout == "typed\n6\n"
    assert dev.exec("echo $A", interactive=True, env={"A": "b c"}) == 0
    assert capfd.readouterr().out == "b c\n"
    assert dev.exec("sleep 600", interactive=True, timeout=0.1) == 124
    with pytest.raises(testyard.InvalidInput, match="no length of time"):
        dev.exec("true", interactive=True, timeout=0)


def test_an_interactive_command_of_an_image_is_dockers(contained):
    done = typed("exec('cat; exit 6', 'ubuntu:22.04', True)", "typed\n")
    assert done.stdout == "typed\n6\n" and "stood in for" in done.stderr, done


def test_a_block_ends_and_the_machine_runs_on(dev):
    with DevEnvironment(name="dev-test") as same:
        assert same.exec("true") == 0
    assert dev.machine.info().state == "running" and dev.exec("true") == 0
    with DevEnvironment(auto_stop=True, name="dev-test"):
        pass
    assert dev.status()["vm"] is None


def test_a_machine_without_docker_is_not_tried_again(home, monkeypatch):
    plain = testyard.Machine.create("plain")
    if plain.info().backend == "host":
        pytest.skip("the host lacks it: backend namespace")
    plain.run("rm -f $(command -v docker)", check=False)
    environment = DevEnvironment(name="plain")
    # Such a machine is none of this surface's making.
    environment._adopt(plain.info().raw)
    tried = []
    once = environment._once
    monkeypatch.setattr(environment, "_once", lambda *given: tried.append(given) or once(*given))
    with pytest.raises(DevContainerError, match="docker is not installed") as caught:
        environment.exec("true", image="ubuntu:22.04", retries=5)
    assert len(tried) == 1 and not caught.value.transient and caught.value.image == "ubuntu:22.04"


def test_variables_choose_the_machine(home, monkeypatch):
    monkeypatch.setenv("TESTYARD_DEV_MACHINE", "chosen")
    monkeypatch.setenv("TESTYARD_DEV_BACKEND", "host")
    environment = DevEnvironment()
    task = environment.ensure_started()
    assert isinstance(task, DevTask) and task.name == "chosen"
    assert environment.machine.info().backend == "host"
    assert environment.delete() is True
    monkeypatch.setenv("TESTYARD_DEV_IMAGE", "nothing:1")
    monkeypatch.delenv("TESTYARD_DEV_BACKEND")
    with pytest.raises(DevVMStartupError, match="nothing:1"):
        environment.ensure_started()
    # What is said in the program comes first.
    named = DevEnvironment(name="named", image="host", backend="host")
    assert named.ensure_started().name == "named"
    assert [machine.name for machine in testyard.Machine.list()] == ["named"]


def test_more_images_may_be_stood_in_for(contained):
    script = "docker run --rm rust:1 echo in rust; docker run --rm node:18 echo in node; docker run --rm node:20 true"
    plain = contained.machine.run(script, check=False)
    assert plain.returncode != 0 and plain.stdout == "", plain
    named = contained.machine.run(script, check=False, env={"TESTYARD_DOCKER_STAND_INS": "rust,node:18"})
    assert named.stdout == "in rust\nin node\n" and named.returncode != 0, named
