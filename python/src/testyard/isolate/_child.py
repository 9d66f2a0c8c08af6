"""In the child: the test, from set-up to tear-down, and the word to the parent."""

from __future__ import annotations

import contextlib
import copy
import os
import sys
from pathlib import Path
from typing import Any, Callable

import pytest

from . import _coverage, _loops
from ._reports import Channel, warning_out

#: Hooks whose other implementations belong to the parent, which calls them with what the child tells.
_PARENTS = (
    "pytest_runtest_logstart",
    "pytest_runtest_logreport",
    "pytest_runtest_logfinish",
    "pytest_warning_recorded",
)
_KEPT = ("session", "logging-plugin")


class Telling:
    """Takes the place of everybody who hears of results."""

    def __init__(self, config: Any, channel: Channel, nodeid: str) -> None:
        self._config = config
        self._channel = channel
        self._nodeid = nodeid
        #: What was recorded before the fork is told again to whoever is registered: it is known already.
        self.listening = False

    def pytest_runtest_logreport(self, report: Any) -> None:
        """A report, on its way to the parent."""
        if getattr(report, "when", None) == "teardown":
            self._tell_junit()
        data = self._config.hook.pytest_report_to_serializable(config=self._config, report=report)
        self._channel.send("report", data)

    def pytest_warning_recorded(self, warning_message: Any, when: str, nodeid: str, location: Any) -> None:
        """A warning, on its way to the parent."""
        if not self.listening:
            return
        data = {"when": when, "nodeid": nodeid, "location": location, "warning": warning_out(warning_message)}
        self._channel.send("warning", data)

    def _tell_junit(self) -> None:
        with contextlib.suppress(ImportError, AttributeError):
            from _pytest.junitxml import xml_key

            xml = self._config.stash.get(xml_key, None)
            if xml is not None:
                attributes = [(name, str(value)) for name, value in xml.node_reporter(self._nodeid).attrs.items()]
                self._channel.send("junit", {"attributes": attributes, "properties": list(xml.global_properties)})


def run(
    item: Any,
    protocol: Callable[..., Any],
    settings: dict[str, str],
    channel: Channel,
    output: tuple[int, int],
) -> None:
    """Runs one item. `protocol` is pytest's own hook; `settings` are variables for this process."""
    config = item.config
    _redirect(config, output)
    _settle(config, settings)
    _loops.renew(item)
    for name in _PARENTS:
        caller = getattr(config.hook, name)
        for implementation in list(caller.get_hookimpls()):
            if implementation.plugin_name not in _KEPT:
                caller._remove_plugin(implementation.plugin)
    telling = Telling(config, channel, item.nodeid)
    config.pluginmanager.register(telling, "testyard-isolate-telling")
    telling.listening = True
    session = item.session
    stopped = session.shouldstop
    # A next item beside this one: what is above both is the parent's to tear down.
    sibling = copy.copy(item)
    try:
        protocol(item=item, nextitem=sibling)
    except pytest.exit.Exception as error:
        channel.send("exit", {"message": str(error.msg), "returncode": error.returncode})
    except KeyboardInterrupt:
        channel.send("interrupt", None)
    if session.shouldstop and session.shouldstop != stopped:
        channel.send("stop", str(session.shouldstop))
    measured = _coverage.measured()
    if measured is not None:
        channel.send("coverage", measured)
    channel.send("end", None)


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


def _settle(config: Any, settings: dict[str, str]) -> None:
    """Makes this process at home: its own temporary folder, variables and home folder."""
    os.environ.pop("TMPDIR", None)
    os.environ.update(settings)
    tempfile: Any = sys.modules.get("tempfile")
    if tempfile is not None:
        tempfile.tempdir = None
    folder = settings.get("TMPDIR", "/tmp")
    with contextlib.suppress(OSError):
        os.makedirs(folder, exist_ok=True)
    home = os.environ.get("HOME")
    if home and not os.path.isdir(home):
        with contextlib.suppress(OSError):
            os.makedirs(home)
    factory = getattr(config, "_tmp_path_factory", None)
    if factory is not None:
        factory._basetemp = None
        factory._given_basetemp = Path(folder) / "pytest"
