"""Machines from Python: their life, and what is said where something is wrong."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest

import testyard
from support.home import came


def test_a_machine_lives_and_is_deleted(home):
    with testyard.Machine.create("web") as machine:
        assert machine.info().state == "running"
        assert [one.name for one in testyard.Machine.list()] == ["web"]
        machine.run("echo kept > ~/kept" if os.geteuid() == 0 else "echo kept > /tmp/kept")
        machine.stop()
        assert machine.state == "stopped"
        with pytest.raises(testyard.WrongState, match="is stopped"):
            machine.run("true")
        machine.start()
        machine.restart()
        assert machine.run("cat ~/kept /tmp/kept 2>/dev/null", check=False).stdout == "kept\n"
        machine.rename("shop")
        assert machine.run("hostname").stdout.strip() in ("shop", os.uname().nodename)
        with machine.clone("copy") as copy:
            assert copy.name == "copy"
            copy.run("true")
        assert isinstance(machine.logs(), str)
        assert machine.status()["commands"] == 0
    assert testyard.Machine.list() == []


def test_errors_have_a_class_a_cause_and_a_hint(machine):
    with pytest.raises(testyard.MachineExists, match=machine.name):
        testyard.Machine.create(machine.name)
    with pytest.raises(testyard.MachineNotFound) as caught:
        testyard.Machine.get("nobody")
    assert caught.value.kind == "not-found" and any("testyard list" in hint for hint in caught.value.hints)
    assert "hint: " in str(caught.value)
    for wrong in ("", "a/b", "-x", "x" * 64, "a b"):
        with pytest.raises(testyard.InvalidInput, match="not a machine's name"):
            testyard.Machine.create(wrong)
    with pytest.raises(testyard.InvalidInput, match="takes a list"):
        testyard.Machine.create(expose="/srv")
    with pytest.raises(testyard.TestyardError, match="pdp11"):
        testyard.Machine.create(arch="pdp11")
    with pytest.raises(testyard.NotFound, match="nothing:1"):
        testyard.Machine.create(image="nothing:1")
    machine.delete(missing_ok=True)
    machine.delete(missing_ok=True)
    with pytest.raises(testyard.MachineNotFound):
        machine.delete()


def test_a_missing_or_wrong_program_is_told(home, monkeypatch):
    monkeypatch.setenv("TESTYARD_BINARY", "/nowhere/testyard")
    with pytest.raises(testyard.BinaryNotFound, match="TESTYARD_BINARY names /nowhere/testyard"):
        testyard.Machine.list()
    monkeypatch.setenv("TESTYARD_BINARY", "/bin/false")
    with pytest.raises(testyard.TestyardError):
        testyard.Machine.list()


def test_ensure_gives_everybody_the_same_machine(home):
    found: list[str] = []
    failed: list[BaseException] = []

    def ensure() -> None:
        try:
            found.append(testyard.Machine.ensure("one").id)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=ensure) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed and len(found) == 4 and len(set(found)) == 1
    machine = testyard.Machine.get("one")
    machine.stop()
    assert testyard.Machine.ensure("one").run("echo up").stdout == "up\n"
    machine.delete(force=True)


def test_a_pool_hands_out_machines(home):
    with testyard.Pool(2) as pool:
        first, second = pool.take(), pool.take()
        assert {first.run("echo a").stdout, second.run("echo b").stdout} == {"a\n", "b\n"}
        with pytest.raises(testyard.TimedOut):
            pool.take(timeout=0.05)
        pool.give_back(first)
        assert pool.take() is first
        with pytest.raises(testyard.InvalidInput, match="not taken"):
            pool.give_back(testyard.Machine(first.info()))
    assert testyard.Machine.list() == []
    with pytest.raises(testyard.TestyardError):
        testyard.Pool(2, image="nothing:1")
    assert testyard.Machine.list() == []


def test_errors_travel_between_processes():
    import pickle

    for error in (
        testyard.CommandFailed("false", 1, "out", "err"),
        testyard.MachineNotFound("gone", causes=["a"], hints=["b"]),
        testyard.CommandTimedOut("sleep", 2.0),
    ):
        copy = pickle.loads(pickle.dumps(error))
        assert type(copy) is type(error) and str(copy) == str(error)


def test_a_client_that_is_killed_takes_its_commands_along(machine):
    code = (
        "import sys, testyard\n"
        "p = testyard.Machine.get(sys.argv[1]).spawn('echo $$; exec sleep 1000')\n"
        "print(p.stdout.readline(), flush=True); input()\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code, machine.name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None and child.stdout.readline().strip().isdigit()
    child.kill()
    child.wait()
    for _ in range(400):
        if machine.status()["commands"] == 0:
            break
        threading.Event().wait(0.05)
    assert machine.status()["commands"] == 0


def test_asyncio_has_the_same(machine):
    import asyncio

    from testyard import aio

    async def main() -> None:
        same = await aio.Machine.get(machine.name)
        answers = await asyncio.gather(*(same.run(f"echo {number}") for number in range(8)))
        assert [one.stdout for one in answers] == [f"{number}\n" for number in range(8)]
        async with await same.environment() as environment:
            await environment.write_file("/tmp/x", "text") if environment.blocking.isolation == "namespace" else None
            process = await environment.spawn("echo a; echo b")
            assert [line async for line in process.lines()] == ["a\n", "b\n"]
            assert await process.wait() == 0
        with pytest.raises(testyard.CommandFailed):
            await same.run("exit 4")
        assert (await same.run(["no-such-program"], check=False)).returncode == 127
        slow = asyncio.ensure_future(same.run("sleep 1000"))
        while (await same.status())["commands"] == 0:
            await asyncio.sleep(0.01)
        slow.cancel()
        with pytest.raises(asyncio.CancelledError):
            await slow
        for _ in range(400):
            if (await same.status())["commands"] == 0:
                return
            await asyncio.sleep(0.05)
        raise AssertionError("the cancelled command goes on")

    asyncio.run(main())


def test_gevent_runs_commands_side_by_side(machine):
    pytest.importorskip("gevent", reason="needs the package gevent")
    code = (
        "from gevent import monkey; monkey.patch_all()\n"
        "import gevent, sys, testyard\n"
        "m = testyard.Machine.get(sys.argv[1])\n"
        # Each waits for the other: they end only where both run at once.
        "meet = 'touch /tmp/%s; for i in $(seq 600); do [ -e /tmp/%s ] && exit 0; sleep 0.05; done; exit 1'\n"
        "jobs = [gevent.spawn(m.run, meet % pair) for pair in (('ga', 'gb'), ('gb', 'ga'))]\n"
        "print([job.get().returncode for job in gevent.joinall(jobs)])\n"
        "p = m.spawn('echo line; cat', stdin=testyard.PIPE); print(p.communicate('more'))\n"
    )
    done = subprocess.run([sys.executable, "-c", code, machine.name], capture_output=True, text=True, timeout=120)
    assert done.stdout == "[0, 0]\n('line\\nmore', None)\n".replace("None", "''"), done.stderr


def test_a_connection_at_rest_is_no_use_of_a_machine(home):
    machine = testyard.Machine.create("web", idle="4s")
    machine.run("true")
    with machine.environment() as one:
        one.run("true")
        deleted = home.testyard("delete", "web", check=False)
        assert deleted.returncode == 2 and "in use" in deleted.stderr
    assert machine._connections._resting
    assert came(lambda: machine.state == "stopped"), "it never gets idle"
    machine.start()
    machine.run("true")
    # Not by force: nothing runs in it.
    home.testyard("delete", "web")
