"""Testyard's pytest plugin: machines and isolated environments as fixtures.

It is found by its entry point; nothing is to be imported. What it does before a test uses one of its fixtures is to
read options and to look at markers: no program is started, and what talks to machines is imported at the first use.
See `docs/pytest.md`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generator, Optional

import pytest

from ..isolate._options import add_options as add_isolation
from ._fixtures import isolated_env, machine, ports, test_vm, test_vm_manager, vm, vm_pool, workspace
from ._marker import SIGNATURE, Wishes, wishes_of
from ._options import add_options, settings_of

if TYPE_CHECKING:
    from ._session import Session

__all__ = ["isolated_env", "machine", "ports", "test_vm", "test_vm_manager", "vm", "vm_pool", "workspace"]

_SESSION = pytest.StashKey["Session"]()
_WISHES = pytest.StashKey[Wishes]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options `--testyard-…` and keys `testyard_…` of the ini file."""
    add_options(parser)
    add_isolation(parser)


def pytest_configure(config: pytest.Config) -> None:
    """Declares the marker, and refuses options that mean nothing."""
    config.addinivalue_line("markers", SIGNATURE)
    settings_of(config)
    if config.getoption("testyard_isolate") is not None:
        from ..isolate import plugin

        if not config.pluginmanager.is_registered(plugin):
            config.pluginmanager.register(plugin, plugin.__name__)


def session_of(config: pytest.Config) -> Session:
    """What this process's tests share; made at its first use."""
    session = config.stash.get(_SESSION, None)
    if session is None:
        from ._session import Session

        session = config.stash[_SESSION] = Session(settings_of(config), getattr(config, "workerinput", None))
    return session


def wishes(item: pytest.Item) -> Wishes:
    """What a test's markers ask for."""
    known = item.stash.get(_WISHES, None)
    if known is None:
        known = item.stash[_WISHES] = wishes_of(item)
    return known


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Fails a test whose marker is wrong, and skips one that needs what this host has not."""
    if item.get_closest_marker("testyard") is None:
        return
    asked = wishes(item)
    if asked.mistakes:
        pytest.fail("\n".join(asked.mistakes), pytrace=False)
    if asked.needs:
        session_of(item.config).check_needs(asked.needs)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[Any]) -> Generator[None, Any, None]:
    """Adds to a failure what its environments' last commands wrote, and keeps them where that is asked for."""
    outcome = yield
    session = item.config.stash.get(_SESSION, None)
    if session is not None and call.when != "teardown":
        report = outcome.get_result()
        if report.failed:
            report.sections.extend(session.told_of_failure(item))


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    """Lets the session's machines go; whoever is the last of all workers deletes them."""
    session: Optional[Session] = config.stash.get(_SESSION, None)
    if session is not None:
        session.close()
