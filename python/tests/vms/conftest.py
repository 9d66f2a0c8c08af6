"""What tests of the helpers share."""

from __future__ import annotations

from typing import Iterator

import pytest

from support import Home
from testyard import _hold


@pytest.fixture(scope="module")
def module_home(module_home: Home) -> Iterator[Home]:
    """The module's home, in which this process holds nothing any more when it is looked at for what was left."""
    yield module_home
    _hold.unhold_all()
