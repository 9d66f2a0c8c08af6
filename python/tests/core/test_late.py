"""Environments that are made at their first use."""

from __future__ import annotations

import os
import signal
import threading

import pytest

import testyard
from support.home import settled
from testyard import _late


class _Interrupted(Exception):
    pass


def _interrupt(*_):
    raise _Interrupted


def _gone(machine):
    return not settled(lambda: [] if machine.status()["environments"] == 0 else ["environments"])


def test_what_nobody_uses_is_never_made(machine):
    before = machine.status()["made"]
    machine._late_environment().close()
    assert machine.status()["made"] == before
    with machine._late_environment() as one:
        assert one.id.startswith("e")
        assert machine.status()["environments"] == 1
    assert _gone(machine)
    with pytest.raises(testyard.InvalidInput, match="is closed"):
        one.run("true")


@pytest.mark.parametrize("others", [False, True], ids=["alone", "beside another thread"])
def test_the_first_command_makes_it_and_all_others_find_it(machine, others, monkeypatch):
    # With others about, the agent is asked to tell when the command has started.
    monkeypatch.setattr(_late, "_is_alone", lambda: not others)
    with machine._late_environment() as one:
        # Neither what cannot be started nor what fails is its end.
        assert one.run(["/no/such/program"], check=False).returncode == 127
        with pytest.raises(testyard.CommandNotStarted):
            one.run(["/no/such/program"])
        assert one.run("touch $TMPDIR/mark; exit 3", check=False).returncode == 3
        assert one.run("test -e $TMPDIR/mark").returncode == 0
    with machine._late_environment() as one:
        with pytest.raises(testyard.CommandTimedOut):
            one.run("touch $TMPDIR/mark; sleep 600", timeout=3)
        one.run("test -e $TMPDIR/mark")
        assert one.run("cat", input="given").stdout == "given"
    assert _gone(machine)


def test_another_thread_finds_it_while_its_first_command_runs(machine):
    told = []
    with machine._late_environment() as one:
        first = threading.Thread(target=lambda: told.append(one.run("until test -e $TMPDIR/go; do sleep 0.01; done")))
        # Two threads: whoever comes second waits for the other's environment, not for its command.
        second = threading.Thread(target=lambda: told.append(one.run("touch $TMPDIR/go")))
        first.start()
        second.start()
        for thread in (first, second):
            thread.join(60)
        assert len(told) == 2


def test_an_interrupted_first_command_leaves_the_environment(machine):
    before = signal.signal(signal.SIGALRM, _interrupt)
    try:
        with machine._late_environment() as one:
            signal.setitimer(signal.ITIMER_REAL, 3)
            with pytest.raises(_Interrupted):
                one.run("touch $TMPDIR/mark; exec sleep 600")
            one.run("test -e $TMPDIR/mark")
            assert machine.status()["commands"] == 0
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert _gone(machine)


def test_a_forked_child_and_its_parent_have_the_same(machine):
    with machine._late_environment() as one:
        child = os.fork()
        if child == 0:
            try:
                one.run("touch $TMPDIR/mark")
                os._exit(0)
            except BaseException:
                os._exit(1)
        assert os.waitpid(child, 0)[1] == 0
        one.run("test -e $TMPDIR/mark")


def test_its_end_is_not_waited_for_and_its_connection_serves_the_next(machine):
    with machine._late_environment() as one:
        one.run("true")
        holder = one._holder
    for _ in range(3):
        with machine._late_environment() as one:
            one.run("true")
            assert one._holder is holder
    assert _gone(machine)
    one = machine._late_environment()
    one.run("true")
    machine.stop(force=True)
    one.close()
    late = machine._late_environment()
    with pytest.raises(testyard.TestyardError):
        late.run("true")
    late.close()


def test_it_shows_the_working_tree(machine, shown_folder):
    (shown_folder / "file").write_text("before")
    with machine._late_environment(source=shown_folder) as one:
        assert one.run("cat file", cwd=shown_folder).stdout == "before"
        assert one.run("cat file", cwd=shown_folder).stdout == "before"
    assert _gone(machine)
