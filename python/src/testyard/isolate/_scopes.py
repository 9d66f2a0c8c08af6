"""Fixtures of higher scopes: set up and torn down in the warm interpreter, so that every fork begins with them.

An error of theirs is not raised here: pytest remembers it, and the test's fork meets it again, in its own set-up phase.
"""

from __future__ import annotations

import contextlib
import time
from typing import Any, Callable, Iterator, Optional

import pytest
from _pytest.fixtures import FixtureDef
from _pytest.nodes import Node
from _pytest.runner import CallInfo
from _pytest.warnings import catch_warnings_for_item

_RAISED = (pytest.exit.Exception, KeyboardInterrupt)


def fixtures_of(item: Any) -> Iterator[tuple[str, Any]]:
    """The names of an item's fixtures, with the definition that counts for each."""
    known = getattr(getattr(item, "_fixtureinfo", None), "name2fixturedefs", {})
    for name in getattr(item, "fixturenames", ()):
        if known.get(name):
            yield name, known[name][-1]


def _definitions(item: Any) -> Iterator[tuple[str, Any]]:
    """The names and definitions of an item's fixtures whose scope is higher than its own, in the order of set-up."""
    if not getattr(item, "_request", None):
        return
    scopes = getattr(getattr(item, "callspec", None), "_arg2scope", {})
    for name, definition in fixtures_of(item):
        # Parametrisation may give a fixture another scope than its own.
        scope = getattr(scopes.get(name), "value", definition.scope)
        if "function" not in (scope, definition.scope):
            yield name, definition


def _parameters(item: Any) -> dict[str, Any]:
    callspec = getattr(item, "callspec", None)
    return callspec.indices if callspec is not None else {}


_RERUN_BOOKS = (
    "_test_failed_statuses",
    "_terminal_errors",
    "_test_xfailed",
    "_rerun_condition_excinfos",
    "_rerun_condition_results",
)


class Scopes:
    """The state of higher scopes in this process."""

    def __init__(self) -> None:
        #: With which parameter each fixture of a higher scope was set up last.
        self._parameters: dict[Any, Any] = {}

    def is_ready(self, item: Any) -> bool:
        """Whether nothing is left to set up."""
        if list(item.session._setupstate.stack) != item.listchain()[:-1]:
            return False
        return not self._missing(item)

    def disturbs(self, item: Any) -> bool:
        """Whether setting up for an item first tears something down that others may still use."""
        return any(definition.cached_result is not None for _, definition in self._missing(item))

    def clear_the_way(self, item: Any, nextitem: Any, *, sets_up: bool) -> bool:
        """Whether nothing of the suite's has to run in this process between two items, of which the second may need
        nothing set up; what is only to be forgotten is forgotten now."""
        if self.must_tear_down(item, nextitem):
            if not self.ends_silently(item, nextitem):
                return False
            self.tear_down(item, nextitem)
        if not sets_up:
            return True
        stack = item.session._setupstate.stack
        fresh = (node for node in nextitem.listchain()[:-1] if node not in stack)
        return not self._missing(nextitem) and all(type(node).setup is Node.setup for node in fresh)

    def set_up(self, item: Any) -> float:
        """Sets up an item's collectors and fixtures of higher scopes; how long that took, in seconds."""
        if self.is_ready(item):
            return 0.0
        began = time.perf_counter()
        with _phase(item, "setup"):
            try:
                item.session._setupstate.setup(item.parent)
                indices = _parameters(item)
                with _begun(item):
                    for name, definition in _definitions(item):
                        self._parameters[definition] = indices.get(name)
                        item._request.getfixturevalue(name)
            except _RAISED:
                raise
            except BaseException as error:
                if not isinstance(error, (Exception, pytest.fail.Exception, pytest.skip.Exception)):
                    raise
        return time.perf_counter() - began

    def must_tear_down(self, item: Any, nextitem: Any) -> bool:
        """Whether something ends before the next item."""
        stack = list(item.session._setupstate.stack)
        return stack != (nextitem.listchain() if nextitem is not None else [])[: len(stack)]

    def ends_silently(self, item: Any, nextitem: Any) -> bool:
        """Whether what ends before the next item is only forgotten: nothing of the suite's runs."""
        stack = item.session._setupstate.stack
        needed = nextitem.listchain()
        kept = 0
        for node, other in zip(stack, needed):
            if node is not other:
                break
            kept += 1
        ending = [finalizer for node in list(stack)[kept:] for finalizer in stack[node][0]]
        return all(map(_is_silent, ending))

    def tear_down(self, item: Any, nextitem: Any) -> Optional[Any]:
        """Tears down what the next item does not need; the report of that where it failed."""
        if not self.must_tear_down(item, nextitem):
            return None
        down: Callable[[], Any] = lambda: item.session._setupstate.teardown_exact(nextitem)  # noqa: E731
        with _phase(item, "teardown"):
            call = CallInfo.from_call(down, when="teardown", reraise=_RAISED)
        if call.excinfo is None:
            return None
        # pytest-rerunfailures keeps books of an item from its set-up on, which was in the test's own process.
        for name in _RERUN_BOOKS:
            if not hasattr(item, name):
                setattr(item, name, {})
        return item.ihook.pytest_runtest_makereport(item=item, call=call)

    def forget(self, item: Any) -> None:
        """Lets go of what the item's own run would have let go of."""
        if getattr(item, "_request", None):
            item._request = False
            item.funcargs = None

    def _missing(self, item: Any) -> list[tuple[str, Any]]:
        indices = _parameters(item)
        return [
            (name, definition)
            for name, definition in _definitions(item)
            if definition.cached_result is None or self._parameters.get(definition) != indices.get(name)
        ]


@contextlib.contextmanager
def _begun(item: Any) -> Iterator[None]:
    """Within this, pytest takes the item's own set-up for begun: it gives no fixtures to others."""
    stack = item.session._setupstate.stack
    stack[item] = ([item.teardown], None)
    try:
        yield
    finally:
        stack.pop(item, None)


def _is_silent(finalizer: Any) -> bool:
    if getattr(finalizer, "__func__", None) is Node.teardown:
        return True
    finish = getattr(finalizer, "func", None)
    if getattr(finish, "__func__", None) is not FixtureDef.finish:
        return False
    return all(map(_is_silent, finish.__self__._finalizers))  # type: ignore[union-attr]


@contextlib.contextmanager
def _phase(item: Any, when: str) -> Iterator[None]:
    """What is printed, logged and warned of belongs to the item."""
    manager = item.config.pluginmanager
    with contextlib.ExitStack() as stack:
        stack.enter_context(catch_warnings_for_item(item.config, item.ihook, when="runtest", item=item))
        capture = manager.getplugin("capturemanager")
        if capture is not None:
            stack.enter_context(capture.item_capture(when, item))
        logging = manager.getplugin("logging-plugin")
        if logging is not None:
            stack.enter_context(_logged(logging, item, when))
        yield


@contextlib.contextmanager
def _logged(plugin: Any, item: Any, when: str) -> Iterator[None]:
    from _pytest.logging import caplog_records_key

    if caplog_records_key not in item.stash:
        item.stash[caplog_records_key] = {}
    phase = plugin._runtest_for(item, when)
    # A plain generator in older versions.
    manager = phase if hasattr(phase, "__enter__") else contextlib.contextmanager(lambda: phase)()
    with manager:
        yield
