"""One cluster that these tests share, with what public clients of Slurm need on its nodes."""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path
from typing import Iterator

import pytest

from support import needs_environment, needs_program, needs_root
from support.home import testyard_program
from testyard import Cluster
from testyard.plugin import session_of
from testyard.plugin._clusters import Clusters

CONFORMANCE = Path(__file__).resolve().parents[3] / "conformance"
#: Whoever runs these tests side by side has the same folder of sources.
SOURCES = Path(tempfile.gettempdir())


@pytest.fixture(scope="session")
def clients() -> Path:
    """The interpreter with the public clients of Slurm."""
    needs_root()
    needs_program("slurmctld")
    needs_program("munged")
    return needs_environment("cluster")


@pytest.fixture(scope="session")
def variables(clients: Path) -> dict[str, str]:
    """What conformance/run.py is told."""
    return {"CONFORMANCE_PYTHON": str(clients), "TESTYARD_BINARY": str(testyard_program())}


@pytest.fixture(scope="session")
def project(request: pytest.FixtureRequest) -> Path:
    """A working tree that every worker of this run knows."""
    folder = SOURCES / f"ty-live-{session_of(request.config).run}"
    (folder / "src" / "fresh").mkdir(parents=True, exist_ok=True)
    (folder / "pyproject.toml").write_text('[project]\nname = "fresh"\nversion = "0"\n')
    for path in (folder, folder / "src", folder / "src" / "fresh"):
        path.chmod(0o755)
    return folder


@pytest.fixture(scope="session")
def lab(request: pytest.FixtureRequest, clients: Path, variables: dict[str, str], project: Path) -> Iterator[Cluster]:
    """The cluster: two nodes, user and password `slurm`, shared by all workers."""
    run = [str(CONFORMANCE / "run.py"), "slurm-sdk", "--show-exposures"]
    shown = subprocess.run(run, env={**os.environ, **variables}, capture_output=True, text=True)
    assert shown.returncode in (0, 77), shown.stderr
    if shown.returncode == 77:
        pytest.skip("what public clients install could not be fetched: pip must reach its registry")
    session = session_of(request.config)
    said = session.settings.cluster._replace(source=str(project), expose=tuple(shown.stdout.split()))
    clusters = Clusters(session.run, session.settings._replace(cluster=said))
    yield clusters.cluster()
    clusters.close()
