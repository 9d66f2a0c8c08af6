"""Isolated tests on a developer's machine, and many of them at once."""

from __future__ import annotations

import os
import re
import socket

import pytest

import testyard
from testyard.dev import ConcurrentTestRunner, Flow, IsolationManager, isolated_test_environment


class OnlyExec:
    """What another SDK's `.dev` looks like; the machine below is ours."""

    def __init__(self, dev):
        self.ensure_started = dev.ensure_started
        self.exec = dev.exec


class Client:
    """What a suite passes: a client with a `.dev`."""

    def __init__(self, dev):
        self.dev = dev


def test_a_test_has_a_place_of_its_own(dev, capfd):
    with (
        isolated_test_environment(Client(dev), "Login works!", ports=2) as env,
        isolated_test_environment(dev, "Login works!") as other,
    ):
        assert re.fullmatch(r"login-works-[0-9a-f]{12}", env.test_id) and env.test_id != other.test_id
        assert env.workspace != other.workspace and env.workspace.startswith("/tmp/")
        assert re.fullmatch(r"[a-z0-9_]+", env.namespace) and env.namespace != other.namespace
        assert len(env.ports) == 2 and env.port == env.ports[0] and not set(env.ports) & set(other.ports)
        assert env.exec("echo mine > file; echo $TEST_PORTS $TEST_NAMESPACE") == 0
        assert capfd.readouterr().out == f"{env.ports[0]},{env.ports[1]} {env.namespace}\n"
        assert dev.exec(f"cat {env.workspace}/file") == 0 and capfd.readouterr().out == "mine\n"
        assert env.capture("ls; exit 5").returncode == 5
        assert other.capture("ls").stdout == ""
        workspace = env.workspace
    assert dev.exec(f"test -e {workspace}") == 1
    env.close()
    with pytest.raises(testyard.InvalidInput, match="is closed"):
        env.exec("true")
    with socket.socket() as free:
        free.bind(("127.0.0.1", other.ports[0]) if other.ports else ("127.0.0.1", 0))


def test_a_place_goes_with_a_failing_test(dev):
    with pytest.raises(RuntimeError, match="mine"), isolated_test_environment(dev, "fails") as env:
        workspace = env.workspace
        raise RuntimeError("mine")
    assert dev.exec(f"test -e {workspace}") == 1


def test_the_folder_of_all_places_goes_with_the_last_of_them(dev):
    with isolated_test_environment(dev, "one") as one, isolated_test_environment(dev, "other"):
        folder = os.path.dirname(one.workspace)
        one.close()
        assert dev.exec(f"test -d {folder}") == 0
    assert dev.exec(f"test -e {folder}") == (1 if dev.machine.info().backend == "host" else 0)


def test_an_isolated_test_sees_what_is_prepared_and_leaves_nothing(contained):
    assert contained.exec("echo prepared > /tmp/prepared; mkdir -p ~/project; echo code > ~/project/code") == 0
    manager = IsolationManager(contained)
    script = "cat /tmp/prepared ~/project/code; echo x > /tmp/prepared; rm ~/project/code; pwd; echo $TEST_ID; exit 3"
    result = manager.run_isolated_test("reads", script)
    assert result.exit_code == 3 and not result.passed and not result.success and result.error is None
    assert result.stdout.splitlines()[:2] == ["prepared", "code"]
    assert result.stdout.splitlines()[2].startswith("/tmp/") and result.stdout.splitlines()[3] == result.test_id
    assert (
        contained.capture("cat /tmp/prepared ~/project/code; ls /tmp").stdout
        == f"prepared\ncode\nprepared\ntestyard-tests-{os.getuid()}\n"
    )
    # Any port is free, and nothing listens that is not the test's.
    assert manager.run_isolated_test("net", "test $(ls /sys/class/net | wc -l) = 1").passed
    assert result["passed"] is False and result.as_dict()["name"] == "reads"
    with pytest.raises(KeyError):
        result["nothing"]


def test_a_result_says_what_failed(dev):
    manager = IsolationManager(Client(dev))
    assert manager.run_isolated_test("out", "echo out; echo err >&2").stderr == "err\n"
    late = manager.run_isolated_test("late", "sleep 600", timeout=0.2)
    assert (late.passed, late.exit_code) == (False, 124)
    assert manager.run_isolated_test("env", 'test "$A" = b', env={"A": "b"}).passed
    for name, command in (("", "true"), ("x", ""), (None, "true")):
        with pytest.raises(testyard.InvalidInput):
            manager.run_isolated_test(name, command)
    dev.stop()
    lost = manager.run_isolated_test("lost", "true")
    assert not lost.passed and lost.exit_code is None and lost.error
    dev.ensure_started()
    assert manager.run_isolated_test("found", "true").passed
    assert late.test_id not in dev.capture(f"ls /tmp/testyard-tests-{os.getuid()} 2>/dev/null; true").stdout


def test_a_hundred_tests_run_side_by_side(dev):
    tests = [(f"test {number}", f"echo {number} > file && cat file") for number in range(100)]
    tests[7] = ("test 7", "exit 9")
    summary = ConcurrentTestRunner(Client(dev), max_workers=10).run_tests_concurrently(tests)
    assert (summary.passed, summary.failed, summary.total) == (99, 1, 100) and summary.success_rate == 0.99
    assert summary["passed"] == 99 and summary["duration"] > 0 and "results" in summary
    assert [result.name for result in summary.results] == [name for name, _ in tests]
    assert [result.stdout for result in summary.results if result.passed] == [
        f"{number}\n" for number in range(100) if number != 7
    ]
    assert len({result.test_id for result in summary.results}) == 100
    assert "99 passed, 1 failed" in str(summary) and "test 7: exit code 9" in str(summary)


def test_another_sdks_dev_is_taken(dev):
    summary = ConcurrentTestRunner(Client(OnlyExec(dev)), max_workers=4).run_tests_concurrently(
        [("passes", "echo $TEST_ID > file && test -s file"), ("fails", "exit 2")]
    )
    assert (summary.passed, summary.failed) == (1, 1)
    with isolated_test_environment(OnlyExec(dev), "place") as env:
        assert env.exec("touch file") == 0


def test_mistakes_are_told(home):
    for wrong in (3, None, object()):
        with pytest.raises(testyard.InvalidInput, match="hint: pass testyard.dev.Flow"):
            ConcurrentTestRunner(wrong)
    for workers in (0, -1, "2", True):
        with pytest.raises(testyard.InvalidInput, match="number of workers"):
            ConcurrentTestRunner(Flow(), max_workers=workers)
    runner = ConcurrentTestRunner(Flow())
    for test in ("name", ("name",), ("name", ""), ("", "true"), (1, 2)):
        with pytest.raises(testyard.InvalidInput, match="is no test"):
            runner.run_tests_concurrently([test])
    assert runner.run_tests_concurrently([]).total == 0
    assert testyard.Machine.list() == []
