"""The helpers against real machines."""

from __future__ import annotations

import json
import os
import pwd
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from support import Home
from testyard import Machine, errors
from testyard.vms import (
    TestVMManager,
    VmName,
    create_test_vm,
    create_vm_with_retry,
    delete_test_vm,
    delete_vm_with_retry,
    execute_with_retry,
    last_error,
    set_timeouts,
    start_vm_with_retry,
    stop_vm_with_retry,
    unique_name,
)


def test_a_vm_lives_as_its_helpers_say(module_home: Home) -> None:
    name = unique_name("life")
    assert create_vm_with_retry("host", name)
    assert last_error() is None
    assert Machine.get(name).state == "running"
    for _ in range(2):
        assert stop_vm_with_retry(name)
        assert Machine.get(name).state == "stopped"
    for _ in range(2):
        assert start_vm_with_retry(name)
        assert Machine.get(name).state == "running"
    for _ in range(2):
        assert delete_vm_with_retry(name)
        assert name not in module_home.machines()


def test_a_helper_that_fails_says_why(module_home: Home, caplog: pytest.LogCaptureFixture) -> None:
    assert not start_vm_with_retry("nobody")
    assert isinstance(last_error(), errors.MachineNotFound)
    assert "could not start nobody: there is no machine nobody" in caplog.text
    assert "again in" not in caplog.text
    assert not stop_vm_with_retry("nobody")
    assert not create_vm_with_retry("host", "no good name")
    assert isinstance(last_error(), errors.InvalidInput)
    assert not create_vm_with_retry("host", unique_name(), user="nobody-of-that-name")
    assert isinstance(last_error(), errors.TestyardError)
    assert module_home.machines() == []


def test_user_and_architecture_are_those_that_were_named(module_home: Home) -> None:
    arch = os.uname().machine
    user = pwd.getpwuid(os.geteuid()).pw_name if os.geteuid() else "nobody"
    name = unique_name("who")
    assert create_vm_with_retry("host", name, arch=arch, user=user), last_error()
    with TestVMManager("host", arch=arch, user=user) as manager:
        for one in (name, str(manager.vm_name)):
            assert Machine.get(one).info().raw["spec"]["arch"] == arch
            assert execute_with_retry(one, "id -un").stdout == f"{user}\n"
            assert execute_with_retry(one, "id -u", user="root").stdout == "0\n"
    delete_test_vm(name)
    for other in ("pdp11", {"x86_64": "aarch64"}.get(arch, "x86_64")):
        assert not create_vm_with_retry("host", unique_name(), arch=other)
        assert isinstance(last_error(), (errors.InvalidInput, errors.NotSupported)), last_error()
    assert module_home.machines() == []


def test_a_name_that_is_taken_is_not_taken_over(module_home: Home) -> None:
    with TestVMManager("host") as manager:
        name = str(manager.vm_name)
        before = Machine.get(name).id
        assert not create_vm_with_retry("host", name)
        assert isinstance(last_error(), errors.MachineExists)
        assert Machine.get(name).id == before


