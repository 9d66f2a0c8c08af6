"""Values that no call can mean: each is told as what it is, with a hint, before anything is connected or started."""

from __future__ import annotations

import asyncio
import resource
import subprocess
from datetime import timedelta
from pathlib import Path
from typing import Any, Callable

import pytest

import testyard
from testyard import Cluster, Environment, Image, Machine, Pool, Ports, aio, live
from testyard.machine import machine_info
from testyard.vms import RETRY, register_test_vm_for_cleanup, set_project_image

Call = Callable[[Machine], Any]
HINT = "\nhint: "


@pytest.fixture
def unreachable(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """A machine that nobody reaches, and no program to ask about it: what is told was told by the package alone."""
    monkeypatch.setenv("TESTYARD_BINARY", "/nowhere/testyard")
    raw = {"name": "web", "id": "abcdefghij", "state": "running", "created_ms": 0, "socket": "/nowhere/machine.sock"}
    return Machine(machine_info({**raw, "spec": {"backend": "namespace", "image": "host"}}))


def environment(machine: Machine, **options: Any) -> Environment:
    return machine.environment(**options)


def opened(machine: Machine) -> Environment:
    """An environment as it is while it is held."""
    one = Environment.__new__(Environment)
    one._set_up(machine, {"isolation": "namespace"})
    one._holder = object()  # type: ignore[assignment]
    return one


def empty_pool() -> Pool:
    pool = Pool.__new__(Pool)
    pool._begin()
    return pool


COMMANDS: dict[str, Call] = {
    "5": lambda m: m.run(["sleep", 5]),
    "None": lambda m: m.run(None),
    "7": lambda m: m.run(7),
    "PosixPath('/bin/true')": lambda m: m.run(Path("/bin/true")),
    "{'a': 'b'}": lambda m: m.run({"a": "b"}),
    "{'words'}": lambda m: m.spawn({"words"}),
    "'a\\x00b'": lambda m: m.run(["echo", "a\0b"]),
    "'echo \\ud800'": lambda m: m.run("echo \ud800"),
    "8080": lambda m: m.run("true", env={"PORT": 8080}),
    "[('A', 'b')]": lambda m: m.run("true", env=[("A", "b")]),
    "'A=B'": lambda m: m.run("true", env={"A=B": "c"}),
    "''": lambda m: m.run("true", env={"": "c"}),
    "'5'": lambda m: m.run("true", timeout="5"),
    "True": lambda m: m.run("true", timeout=True),
    "datetime.timedelta(seconds=5)": lambda m: m.run("true", timeout=timedelta(seconds=5)),
    "nan": lambda m: m.run("true", timeout=float("nan")),
    "1.5": lambda m: m.run("true", user=1.5),
    "False": lambda m: m.run("true", user=False),
    "-1": lambda m: m.run("true", user=-1),
    "4294967295": lambda m: m.run("true", user="4294967295"),
    "'a:b'": lambda m: m.run("true", user="a:b"),
    "3": lambda m: m.run("true", cwd=3),
    "12": lambda m: m.run("cat", input=12),
    "['a']": lambda m: m.run("cat", input=["a"]),
    "'log.txt'": lambda m: m.spawn("true", stdout="log.txt"),
    "-2": lambda m: m.spawn("true", stderr=subprocess.STDOUT),
    "987654": lambda m: m.spawn("true", stdout=987654),
}
FILES: dict[str, Call] = {
    "3": lambda m: m.write_file("/tmp/x", 3),
    "None": lambda m: m.write_file("/tmp/x", None),
    "[1]": lambda m: m.write_file("/tmp/x", [1]),
    "'644'": lambda m: m.write_file("/tmp/x", "", mode="644"),
    "-1": lambda m: m.write_file("/tmp/x", "", mode=-1),
    "4": lambda m: m.write_file(4, ""),
    "5": lambda m: m.read_file(5),
    "''": lambda m: m.read_text(""),
    "'a\\x00b'": lambda m: m.read_text("a\0b"),
    "6": lambda m: m.push(6, "/tmp"),
    "7": lambda m: m.push("/etc/hosts", 7),
    "'c\\x00d'": lambda m: m.push("c\0d", "/tmp"),
    "8": lambda m: m.pull("/etc/hosts", 8),
    "9.5": lambda m: m.pull("/etc/hosts", "/tmp/x", user=9.5),
}
ENVIRONMENTS: dict[str, Call] = {
    "/none": lambda m: environment(m, source="/none"),
    "/etc/hosts": lambda m: environment(m, source="/etc/hosts"),
    "11": lambda m: environment(m, source=11),
    "['memory']": lambda m: environment(m, limits=["memory"]),
    "'512M'": lambda m: environment(m, limits="512M"),
    "'64Q'": lambda m: environment(m, limits={"memory": "64Q"}),
    "-5": lambda m: environment(m, limits={"pids": -5}),
    "'many'": lambda m: environment(m, limits={"cpus": "many"}),
    "True": lambda m: environment(m, limits={"disk": True}),
    "12": lambda m: environment(m, host_name=12),
    "13": lambda m: environment(m, layer=13),
    "'yes'": lambda m: environment(m, strict_limits="yes"),
    "'no'": lambda m: environment(m, cgroups="no"),
    "14": lambda m: environment(m, network=14),
    "'two'": lambda m: environment(m, ports="two"),
    "'three'": lambda m: m.park("three"),
    "-1": lambda m: m.park(-1),
    "'netwrk'": lambda m: m.park(1, netwrk="host"),
    "'80'": lambda m: opened(m).listening("80"),
    "70000": lambda m: opened(m).listening(70000),
    "'soon'": lambda m: opened(m).keep("soon"),
    "0": lambda m: opened(m).fork(0),
    "15": lambda m: opened(m).seal(15),
    "'all'": lambda m: opened(m).changes("all"),
}
MAKING: dict[str, Call] = {
    "'web'": lambda _: Machine("web"),
    "'shop'": lambda _: Cluster("shop"),
    "16": lambda _: Machine.create(image=16),
    "1.5": lambda _: Machine.create(user=1.5),
    "'two'": lambda _: Machine.create(cpus="two"),
    "0": lambda _: Machine.create(cpus=0),
    "['1G']": lambda _: Machine.create(memory=["1G"]),
    "True": lambda _: Machine.create(disk=True),
    "-3": lambda _: Machine.create(idle=-3),
    "nan": lambda _: Machine.create(ttl=float("nan")),
    "17": lambda _: Machine.create(expose=17),
    "18": lambda _: Machine.create(expose=[18]),
    "19": lambda _: Machine.create(pass_env=[19]),
    "'yes'": lambda _: Machine.create(privileged="yes"),
    "'imge'": lambda _: Machine.ensure("web", imge="host"),
    "20": lambda m: m.rename(20),
    "'nodse'": lambda _: Cluster.ensure("web", nodse=2),
    "[21]": lambda _: Cluster.create(partitions=[21]),
    "22": lambda _: Cluster.create(partitions=22),
    "'ssh'": lambda _: Cluster.create(ssh_port="ssh"),
    "23": lambda _: Cluster.create(password=23),
}
POOLS_AND_IMAGES: dict[str, Call] = {
    "True": lambda _: Pool(True),
    "24": lambda _: Pool(1, name_prefix=24),
    "'a b'": lambda _: Pool(1, name_prefix="a b"),
    "'memroy'": lambda _: Pool(1, memroy="1G"),
    "'soon'": lambda _: empty_pool().take("soon"),
    "'web'": lambda _: empty_pool().give_back("web"),
    "25": lambda _: Image.import_(25, "/tmp/x.tar"),
    "26": lambda _: Image.import_("app:1", 26),
    "'a\\x00b'": lambda _: Image.delete("a\0b"),
    "'--help'": lambda _: Image.delete("--help"),
    "'-x'": lambda _: Image.build("-x"),
    "''": lambda _: Image.delete(""),
    "27": lambda _: Image.pull("localhost:1/app", user=27),
    "28": lambda _: Image.pull("localhost:1/app", user="me", password=28),
    "'later'": lambda _: Image.pull("localhost:1/app", timeout="later"),
    "29": lambda _: Image.export("app:1", 29),
    "'x'": lambda _: Ports().take("x"),
    "30": lambda _: Ports(key=30),
}
OTHERS: dict[str, Call] = {
    "'web'": lambda _: aio.Machine("web"),
    "'lab'": lambda _: aio.Cluster("lab"),
    "'yes'": lambda m: m.spawn("true", detach="yes"),
    "'tmeout'": lambda m: asyncio.run(aio.Machine(m).spawn("true", tmeout=5)),
    "name='/dev/null'": lambda m: m.write_file("/tmp/x", open("/dev/null")),  # noqa: SIM115
    "31": lambda _: live.exposures(31),
    "/no/such/tree": lambda _: live.exposures("/no/such/tree"),
    "'shop'": lambda _: live.place("shop", "."),
    "32": lambda _: live.place(Cluster, sources=[32]),
    "'two'": lambda _: RETRY._replace(attempts="two").call(print),
    "'none'": lambda _: RETRY._replace(first_delay="none").call(print),
    "33": lambda _: set_project_image(33),
    "'a b'": lambda _: register_test_vm_for_cleanup("a b"),
}


@pytest.mark.parametrize(
    "calls",
    [COMMANDS, FILES, ENVIRONMENTS, MAKING, POOLS_AND_IMAGES, OTHERS],
    ids=["commands", "files", "environments", "making", "pools and images", "others"],
)
def test_a_wrong_value_is_named_with_a_hint(unreachable: Machine, calls: dict[str, Call]) -> None:
    wrong = []
    for shown, call in calls.items():
        try:
            answer = call(unreachable)
        except (testyard.InvalidInput, testyard.NotFound) as error:
            if shown not in str(error) or HINT not in str(error):
                wrong.append(f"{shown}: {error}")
        except BaseException as error:
            wrong.append(f"{shown}: {type(error).__name__}: {error}")
        else:
            wrong.append(f"{shown}: no error, but {answer!r}")
    assert not wrong, "\n".join(wrong)


def test_a_program_that_is_another_one_is_told(
    home: object, unreachable: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TESTYARD_BINARY", "/bin/true")
    for call in (Machine.list, Image.list, Cluster.list, lambda: Machine.get("web"), Machine.create):
        with pytest.raises(testyard.ProtocolMismatch, match=r"/bin/true[\s\S]*hint: "):
            call()
    monkeypatch.setenv("TESTYARD_BINARY", str(tmp_path / "junk"))
    (tmp_path / "junk").write_text("#!/bin/sh\nread line; echo junk\n")
    (tmp_path / "junk").chmod(0o755)
    for call in (Machine.list, lambda: Machine.create(hold=True)):
        with pytest.raises(testyard.ProtocolMismatch):
            call()
    monkeypatch.setenv("TESTYARD_BINARY", str(tmp_path / "text"))
    (tmp_path / "text").write_text("no program")
    (tmp_path / "text").chmod(0o755)
    for call in (Machine.list, lambda: Machine.create(hold=True), unreachable.logs):
        with pytest.raises(testyard.BinaryNotFound, match="does not start"):
            call()


def test_what_keeps_a_machine_from_being_held_is_told(home: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TESTYARD_HOME", "/etc/hosts")
    with pytest.raises(testyard.TestyardError, match=r"/etc/hosts is not a folder[\s\S]*hint: set TESTYARD_HOME"):
        Machine.create(hold=True)


def test_files_that_cannot_travel_are_told(home: object, tmp_path: Path) -> None:
    with Machine.create() as machine:
        with pytest.raises(testyard.InvalidInput, match="/dev/null is no file or folder"):
            machine.push("/dev/null", "/tmp")
        # What this side could not do is its own error, not what the machine made of it.
        with pytest.raises(testyard.InfrastructureError, match=r"/proc/self/mem failed[\s\S]*Input/output error"):
            machine.push("/proc/self/mem", "/tmp")
        # More than a message holds: nothing is wrong with the machine, and another try would fare no better.
        for call in (machine.run, machine.spawn):
            with pytest.raises(testyard.InvalidInput, match="16 MiB"):
                call(["true", "x" * (16 << 20)])
        machine.write_file("/tmp/big", b"x" * 100_000)
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
        try:
            with pytest.raises(testyard.InfrastructureError, match="File too large"):
                machine.pull("/tmp/big", tmp_path / "big")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        machine.pull("/tmp/big", tmp_path / "big")
    with pytest.raises(testyard.MachineNotFound):
        machine.logs()


def test_a_pool_that_is_closed_says_so() -> None:
    pool = empty_pool()
    pool.close()
    with pytest.raises(testyard.InvalidInput, match="is closed"):
        pool.take()
