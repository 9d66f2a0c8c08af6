"""The developer's machine from Python."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest

import testyard
from testyard.dev import (
    DevContainerError,
    DevEnvironment,
    DevVMNotFoundError,
    DevVMStartupError,
    Flow,
    TaskStatus,
)
from testyard.dev._running import exchange


@pytest.fixture
def unique():
    """A path below `/tmp` that no other test has: on backend `host` that is the host's."""
    path = f"/tmp/testyard-dev-{uuid.uuid4().hex}"
    yield path
    subprocess.run(["sh", "-c", f"rm -rf {path}*"], check=False)


def test_what_one_command_leaves_the_next_finds(dev, unique, capfd):
    assert dev.exec(f"echo left > {unique}; echo said; echo wrong >&2; exit 3") == 3
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("said\n", "wrong\n")
    assert dev.exec(f"cat {unique}") == 0
    assert capfd.readouterr().out == "left\n"
    assert dev.run(f"test -s {unique}") == 0
    done = dev.capture("echo $A; pwd", env={"A": "b"})
    assert done.stdout.splitlines()[0] == "b" and done.stdout.splitlines()[1] == dev.capture("echo ~").stdout.strip()


def test_home_belongs_to_the_machine_and_the_system_does_not(contained):
    assert contained.exec("echo mine > ~/mine; echo gone > /etc/gone; rm -r /usr/bin") == 0
    assert contained.exec("test -s ~/mine && ! test -e /etc/gone && test -d /usr/bin") == 0
    assert contained.stop() is True
    contained.ensure_started()
    assert contained.exec("test -s ~/mine") == 0
    contained.start(force_new=True)
    assert contained.exec("test -e ~/mine") == 1


def test_a_suite_gets_the_objects_that_it_knows(home):
    with Flow() as flow:
        dev = flow.dev
        assert dev is flow.dev
        task = dev.ensure_started(instance_type="a100", ssh_keys=["key"], max_price_per_hour=3.5)
        assert task.status == "running" and task.status is TaskStatus.RUNNING
        assert (task.instance_type, task.ssh_host) == ("a100", task.name) and task.ssh_port and task.task_id
        assert dev.ensure_started() == task
        status = dev.status()
        assert status["vm"]["name"] == task.name and status["vm"]["id"] == task.task_id
        assert status["vm"]["instance_type"] == "a100" and status["vm"]["status"] == "running"
        assert status["vm"]["uptime_hours"] >= 0 and status["active_containers"] == 0 and status["containers"] == []
        dev.reset()
        with flow.dev_context(auto_stop=True) as same:
            assert same.exec("true") == 0
        assert dev.status() == {"vm": None, "active_containers": 0, "containers": []}
        assert dev.stop() is False
        with pytest.raises(DevVMNotFoundError, match="ensure_started"):
            dev.exec("true")
        dev.delete()
        assert testyard.Machine.list() == []


def test_two_processes_get_one_machine(home):
    code = "from testyard.dev import dev; print(dev.ensure_started().task_id)"
    started = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(3)]
    ids = {process.communicate()[0].strip() for process in started}
    assert [process.returncode for process in started] == [0, 0, 0] and len(ids) == 1
    assert [machine.id for machine in testyard.Machine.list()] == list(ids)
    DevEnvironment().delete()


def test_fifty_commands_at_once_all_succeed(dev, unique):
    with ThreadPoolExecutor(50) as pool:
        codes = list(pool.map(lambda number: dev.exec(f"echo {number} > {unique}.{number}"), range(50)))
    assert codes == [0] * 50
    assert dev.capture(f"cat {unique}.* | wc -l").stdout.strip() == "50"


def test_what_runs_is_told_and_reset_ends_it(dev, unique):
    codes = []
    runners = [
        threading.Thread(target=lambda: codes.append(dev.exec(f"echo x >> {unique}; sleep 600"))) for _ in range(2)
    ]
    for runner in runners:
        runner.start()
    other = DevEnvironment(name="dev-test")
    assert dev.exec(f'while [ "$(cat {unique} 2>/dev/null | wc -l)" != 2 ]; do sleep 0.02; done') == 0
    for _ in range(600):
        # What a command writes may be there before the machine has told that it runs.
        status = other.status()
        if status["active_containers"] == 2:
            break
        time.sleep(0.05)
    assert status["active_containers"] == 2
    for container in status["containers"]:
        assert {"Names", "Status", "Image", "Command", "CreatedAt", "ID"} <= set(container)
        assert container["Command"].endswith("sleep 600") and container["Names"].startswith("flow-dev-exec-")
    other.reset()
    for runner in runners:
        runner.join(60)
    assert len(codes) == 2 and 0 not in codes
    assert other.status()["active_containers"] == 0 and other.exec("true") == 0


