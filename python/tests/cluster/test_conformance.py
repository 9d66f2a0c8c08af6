"""Public suites and clients of Slurm on a cluster, in the bounded form that every run of the tests affords."""

from __future__ import annotations

import os
import subprocess
from functools import partial
from pathlib import Path
from typing import Callable, Iterator

import pytest

from support import skip
from testyard import Cluster

from .conftest import CONFORMANCE, placing

#: Of the suite of slurm-sdk: the services, and a job over SSH that brings its wheel along.
SOME = "test_slurm_services_running or test_submit_job_over_ssh"

# Seconds for a public suite: what it needs is installed on the nodes, too, which takes minutes on a slow host.
PATIENCE = 560
pytestmark = pytest.mark.timeout(PATIENCE + 20)


@pytest.fixture
def conforms(lab: Cluster, variables: dict[str, str], project: Path) -> Iterator[Callable[..., str]]:
    """Runs a suite on the cluster to its success; what it prints."""
    with placing(project, alone=False):
        yield partial(run_suite, lab, variables)


def run_suite(lab: Cluster, variables: dict[str, str], suite: str, *arguments: str) -> str:
    command = [str(CONFORMANCE / "run.py"), suite, "--cluster", lab.name, *arguments]
    done = subprocess.run(command, env={**os.environ, **variables}, capture_output=True, text=True, timeout=PATIENCE)
    if done.returncode == 77:
        skip(f"{suite} could not be fetched: pip must reach its registry")
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("suite", ["submitit", "simple-slurm", "dask-jobqueue"])
def test_a_public_client_submits_waits_cancels_and_reads(suite: str, conforms: Callable[..., str]) -> None:
    assert suite in conforms(suite)


def test_some_of_the_integration_suite_of_slurm_sdk(conforms: Callable[..., str]) -> None:
    told = conforms("slurm-sdk", "--", "tests/integration/test_slurm_container.py", "-k", SOME, "-o", "addopts=")
    assert "2 passed" in told, told
