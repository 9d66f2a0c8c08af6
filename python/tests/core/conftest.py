"""What the tests of the client share."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Iterator

import pytest

import testyard


@pytest.fixture(params=["auto", "host"])
def machine(home: Path, request: pytest.FixtureRequest) -> Iterator[testyard.Machine]:
    """A machine of its own: the strongest that this host gives, and one of backend `host`."""
    with testyard.Machine.create(backend=request.param) as made:
        yield made


@pytest.fixture
def shown_folder() -> Iterator[Path]:
    """A folder that machines may see: not below a home, and not of anybody's who cannot be there."""
    folder = tempfile.mkdtemp(prefix="testyard-shown-", dir="/var/tmp")
    os.chmod(folder, 0o755)
    yield Path(folder)
    shutil.rmtree(folder)
