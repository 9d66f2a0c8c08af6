"""Suites of others, fetched by name: isolated, they count what they count without."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import venv
from pathlib import Path
from typing import NamedTuple

import pytest

from support import Home, needs_user_namespaces, skip
from testyard._binary import program

from .conftest import outcomes

PATIENCE = 1500.0


class Real(NamedTuple):
    """A source distribution that carries its tests."""

    name: str
    version: str
    #: What its tests need, beside itself.
    needs: tuple[str, ...]
    tests: tuple[str, ...]
    options: tuple[str, ...] = ()


#: These build a wheel and install it: minutes of pip's, twice. `examples/real` runs them.
BUILDING = (
    "tests/test_callbacks.py::test_callbacks_invoked_local_backend",
    "tests/test_cluster_submit.py::test_cluster_submit_with_local_backend",
)

SUITES = [
    Real(
        "slurm-sdk",
        "0.4.6",
        ("pytest>=8.3.4", "pytest-testinfra>=10", "-e.[tui]"),
        ("tests", *(f"--deselect={test}" for test in BUILDING)),
        ("--testyard-isolate-network=host",),
    ),
    Real("click", "8.1.7", ("pytest<9", "-e."), ("tests",)),
    Real("attrs", "25.3.0", ("pytest<9", "hypothesis", "cloudpickle", "-e."), ("tests",)),
]


#: Two tests that pass only when both run at once.
MEET = """
import socket, time

def test_waits():
    with socket.create_server(("127.0.0.1", {port})) as server:
        server.settimeout(60)
        server.accept()

def test_comes():
    deadline = time.monotonic() + 60
    while True:
        try:
            return socket.create_connection(("127.0.0.1", {port})).close()
        except ConnectionRefusedError:
            assert time.monotonic() < deadline
            time.sleep(0.05)
"""


def free_port() -> int:
    """A port of the host that nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@pytest.mark.timeout(2 * PATIENCE)
@pytest.mark.parametrize("real", SUITES, ids=lambda real: real.name)
def test_counts_are_those_of_plain_pytest(real: Real, own_home: Home) -> None:
    needs_user_namespaces()
    if real.name != "click" and os.environ.get("TESTYARD_TEST_AFTER_ROOT"):
        skip("its minutes are spent once, in the round of root", host=True)
    project = fetched(real, own_home)
    python = str(project / ".venv" / "bin" / "python")
    common = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "addopts=", "-c", ini(project), *real.tests]
    source = str(Path(__file__).resolve().parents[2] / "src")
    path = f"{Path(python).parent}:{os.environ.get('PATH', '')}"
    # The suite's interpreter is another than this one, and has no program beside it.
    environment = own_home.environment(
        PATH=path, PYTHONPATH=source, PYTHONDONTWRITEBYTECODE="1", TESTYARD_BINARY=program()
    )
    isolated = ["-p", "testyard.plugin", "--testyard-isolate=auto", *real.options]
    counts = []
    for more in ([], isolated):
        done = subprocess.run(
            [*common, *more],
            cwd=project,
            env=environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        counts.append(outcomes(done))
    assert counts[0].get("passed"), done.stdout[-4000:] + done.stderr[-4000:]
    assert counts[1] == counts[0], done.stdout[-8000:] + done.stderr[-4000:]
    # These suites have another pytest than Testyard's own tests.
    apart = own_home.path / f"meet-{real.name}"
    apart.mkdir()
    (apart / "test_meet.py").write_text(MEET.format(port=free_port()))
    options = ["-p", "testyard.plugin", "--testyard-isolate=2", "--testyard-isolate-network=host"]
    command = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options]
    meeting = subprocess.run(
        command, cwd=apart, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert outcomes(meeting).get("passed") == 2, meeting.stdout[-4000:] + meeting.stderr[-4000:]
    assert own_home.machines() == []


def ini(project: Path) -> str:
    """The project's own configuration."""
    names = ("pytest.ini", "pyproject.toml", "tox.ini", "setup.cfg")
    return next(str(project / name) for name in names if (project / name).exists())


def fetched(real: Real, home: Home) -> Path:
    """The unpacked project with a virtual environment for its tests; kept where `TESTYARD_REAL_CACHE` says."""
    cache = Path(os.environ.get("TESTYARD_REAL_CACHE") or home.path / "real")
    cache.mkdir(exist_ok=True)
    project = cache / f"{real.name}-{real.version}"
    if (project / ".venv" / "complete").exists():
        return project
    download = cache / "download"
    named = f"{real.name}=={real.version}"
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    got = subprocess.run(
        [*pip, "download", "--no-deps", f"--no-binary={real.name}", f"--dest={download}", named],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    archives = list(download.glob(f"{real.name.replace('-', '_')}-{real.version}.tar.gz"))
    if not archives:
        skip(f"{named} cannot be fetched: {got.stderr.strip().splitlines()[-1:]}")
    subprocess.run(["tar", "-xzf", str(archives[0]), "-C", str(cache)], check=True)
    (cache / f"{real.name.replace('-', '_')}-{real.version}").rename(project)
    venv.create(project / ".venv", with_pip=True)
    python = project / ".venv" / "bin" / "python"
    made = subprocess.run(
        [str(python), "-m", "pip", "--quiet", "install", *real.needs],
        cwd=project, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if made.returncode != 0:
        skip(f"what the tests of {named} need cannot be installed: {made.stderr.strip()[-300:]}")
    (project / ".venv" / "complete").touch()
    return project
