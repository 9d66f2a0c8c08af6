"""One cluster that these tests share, with what public clients of Slurm need on its nodes.

It is made in root's round only. That of an ordinary user has clusters where these tests make their own: a cluster's
life, its holders, the fixtures, and the page of the documentation."""

from __future__ import annotations

import fcntl
import os
import subprocess
from contextlib import contextmanager
from pathlib import Path
from typing import Iterator

import pytest

from support import needs_cluster, needs_environment, needs_root
from support.home import testyard_program
from testyard import Cluster
from testyard.plugin import session_of
from testyard.plugin._clusters import Clusters

CONFORMANCE = Path(__file__).resolve().parents[3] / "conformance"


@pytest.fixture(scope="session")
def clients() -> Path:
    """The interpreter with the public clients of Slurm."""
    needs_root()
    needs_cluster()
    return needs_environment("cluster")


@pytest.fixture(scope="session")
def variables(clients: Path) -> dict[str, str]:
    """What conformance/run.py is told."""
    return {"CONFORMANCE_PYTHON": str(clients), "TESTYARD_BINARY": str(testyard_program())}


@pytest.fixture(scope="session")
def project() -> Path:
    """A working tree that every worker of this run knows."""
    folder = Path(os.environ["TESTYARD_TEST_SESSION"], "live")
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


@contextmanager
def placing(project: Path, *, alone: bool) -> Iterator[None]:
    """A cluster has one live source at a time, and these tests share cluster and tree: while one is `alone`, no other
    test of any worker places or edits."""
    with (project / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        yield
