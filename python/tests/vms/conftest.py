"""What tests of the helpers share."""

from __future__ import annotations

import sys
from typing import Iterator

import pytest

from support import Home


@pytest.fixture(scope="module")
def module_home(module_home: Home) -> Iterator[Home]:
    """The module's home, in which this process holds nothing any more when it is looked at for what was left."""
    yield module_home
    held = sys.modules.get("testyard._hold")
    if held is not None and held._keeper is not None:
        keeper, held._keeper = held._keeper, None
        keeper.let_go()