def test_a_command_is_known_before_what_it_writes(dev):
    order: list[str] = []
    spec = {"fresh": dev.container_spec()}
    for _ in range(30):
        exchange(
            dev._machine(), spec, ["echo", "x"], lambda channel, data: order.append("output"),
            timeout=None, env=None, cwd=None, started=lambda environment: order.append("started"),
        )  # fmt: skip
    assert order == ["started", "output"] * 30


def test_what_a_killed_process_ran_is_not_told(dev):
    code = "from testyard.dev import DevEnvironment; DevEnvironment(name='dev-test').exec('echo begun; sleep 600')"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"begun\n"
    assert dev.status()["active_containers"] == 1
    process.kill()
    process.wait()
    assert dev.status()["active_containers"] == 0


def test_an_image_is_run_by_the_machines_docker(contained, capfd):
    assert contained.exec("echo kept > ~/kept && cat /etc/os-release >&2", image="ubuntu:22.04") == 0
    assert "stood in for by this machine's own root" in capfd.readouterr().err
    assert contained.exec("test -s ~/kept && exit 4", image="ubuntu:22.04") == 4
    assert contained.capture("echo $A", image="debian:12", env={"A": "b"}).stdout == "b\n"
    with pytest.raises(DevContainerError, match="nonexistent/image") as caught:
        contained.exec("true", image="nonexistent/image:latest")
    assert caught.value.image == "nonexistent/image:latest" and not caught.value.transient
    assert any("pull access denied" in cause for cause in caught.value.causes) and caught.value.hints
    assert contained.exec("exit 125") == 125


def test_only_what_the_machine_breaks_is_tried_again(dev, unique, monkeypatch):
    assert dev.exec(f"echo x >> {unique}; exit 1", retries=3) == 1
    assert dev.capture(f"cat {unique}").stdout == "x\n"
    tried = []
    once = dev._once

    def break_first(*given):
        tried.append(given)
        if len(tried) < 3:
            raise DevContainerError("lost", transient=True)
        return once(*given)

    monkeypatch.setattr(dev, "_once", break_first)
    assert dev.exec("true", retries=3) == 0 and len(tried) == 3
    tried.clear()
    with pytest.raises(DevContainerError, match="lost"):
        dev.exec("true", retries=2)
    assert len(tried) == 2


def test_a_machine_that_was_stopped_by_somebody_else_is_told(dev):
    DevEnvironment(name="dev-test").stop()
    with pytest.raises(DevVMNotFoundError):
        dev.exec("true")
    dev.ensure_started()
    assert dev.exec("true") == 0
    machine = testyard.Machine.get("dev-test")
    machine.restart(force=True)
    assert dev.exec("true", retries=2) == 0


def test_mistakes_have_a_class_and_a_hint(dev, monkeypatch):
    for wrong in ("", "  ", None, ["ls"]):
        with pytest.raises(testyard.InvalidInput, match="no command"):
            dev.exec(wrong)
    with pytest.raises(testyard.InvalidInput, match="number of tries"):
        dev.exec("true", retries=-1)
    with pytest.raises(testyard.InvalidInput, match="hint: "):
        dev.exec("true", timeout=0)
    assert dev.exec("sleep 600", timeout=0.1) == 124
    with pytest.raises(DevVMStartupError, match="nothing:1") as caught:
        DevEnvironment(name="other", image="nothing:1").ensure_started(instance_type="a100")
    assert caught.value.instance_type == "a100"
    monkeypatch.setenv("TESTYARD_BINARY", "/nowhere/testyard")
    with pytest.raises(testyard.BinaryNotFound):
        DevEnvironment(name="other").ensure_started()


def test_a_fork_has_its_own_connections(dev):
    assert dev.exec("true") == 0
    child = os.fork()
    if child == 0:
        os._exit(dev.exec("exit 7"))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert dev.exec("true") == 0
