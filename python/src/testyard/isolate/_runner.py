"""Runs a session's items, each in a fork of this interpreter in an environment of its own.

Stands in for pytest's own hook `pytest_runtest_protocol`, outside of everything that plugins wrap around it: those run
in the child, where the test is. What the child reports is told here, in the order of the items however many run.
"""

from __future__ import annotations

import collections
import contextlib
import copy
import os
import time
from pathlib import Path
from typing import Any, Deque, Optional

import pytest

from ..errors import NotSupported, TestyardError
from . import _marks, _system, _threads
from ._child import Telling, Visit
from ._coverage import Collected
from ._door import Caller, Door
from ._fork import Running, Warm
from ._imports import Imports
from ._keeping import Keeping
from ._outputs import DEFAULTS, Outputs
from ._pages import Pages
from ._scopes import Scopes, fixtures_of
from ._test import Test
from ._yard import Place, Yard

#: What a test's own time limit is given beyond itself before its process is ended from outside, in seconds.
_GRACE = 5.0
#: Environments on their way beyond those that are needed next: on a busy host one may take longer than a test runs.
_SPARE = 3
_LOST = 69
#: Fixtures whose machines and environments are reached from this process only, and keep their tests apart themselves.
_OUTSIDE = ("isolated_env", "machine", "ports", "test_vm", "test_vm_manager", "vm", "vm_pool", "workspace")
#: Packages whose fixtures keep in memory what they find, and write or judge it when the session ends.
_LATE = ("syrupy",)
#: Tests that are over, but whose turn to be told has not come: their reports are kept.
_AHEAD = 10_000


