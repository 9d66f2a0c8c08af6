"""The pytest plugin of `--testyard-isolate`. Loaded by `testyard.plugin` when the option is given."""

from __future__ import annotations

import contextlib
from typing import Any, Generator, Optional

import pytest

from ..errors import TestyardError
from ..plugin import session_of
from ._marks import LACKS
from ._options import add_options
from ._place import Session, from_worker, to_worker
from ._runner import Runner, jobs_of

_NAME = "testyard-isolate-session"
_INPUT = "testyard_isolate"


def pytest_addoption(parser: Any) -> None:
    """Adds the options, where `testyard.plugin` has not."""
    add_options(parser)


def pytest_configure(config: Any) -> None:
    """Gets ready where tests are to be isolated."""
    if config.getoption("testyard_isolate", None) is None or config.pluginmanager.hasplugin(_NAME):
        return
    if config.getoption("collectonly", False):
        return
    config.pluginmanager.register(Isolation(config), _NAME)


class Isolation:
    """One process's part: the controller makes the machine, a worker runs tests in it, a lone pytest does both."""

    def __init__(self, config: Any) -> None:
        self._config = config
        self._input: Optional[str] = getattr(config, "workerinput", {}).get(_INPUT)
        self._is_worker = hasattr(config, "workerinput")
        self._is_controller = not self._is_worker and config.getoption("dist", "no") != "no"
        try:
            self._session = None if self._is_worker else Session(config)
        except TestyardError as error:
            raise pytest.UsageError("testyard: " + str(error)) from None
        self._runner: Optional[Runner] = None
        self._threads: dict[str, str] = {}
        self._here: dict[str, str] = {}

    @pytest.hookimpl(trylast=True)
    def pytest_sessionstart(self) -> None:
        """The controller makes the machine before its workers start."""
        if self._is_controller:
            self._place()

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        """A worker is told where the machine is."""
        assert self._session is not None
        node.workerinput[_INPUT] = to_worker(self._place(), self._session.temporary)

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any, error: Any) -> None:
        """What a worker found out is told at the end."""
        output = getattr(node, "workeroutput", {}).get(_INPUT)
        if output:
            self._threads.update(output["threads"])
            self._here.update(output["here"])

    @pytest.hookimpl(hookwrapper=True, trylast=True)
    def pytest_runtestloop(self, session: Any) -> Generator[None, Any, None]:
        """Has the items run isolated."""
        if self._is_controller or (session.testsfailed and not session.config.option.continue_on_collection_errors):
            yield
            return
        if not session.items:
            yield
            return
        try:
            if self._input is not None:
                place, temporary = from_worker(self._input)
            else:
                assert self._session is not None
                place, temporary = self._place(), self._session.temporary
            self._runner = Runner(self._config, place, temporary, self._jobs())
        except TestyardError as error:
            raise pytest.UsageError("testyard: " + str(error)) from None
        self._runner.install()
        try:
            yield
        finally:
            self._runner.uninstall()
            self._threads.update(self._runner.threads)
            self._here.update(self._runner.here)
            if self._is_worker:
                self._config.workeroutput[_INPUT] = {"threads": self._threads, "here": self._here}

    @pytest.hookimpl(tryfirst=True, specname="pytest_runtestloop")
    def pytest_runtestloop_of_several(self, session: Any) -> Optional[bool]:
        """Runs the items where several run at once."""
        if self._runner is None or self._is_worker or self._jobs() == 1:
            return None
        self._runner.loop(session)
        return True

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        """In a test's fork: skips it, where it cannot have what it asks for."""
        lacks = item.stash.get(LACKS, None)
        if lacks is not None:
            session_of(self._config).lacks(lacks)

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self) -> None:
        """The machine ends."""
        self._close()

    def pytest_unconfigure(self) -> None:
        """However the session ended."""
        self._close()

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """Tells what was not as isolated as it should be."""
        if not self._threads and not self._here:
            return
        terminalreporter.section("testyard: isolation", yellow=True)
        for name, nodeid in sorted(self._threads.items()):
            terminalreporter.write_line(
                f"thread {name} was alive when tests were forked, and is not in them (first: {nodeid})"
            )
        for nodeid, why in sorted(self._here.items()):
            terminalreporter.write_line(f"{nodeid} ran without isolation: {why}")

    def _place(self) -> Any:
        assert self._session is not None
        try:
            return self._session.place()
        except TestyardError as error:
            self._close()
            raise pytest.UsageError("testyard: " + str(error)) from None

    def _jobs(self) -> int:
        if self._is_worker:
            return 1
        option = self._config.getoption
        alone = any(option(name, False) for name in ("usepdb", "trace", "setupshow", "setuponly"))
        return jobs_of(option("testyard_isolate"), alone)

    def _close(self) -> None:
        if self._session is not None:
            session, self._session = self._session, None
            with contextlib.suppress(OSError):
                session.close()
