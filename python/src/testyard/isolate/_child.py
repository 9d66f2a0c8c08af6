"""In the child: the test, from set-up to tear-down, and the word to the parent."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import Any, Callable, NamedTuple, Optional

import pytest

from . import _coverage, _loops
from ._imports import Imports
from ._pages import Pages, written
from ._reports import Channel, warning_out

#: Hooks whose other implementations belong to the parent, which calls them with what the child tells.
_PARENTS = (
    "pytest_runtest_logstart",
    "pytest_runtest_logreport",
    "pytest_runtest_logfinish",
    "pytest_warning_recorded",
)
_KEPT = ("session", "logging-plugin")
_JUNIT = "_pytest.junitxml"


class Telling:
    """Takes the place of everybody who hears of results.

    Made and registered in the parent, where it says nothing: what a child does not do, it touches no page for."""

    def __init__(self, config: Any) -> None:
        self._config = config
        self._channel: Optional[Channel] = None
        self._nodeid = ""
        config.pluginmanager.register(self, "testyard-isolate-telling")
        self._kept: list[tuple[Any, list[Any]]] = []
        for name in _PARENTS:
            caller = getattr(config.hook, name)
            others = [one for one in caller.get_hookimpls() if one.plugin is self or one.plugin_name in _KEPT]
            self._kept.append((caller, others))

    def begin(self, channel: Channel, nodeid: str) -> None:
        """In the child: from now on nobody else hears anything."""
        for caller, kept in self._kept:
            if hasattr(caller, "_hookimpls"):
                caller._hookimpls = kept
            else:
                for implementation in set(caller.get_hookimpls()) - set(kept):
                    caller._remove_plugin(implementation.plugin)
        self._channel, self._nodeid = channel, nodeid

    def end(self) -> None:
        """In the parent: it is needed no more."""
        self._config.pluginmanager.unregister(self)

    def pytest_runtest_logreport(self, report: Any) -> None:
        """A report, on its way to the parent."""
        if self._channel is None:
            return
        if getattr(report, "when", None) == "teardown":
            self._tell_junit(self._channel)
        data = self._config.hook.pytest_report_to_serializable(config=self._config, report=report)
        self._channel.send("report", data)

    def pytest_warning_recorded(self, warning_message: Any, when: str, nodeid: str, location: Any) -> None:
        """A warning, on its way to the parent."""
        if self._channel is not None:
            data = {"when": when, "nodeid": nodeid, "location": location, "warning": warning_out(warning_message)}
            self._channel.send("warning", data)

    def _tell_junit(self, channel: Channel) -> None:
        if _JUNIT not in sys.modules or not self._config.getoption("xmlpath", None):
            return
        with contextlib.suppress(ImportError, AttributeError):
            from _pytest.junitxml import xml_key

            xml = self._config.stash.get(xml_key, None)
            if xml is not None:
                attributes = [(name, str(value)) for name, value in xml.node_reporter(self._nodeid).attrs.items()]
                channel.send("junit", {"attributes": attributes, "properties": list(xml.global_properties)})


class Visit(NamedTuple):
    """What a child is to do, put together before the fork."""

    item: Any
    #: Another like the item, to come after it: what is above both is the parent's to tear down.
    sibling: Any
    #: pytest's own hook.
    protocol: Callable[..., Any]
    telling: Telling
    #: Variables for the process.
    settings: dict[str, str]
    #: Where temporary folders of the test's own are.
    temporary: str
    basetemp: Path
    pages: Pages
    imports: Imports
    #: Lets go of what other tests have in the parent.
    leave: Callable[[], None]
    #: Whether there is time before the test begins.
    ahead: bool
    #: Whether it is to tell which pages it wrote.
    asked: bool

    def prepare(self, channel: Channel, output: tuple[int, int]) -> None:
        """Does what can be done before the test begins."""
        self.leave()
        config = self.item.config
        _redirect(config, output)
        self._settle(config)
        _loops.renew(self.item)
        self.telling.begin(channel, self.item.nodeid)
        if self.ahead:
            self.pages.copy()

    def run(self, channel: Channel) -> None:
        """Runs the item."""
        session = self.item.session
        known = len(sys.modules)
        stopped = session.shouldstop
        try:
            self.protocol(item=self.item, nextitem=self.sibling)
        except pytest.exit.Exception as error:
            channel.send("exit", {"message": str(error.msg), "returncode": error.returncode})
        except KeyboardInterrupt:
            channel.send("interrupt", None)
        if session.shouldstop and session.shouldstop != stopped:
            channel.send("stop", str(session.shouldstop))
        measured = _coverage.measured()
        if measured is not None:
            channel.send("coverage", measured)
        imported = self.imports.since(known)
        if imported:
            channel.send("imported", imported)
        # What a module's import fills with memory is no test's to copy.
        if self.asked and len(sys.modules) == known:
            with contextlib.suppress(OSError):
                channel.send("pages", written())
        channel.send("end", None)

    def _settle(self, config: Any) -> None:
        """Makes this process at home: its own temporary folder, variables and home folder."""
        environment = os.environ
        environment.pop("TMPDIR", None)
        for name, value in self.settings.items():
            environment[name] = value
        tempfile: Any = sys.modules.get("tempfile")
        if tempfile is not None:
            tempfile.tempdir = None
        if self.temporary != "/tmp":
            _make(self.temporary)
        home = environment.get("HOME")
        if home:
            _make(home)
        factory = getattr(config, "_tmp_path_factory", None)
        if factory is not None:
            factory._basetemp = None
            factory._given_basetemp = self.basetemp


def _make(folder: str) -> None:
    try:
        os.stat(folder)
    except OSError:
        with contextlib.suppress(OSError):
            os.makedirs(folder)


def _redirect(config: Any, output: tuple[int, int]) -> None:
    """Has pytest's capture write to files of this child's own: those of the parent are shared with other forks."""
    manager = config.pluginmanager.getplugin("capturemanager")
    capturing = getattr(manager, "_global_capturing", None)
    for capture, own in zip((getattr(capturing, "out", None), getattr(capturing, "err", None)), output):
        file: Any = getattr(capture, "tmpfile", None)
        # In memory, where only `sys.stdout` is captured.
        with contextlib.suppress(AttributeError, OSError, ValueError):
            os.dup2(own, file.fileno(), inheritable=False)
    for own in output:
        os.close(own)
