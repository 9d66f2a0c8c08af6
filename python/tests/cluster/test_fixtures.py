"""The fixtures of clusters, in runs of the real pytest in a home of their own."""

from __future__ import annotations

import socket
import subprocess
import sys
import textwrap

import pytest

from support import Home, needs_cluster, needs_root
from testyard import Cluster

from .test_copies import BACKEND, BUILDS

PROJECT = """
import os
import pytest

SHOW = "import mine; print(mine.VERSION)"


def test_fast(cluster_mode):
    assert cluster_mode == "local"


@pytest.mark.integration
@pytest.mark.parametrize("number", range(4))
def test_on_the_cluster(cluster_mode, sdk_on_cluster, slurm_cluster, number):
    assert cluster_mode == "bind" == sdk_on_cluster.mode
    done = slurm_cluster.run(["srun", "-N2", "python", "-c", SHOW], env=sdk_on_cluster.env)
    assert done.stdout == "1\\n1\\n"
    print("RAN ON", slurm_cluster.name, slurm_cluster.info().created_ms, os.environ.get("PYTEST_XDIST_WORKER"))


@pytest.mark.wheel_packaging
def test_of_the_wheel(cluster_mode, slurm_cluster):
    assert cluster_mode == "wheel"
    assert slurm_cluster.run("srun hostname").returncode == 0
"""

MODE = """
import os
import pathlib
import pytest


@pytest.mark.integration
def test_mode(cluster_mode, sdk_on_cluster, slurm_cluster):
    show = ["srun", "-N2", sdk_on_cluster.python, "-c", "import mine; print(mine.VERSION)"]

    def seen():
        return slurm_cluster.run(show, env=sdk_on_cluster.env).stdout.split()

    assert cluster_mode == sdk_on_cluster.mode == os.environ["MODE"]
    assert (f"{pathlib.Path.cwd()}:ro" in slurm_cluster.info().expose) == (cluster_mode == "bind")
    if cluster_mode == "none":
        assert (sdk_on_cluster.python, sdk_on_cluster.env) == ("/usr/bin/python3", {})
        return
    assert seen() == ["1", "1"]
    pathlib.Path("src/mine.py").write_text("VERSION = 2\\n")
    assert seen() == ["1", "1"]
    sdk_on_cluster.refresh()
    assert seen() == ["2", "2"]
"""

NAMED = """
def test_named(slurm_cluster, sdk_on_cluster, pytestconfig):
    info = slurm_cluster.info()
    assert (info.name, info.state, len(info.nodes)) == ("warm", "running", 1)
    assert info.ssh._asdict().items() >= {"user": "ada", "password": "lovelace", "host": "127.0.0.1"}.items()
    assert sdk_on_cluster.tree == str(pytestconfig.rootpath / "src")
    assert slurm_cluster.run(["cat", str(pytestconfig.rootpath / "data" / "told")]).stdout == "told"
    print("RAN ON", info.ssh.port, info.created_ms)
"""
NOTED = """
testyard_cluster = warm
testyard_cluster_nodes = 1
testyard_cluster_source = src
testyard_cluster_expose = {data}:ro
testyard_cluster_user = ada
testyard_cluster_password = lovelace
"""


def pytest_in(
    home: Home, *options: str, project: str = PROJECT, noted: str = "", **variables: str
) -> subprocess.CompletedProcess[str]:
    (home.work / "pytest.ini").write_text("[pytest]\naddopts = -p no:cacheprovider --strict-markers\n" + noted)
    (home.work / "src").mkdir(exist_ok=True)
    (home.work / "src" / "mine.py").write_text("VERSION = 1\n")
    (home.work / "test_it.py").write_text(textwrap.dedent(project))
    # As a project that others may read.
    for folder in (home.path, home.work, home.work / "src"):
        folder.chmod(0o755)
    return home.run([sys.executable, "-m", "pytest", "-rP", *options], timeout=240, variables=variables)


def test_markers_choose_where_a_test_runs_and_workers_share_one_cluster(home: Home) -> None:
    needs_cluster()
    done = pytest_in(home, "-n", "2", "--dist", "worksteal")
    assert done.returncode == 0 and "6 passed" in done.stdout, done.stdout + done.stderr
    ran = {tuple(line.split()[2:4]) for line in done.stdout.splitlines() if line.startswith("RAN ON")}
    assert len(ran) == 1, ran
    assert Cluster.list() == [] and home.machines() == []


@pytest.mark.parametrize("mode", ["sync", "wheel", "none"])
def test_the_mode_is_that_of_the_option(home: Home, mode: str) -> None:
    needs_root()
    needs_cluster()
    (home.work / "backend.py").write_text(BACKEND)
    (home.work / "pyproject.toml").write_text(BUILDS)
    done = pytest_in(home, f"--testyard-cluster-mode={mode}", "--testyard-cluster-nodes=2", project=MODE, MODE=mode)
    assert done.returncode == 0 and "1 passed" in done.stdout, done.stdout + done.stderr


def test_a_cluster_that_is_named_is_as_the_ini_file_has_it_and_stays_warm(home: Home) -> None:
    needs_root()
    needs_cluster()
    data = home.work / "data"
    data.mkdir()
    (data / "told").write_text("told")
    data.chmod(0o755)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    ran = []
    for _ in range(2):
        done = pytest_in(home, f"--testyard-cluster-ssh-port={port}", project=NAMED, noted=NOTED.format(data=data))
        assert done.returncode == 0, done.stdout + done.stderr
        ran += [line.split()[2:] for line in done.stdout.splitlines() if line.startswith("RAN ON")]
        # Where somebody has stopped it, it is started.
        Cluster.get("warm").stop()
    assert ran == [[str(port), str(Cluster.get("warm").info().created_ms)]] * 2
    Cluster.get("warm").delete()


def test_a_local_test_makes_no_cluster(home: Home) -> None:
    done = pytest_in(home, "-k", "fast")
    assert done.returncode == 0, done.stdout + done.stderr
    assert not (home.state / "registry.sqlite").exists()


@pytest.mark.parametrize(
    "option, told",
    [
        ("--testyard-cluster-mode=bound", "did you mean 'bind'"),
        ("--testyard-cluster-nodes=0", "no number of 1 to 200"),
        ("--testyard-cluster-ssh-port=high", "no number of 1 to 65535"),
    ],
)
def test_what_means_nothing_is_refused(home: Home, option: str, told: str) -> None:
    done = pytest_in(home, option)
    assert done.returncode == 4 and told in done.stderr, done.stdout + done.stderr