def test_what_was_created_by_an_attempt_thought_lost_is_used(
    module_home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = Machine.create
    attempts = []

    def lost(name: str, **options: object) -> Machine:
        attempts.append(name)
        machine = create(name, **options)
        if len(attempts) == 1:
            raise errors.TimedOut("the answer came too late")
        return machine

    monkeypatch.setattr(Machine, "create", lost)
    name = unique_name("hung")
    assert create_vm_with_retry("host", name)
    assert attempts == [name, name]
    assert execute_with_retry(name, "echo up").stdout == "up\n"
    delete_test_vm(name)


def test_a_limit_ends_an_attempt_and_leaves_nothing(
    module_home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stuck = tmp_path / "testyard"
    stuck.write_text("#!/bin/sh\nexec sleep 600\n")
    stuck.chmod(0o755)
    with monkeypatch.context() as patch:
        patch.setenv("TESTYARD_BINARY", str(stuck))
        patch.setenv("TESTYARD_TIMEOUT_CREATE", "0.05")
        patch.setenv("TESTYARD_TIMEOUT_QUERY", "0.05")
        assert not create_vm_with_retry("host", unique_name(), auto_cleanup=False)
    assert isinstance(last_error(), errors.TimedOut)
    assert module_home.machines() == []


def test_a_commands_own_failure_is_a_result_and_runs_once(module_home: Home) -> None:
    with TestVMManager("host") as manager:
        name = manager.vm_name
        assert name is not None
        name.run("mkdir -p /tmp/own && chmod 777 /tmp/own")
        done = execute_with_retry(name, "echo x >> /tmp/own/count; echo out; echo err >&2; exit 7")
        assert (done.returncode, done.stdout, done.stderr) == (7, "out\n", "err\n")
        assert name.run("cat /tmp/own/count").stdout == "x\n"
        assert execute_with_retry(name, ["printf", "%s|", "a b", "$HOME"]).stdout == "a b|$HOME|"
        told = execute_with_retry(name, "cat; pwd; echo $A", input="in\n", cwd="/tmp", env={"A": "1"})
        assert told.stdout == "in\n/tmp\n1\n"
        slow = execute_with_retry(name, "sleep 600", timeout=0.2)
        assert (slow.returncode, slow.timed_out) == (124, True)
        with pytest.raises(errors.CommandFailed, match="exit code 3"):
            execute_with_retry(name, "exit 3", check=True)
        assert isinstance(last_error(), errors.CommandFailed)


def test_a_machine_that_comes_back_is_waited_for(module_home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    status = Machine.status
    asked = []

    def gone_at_first(machine: Machine) -> dict:
        asked.append(machine.name)
        if len(asked) < 3:
            raise errors.ConnectionLost("the machine's agent is gone")
        return status(machine)

    with TestVMManager("host") as manager:
        monkeypatch.setattr(Machine, "status", gone_at_first)
        assert execute_with_retry(str(manager.vm_name), "echo back").stdout == "back\n"
        assert len(asked) == 3


def test_a_command_that_may_have_begun_is_not_begun_again(module_home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Machine.run
    calls = []

    def lost_midway(machine: Machine, command: object, **options: object) -> object:
        done = run(machine, command, **options)
        calls.append(command)
        if len(calls) == 1:
            raise errors.ConnectionLost("the connection was lost")
        return done

    with TestVMManager("host") as manager:
        name = str(manager.vm_name)
        monkeypatch.setattr(Machine, "run", lost_midway)
        with pytest.raises(errors.ConnectionLost):
            execute_with_retry(name, "true")
        assert len(calls) == 1
        calls.clear()
        assert execute_with_retry(name, "true", repeatable=True).returncode == 0
        assert len(calls) == 2


def test_a_stopped_or_missing_vm_is_told_at_once(module_home: Home, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(errors.MachineNotFound):
        execute_with_retry("nobody", "true")
    name = create_test_vm("host", start=False)
    assert Machine.get(name).state == "stopped"
    with pytest.raises(errors.WrongState) as told:
        execute_with_retry(name, "true")
    assert any("testyard start" in hint for hint in told.value.hints)
    assert "again in" not in caplog.text
    delete_test_vm(name)


def supervisor_of(home: Home, name: str) -> int:
    """The process of this host that owns the machine."""
    return int(json.loads(home.testyard("info", name, "--json").stdout)["machine"]["supervisor_pid"])


def test_a_machine_whose_supervisor_was_killed_gets_another(module_home: Home) -> None:
    name = create_test_vm("host")
    os.kill(supervisor_of(module_home, name), signal.SIGKILL)
    assert execute_with_retry(name, "echo still").stdout == "still\n"
    os.kill(supervisor_of(module_home, name), signal.SIGKILL)
    assert start_vm_with_retry(name), last_error()
    assert execute_with_retry(name, "echo again").stdout == "again\n"
    delete_test_vm(name)


def test_many_are_made_side_by_side_under_one_prefix(module_home: Home) -> None:
    with ThreadPoolExecutor(4) as threads:
        names = list(threads.map(lambda _: create_test_vm("host", "side"), range(6)))
    assert len(set(names)) == 6
    assert all(isinstance(name, VmName) for name in names)
    assert sorted(names) == module_home.machines()
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(delete_test_vm, names))
    assert module_home.machines() == []


def test_a_vm_name_runs_and_copies(module_home: Home, tmp_path: Path) -> None:
    with TestVMManager("host", "copy") as manager:
        vm = manager.vm_name
        assert vm is not None
        (tmp_path / "in").write_text("there and back")
        vm.push(tmp_path / "in", "/tmp/in")
        assert vm.run("cat /tmp/in").stdout == "there and back"
        vm.pull("/tmp/in", tmp_path / "out")
        assert (tmp_path / "out").read_text() == "there and back"
        assert vm.info().name == vm
        assert vm.info().state == "running"


def test_the_manager_deletes_what_it_made_also_after_an_error(module_home: Home) -> None:
    manager = TestVMManager("host")
    assert (manager.vm_name, manager.created) == (None, False)
    with pytest.raises(RuntimeError, match="the test's own"), manager:
        assert manager.created
        assert module_home.machines() == [manager.vm_name]
        raise RuntimeError("the test's own")
    assert not manager.created
    assert module_home.machines() == []
    manager.delete()
    with manager as again, manager:
        assert module_home.machines() == [again.vm_name]
    assert module_home.machines() == []


def test_the_managers_name_is_not_collected_as_a_test() -> None:
    assert TestVMManager.__test__ is False


def test_limits_hold_for_one_process_only_as_long_as_said(module_home: Home) -> None:
    set_timeouts(ready=45)
    try:
        with TestVMManager("host"):
            pass
    finally:
        set_timeouts(ready=None)
