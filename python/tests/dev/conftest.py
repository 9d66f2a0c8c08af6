"""What the tests of the developer's machine share."""

from __future__ import annotations

from typing import Iterator

import pytest

from support import Home
from testyard.dev import DevEnvironment


@pytest.fixture(params=["auto", "host"])
def dev(home: Home, request: pytest.FixtureRequest) -> Iterator[DevEnvironment]:
    """A developer's machine that runs: the strongest that this host gives, and one of backend `host`."""
    environment = DevEnvironment(name="dev-test", backend=request.param)
    environment.ensure_started()
    yield environment
    environment.delete()


@pytest.fixture
def contained(home: Home) -> Iterator[DevEnvironment]:
    """One whose containers are isolated."""
    environment = DevEnvironment(name="dev-test")
    environment.ensure_started()
    if environment.machine.info().backend == "host":
        environment.delete()
        pytest.skip("the host lacks it: backend namespace")
    yield environment
    environment.delete()