class Runner:
    """The parent of all tests of this process."""

    def __init__(self, config: Any, place: Place, temporary: Optional[str], jobs: int) -> None:
        self._config = config
        self._jobs = jobs
        self._tree = place.tree
        self._yard = Yard(place)
        self._yard.prepare(jobs + _SPARE)
        self._keeping = Keeping(config, place.machine, self._yard)
        self._warm = Warm(Caller.here())
        self._scopes = Scopes()
        self._outputs = Outputs(place.tree, [*DEFAULTS, *config.getini("testyard_outputs")])
        self._settings = {"TMPDIR": temporary} if temporary else {}
        self._temporary = temporary or "/tmp"
        self._basetemp = Path(self._temporary) / "pytest"
        self._telling: Optional[Telling] = None
        self._original: Any = None
        self._active: Deque[Test] = collections.deque()
        #: Made for the item that comes next, and waiting to begin.
        self._ahead: Optional[Test] = None
        self._leaving: list[Running] = []
        self._pages = Pages()
        self._imports = Imports(config, bool(config.getini("testyard_isolate_imports")))
        self._patient = bool(config.getoption("usepdb", False) or config.getoption("trace", False))
        self.collected = Collected()
        #: Names of threads that were alive, and the first test they were alive for.
        self.threads: dict[str, str] = {}
        #: Tests that ran in this process, and why.
        self.here: dict[str, str] = {}

    def install(self) -> None:
        """Takes the hook's place."""
        hook = self._config.hook
        self._original = hook.pytest_runtest_protocol
        hook.pytest_runtest_protocol = self._protocol
        self._telling = Telling(self._config)

    def uninstall(self) -> None:
        """Puts the hook back, and lets go of everything."""
        self._config.hook.pytest_runtest_protocol = self._original
        self._drop()
        if self._telling is not None:
            self._telling.end()
        self.collected.merge()
        for running in self._leaving:
            running.reap(wait=True)
        self._warm.close()
        self._yard.close()

    def loop(self, session: Any) -> None:
        """Runs all items, several at once."""
        items = session.items
        index = 0
        while index < len(items) or self._active:
            while index < len(items) and self._may_start(items, index):
                item, nextitem = items[index], items[index + 1] if index + 1 < len(items) else None
                index += 1
                if self._runs_here(item):
                    self._run_here(item, nextitem)
                    self._check(session)
                else:
                    self._begin(item, nextitem)
            self._tell(session)
            if self._active:
                self._prepare(items[index - 1], items[index] if index < len(items) else None)
                self._wait()

    def _protocol(self, *, item: Any, nextitem: Any) -> Any:
        if self._runs_here(item):
            return self._run_here(item, nextitem)
        self._begin(item, nextitem)
        while self._active:
            self._prepare(item, nextitem)
            self._wait()
            if self._ahead is not None and self._active[0].went_well():
                # It need not wait until this one is told of.
                self._ahead.begin()
            self._tell(None)
        return True

    def _may_start(self, items: Any, index: int) -> bool:
        if not self._active:
            return True
        if sum(not test.running.over for test in self._active) >= self._jobs or len(self._active) > _AHEAD:
            return False
        item, before = items[index], items[index - 1]
        if self._runs_here(item) or self._scopes.disturbs(item):
            return False
        if self._scopes.must_tear_down(before, item):
            if not self._scopes.ends_silently(before, item):
                return False
            self._scopes.tear_down(before, item)
        return True

    def _begin(self, item: Any, nextitem: Any) -> None:
        """Has an item run: in the process that was made for it ahead, if there is one."""
        alone = not self._active
        test, self._ahead = self._ahead, None
        if test is not None and not (test.item is item and test.is_usable()):
            self._discard(test)
            test = None
        if test is None:
            if alone:
                item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
            try:
                test = self._start(item, ahead=False, announced=alone)
            except TestyardError as error:
                self._drop()
                raise pytest.exit.Exception("testyard: " + str(error), _LOST) from None
        test.nextitem = nextitem
        self._active.append(test)
        test.begin()
        if alone:
            test.announce()

    def _prepare(self, item: Any, nextitem: Any) -> None:
        """Makes use of the time until tests that run are over: for the item after `item`, the last that began."""
        if nextitem is None or self._patient:
            return
        self._imports.bring()
        if self._ahead is None and self._yard.is_ready() and not self._runs_here(nextitem):
            if self._scopes.clear_the_way(item, nextitem, sets_up=not _marks.is_skipped(nextitem)):
                # Where it cannot be made now, it is tried again, and told, when it is needed.
                with contextlib.suppress(TestyardError):
                    self._ahead = self._start(nextitem, ahead=True, announced=False)

    def _start(self, item: Any, *, ahead: bool, announced: bool) -> Test:
        # What only tests use that are skipped is never set up.
        set_up = 0.0 if _marks.is_skipped(item) else self._scopes.set_up(item)
        for name in _threads.alive():
            self.threads.setdefault(name, item.nodeid)
        self._warm.freeze()
        running = self._fork(item, ahead)
        self._yard.prepare(self._jobs + _SPARE)
        return Test(item, running, self._keeping, set_up, _time_limit(item), announced=announced)

    def _fork(self, item: Any, ahead: bool) -> Running:
        last: Optional[Exception] = None
        sibling = copy.copy(item)
        for _ in range(3):
            door, limited = self._door(item)
            settings = {"TESTYARD_ENVIRONMENT": f"e{door.identity}", **self._settings}
            assert self._telling is not None
            visit = Visit(
                item, sibling, self._original, self._telling, settings, self._temporary, self._basetemp, self._pages,
                self._imports, self._leave, ahead, self._pages.ask(),
            )  # fmt: skip
            try:
                return self._warm.fork(door, limited, visit)
            except OSError as error:
                last = error
                self._yard.release(door)
                door.close()
        raise TestyardError("a test's process could not be made", causes=[str(last)])

    def _leave(self) -> None:
        """In a fork: descriptors of others would keep their environments beyond their end."""
        for test in self._active:
            test.running.door.close()
        self._yard.leave()

    def _door(self, item: Any) -> tuple[Door, bool]:
        wishes = _marks.marks_of(item)
        if wishes is not None:
            _marks.needs_are_known(item, wishes)
            lacks = _marks.lacks(wishes)
            if lacks is None and (wishes.network or wishes.limits):
                try:
                    return self._yard.special(wishes.network, wishes.limits), bool(wishes.limits)
                except NotSupported as error:
                    if error.kind != "unsupported":
                        raise
                    lacks = str(error).replace("\n", "; ")
            if lacks is not None:
                item.stash[_marks.LACKS] = lacks
        return self._yard.lease(), False

    def _wait(self) -> None:
        """Waits until a child or the machine's agent has something to say, or a time limit is over."""
        now = time.monotonic()
        awaited = [test for test in self._active if not test.running.over]
        limits = [test.deadline for test in awaited if test.deadline is not None]
        patience = max(0.0, min(limits) - now) if limits else None
        heard = {number: test for test in awaited for number in test.running.descriptors()}
        if heard:
            try:
                ready = _system.readable([*heard, self._yard.fileno()], patience)
            except KeyboardInterrupt:
                if self._patient:
                    return
                self._drop()
                raise
            if self._yard.fileno() in ready:
                self._attend()
            for test in awaited:
                if not set(ready).isdisjoint(test.running.descriptors()):
                    test.listen()
        for test in awaited:
            if test.deadline is not None and time.monotonic() >= test.deadline and not test.running.over:
                test.timed_out = True
                test.deadline = None
                test.has_failed()
                if test.lives_on:
                    test.running.kill_inside()
                else:
                    self._yard.release(test.running.door)
                    test.running.kill()
        for test in awaited:
            if test.running.over:
                self._settle(test)
        self._leaving = [running for running in self._leaving if not running.reap(wait=False)]

    def _attend(self) -> None:
        try:
            self._yard.attend()
        except TestyardError as error:
            self._drop()
            raise pytest.exit.Exception("testyard: " + str(error), _LOST) from None

    def _tell(self, session: Any) -> None:
        """Tells of those whose turn it is."""
        while self._active:
            test = self._active[0]
            test.tell()
            if not test.running.over:
                return
            self._end(test)
            if session is not None:
                self._check(session)

    def _end(self, test: Test) -> None:
        last = len(self._active) == 1
        torn_down = self._scopes.tear_down(test.item, test.nextitem) if last and test.raising is None else None
        test.tell_end(torn_down)
        self._active.popleft()
        self._scopes.forget(test.item)
        if test.measured is not None:
            self.collected.add(test.measured)
        if test.pages is not None:
            self._pages.learn(test.pages)
        self._imports.hear(test.imported)
        if test.raising is not None:
            self._drop()
            raise test.raising

    def _settle(self, test: Test) -> None:
        """A test is over, and may wait long for its turn to be told: nothing of its environment is kept for that."""
        running = test.running
        if not running.ended:
            test.printed = running.printed()
            test.has_failed()
        self._bring_back(test)
        # Before its end: whoever lets a mount namespace go last takes its mounts down, and waits for that.
        running.door.close()
        if not test.timed_out:
            self._release(test)
        self._leaving.append(running)

    def _release(self, test: Test) -> None:
        if not test.lives_on:
            self._yard.release(test.running.door)

    def _bring_back(self, test: Test) -> None:
        if test.running.door.changes is None:
            return
        try:
            self._outputs.bring(test.running.door.changes)
        except OSError as error:
            test.item.warn(pytest.PytestWarning(f"what the test wrote could not be brought back to the tree: {error}"))

    def _check(self, session: Any) -> None:
        if session.shouldfail:
            self._drop()
            raise session.Failed(session.shouldfail)
        if session.shouldstop:
            self._drop()
            raise session.Interrupted(session.shouldstop)

    def _drop(self) -> None:
        """Ends what runs, and tells nobody of it."""
        if self._ahead is not None:
            ahead, self._ahead = self._ahead, None
            self._discard(ahead)
        while self._active:
            test = self._active.popleft()
            if not test.running.over:
                self._discard(test)

    def _discard(self, test: Test) -> None:
        test.running.door.close()
        with contextlib.suppress(TestyardError):
            self._release(test)
        test.running.kill()
        self._leaving.append(test.running)

    def _runs_here(self, item: Any) -> Optional[str]:
        name = next((name for name in getattr(item, "fixturenames", ()) if name in _OUTSIDE), None)
        if name is not None:
            return f"its fixture `{name}` talks to machines from here"
        wishes = _marks.marks_of(item)
        why = _marks.stays(wishes, self._tree) if wishes is not None else None
        if why is not None:
            return why
        late = (name for name, definition in fixtures_of(item) if not name.startswith("_") and _is_late(definition))
        name = next(late, None)
        return f"its fixture `{name}` writes what it found when the session ends" if name is not None else None

    def _run_here(self, item: Any, nextitem: Any) -> Any:
        why = self._runs_here(item) or ""
        self.here[item.nodeid] = why
        terminal = self._config.pluginmanager.getplugin("terminalreporter")
        if terminal is not None:
            terminal.ensure_newline()
            terminal.write_line(f"testyard: {item.nodeid} runs in this process, not isolated: {why}", yellow=True)
        return self._original(item=item, nextitem=nextitem)


def _is_late(definition: Any) -> bool:
    return str(getattr(definition.func, "__module__", "")).partition(".")[0] in _LATE


def _time_limit(item: Any) -> Optional[float]:
    """After how many seconds a test's process is ended from outside; None is never.

    The limit is pytest-timeout's, which ends the test itself in its own way, if it still can."""
    marker = item.get_closest_marker("timeout")
    told: Any = None
    if marker is not None:
        told = marker.args[0] if marker.args else marker.kwargs.get("timeout")
    if told is None:
        told = item.config.getoption("timeout", None)
    if told is None:
        try:
            told = item.config.getini("timeout")
        except (KeyError, ValueError):
            told = None
    try:
        seconds = float(told)
    except (TypeError, ValueError):
        return None
    return seconds + _GRACE if seconds > 0 else None


def jobs_of(text: str, alone: bool) -> int:
    """How many tests run at once: what was asked for, or one a processor; one where they share a terminal."""
    if alone:
        return 1
    return len(os.sched_getaffinity(0)) if text == "auto" else int(text)
