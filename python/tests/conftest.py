"""Every test session has a Testyard of its own, and every skip is written down.

`TESTYARD_HOME` and `HOME` of the whole session are in a new folder, so that no test meets what the user keeps. When
the session ends, its machines are deleted and the session fails where something is left. A test that wants to be alone
takes the fixture `home`; a module's tests that share one take `module_home`.

Each skip is appended to the file that `TESTYARD_SKIP_LOG` names, as Rust's tests do it, and `cargo xtask test` counts
it.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Iterator

import pytest

from support import LACKS, Home
from support.home import fail_loudly

# Set while a session with a home runs: its workers and what they start use the same.
SESSION = "TESTYARD_TEST_SESSION"
_session_home: Home | None = None


def pytest_configure(config: pytest.Config) -> None:
    """Moves the session into its own home, before any plugin's fixture could use another."""
    global _session_home
    if SESSION in os.environ:
        return
    _session_home = Home()
    os.environ.update(_session_home.variables, **{SESSION: str(_session_home.path)})
    # A runtime folder of the user's login would be another place that machines leave things in.
    os.environ.pop("XDG_RUNTIME_DIR", None)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> Iterator[None]:
    """Looks at what the session left, after every other plugin has put away what it keeps."""
    yield
    if _session_home is None:
        return
    try:
        _session_home.finish()
    except AssertionError as error:
        fail_loudly(str(error))
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Writes a skip down, once: workers report to the session, which has the home."""
    log = os.environ.get("TESTYARD_SKIP_LOG")
    if not report.skipped or log is None or _session_home is None:
        return
    reason = (
        report.longrepr[2] if isinstance(report.longrepr, tuple) else str(getattr(report, "wasxfail", report.longrepr))
    )
    reason = reason.removeprefix("Skipped: ")
    skip = {
        "name": report.nodeid,
        "reason": reason.removeprefix(LACKS),
        "forced_by_host": reason.startswith(LACKS),
        # pytest's own summary does not count it as passed.
        "whole_test": False,
    }
    # One write of one line: others append to the same file.
    with Path(log).open("a") as file:
        file.write(json.dumps(skip) + "\n")


def _settled_in(home: Home) -> Iterator[Home]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in home.variables.items():
            patch.setenv(name, value)
        patch.chdir(home.work)
        yield home
    home.finish()


@pytest.fixture
def home() -> Iterator[Home]:
    """A home of this test's own, which this process and its children use while it runs."""
    yield from _settled_in(Home())


@pytest.fixture(scope="module")
def module_home() -> Iterator[Home]:
    """A home that the tests of one module share."""
    yield from _settled_in(Home())
