"""What tests of the connector share."""

from __future__ import annotations

import json
import os
import sys
from importlib import metadata
from typing import Any, Iterator

import pytest

from support import Home, skip

METADATA = "Metadata-Version: 2.1\nName: testyard-connector-under-test\nVersion: 0\n"
ENTRY_POINT = "[pyinfra.connectors]\ntestyard = testyard.pyinfra_connector:TestyardConnector\n"


@pytest.fixture(autouse=True, scope="session")
def connector_is_known(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """pyinfra finds the connector by the package's entry point; a package that is not installed gets one here."""
    try:
        import pyinfra  # noqa: F401
    except ImportError:
        skip("pyinfra is not installed")
    points = (point for found in metadata.distributions() for point in found.entry_points)
    if any(point.group == "pyinfra.connectors" and point.name == "testyard" for point in points):
        yield
        return
    folder = tmp_path_factory.mktemp("connector")
    # As the path may be walked by another user, too.
    folder.chmod(0o755)
    described = folder / "testyard_connector_under_test-0.dist-info"
    described.mkdir()
    (described / "METADATA").write_text(METADATA)
    (described / "entry_points.txt").write_text(ENTRY_POINT)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep))
        patch.syspath_prepend(folder)
        yield


class Program:
    """The real program `pyinfra`, in a home."""

    def __init__(self, home: Home) -> None:
        self.home = home

    def run(self, *arguments: str, code: int = 0) -> str:
        """Both streams of a run that ends with this exit code, and with no traceback of ours."""
        done = self.home.run([sys.executable, "-m", "pyinfra", *arguments], timeout=240)
        text = done.stdout + done.stderr
        assert done.returncode == code, text
        assert "Traceback" not in text, text
        return text

    def json(self, *arguments: str) -> Any:
        """The document that a run prints."""
        done = self.home.run([sys.executable, "-m", "pyinfra", "--json", *arguments], timeout=240)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def deploy(self, inventory: str, script: str, *options: str) -> tuple[dict[str, int], list[str]]:
        """What a deploy did: its counts, and the operations that changed something."""
        (self.home.work / "deploy.py").write_text(script)
        done = self.json("--yes", *options, inventory, "deploy.py")
        results = done["results"]
        changed = [operation["name"] for operation in results["operations"] if operation["success"]]
        assert results["failed_hosts"] == []
        return results["totals"], changed


@pytest.fixture
def program(module_home: Home) -> Program:
    """pyinfra, with the machines of the module's home."""
    return Program(module_home)


@pytest.fixture
def connect() -> Iterator[Any]:
    """Connects pyinfra, used as a library whose modules nobody replaced, to machines."""
    from pyinfra.api import Config, Inventory, State
    from pyinfra.api.connect import connect_all, disconnect_all

    states = []

    def connect(*names: str, **data: Any) -> Any:
        state = State(Inventory((list(names), data)), Config())
        connect_all(state)
        states.append(state)
        return state

    yield connect
    for state in states:
        disconnect_all(state)
