"""Runs of the real pytest in projects of their own, in a home of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Iterator, Mapping

import pytest

from support import Home, as_ordinary_user, is_host_root, ordinary_user
from support.home import SYSTEM_PATH

#: As long may one run of pytest take, in seconds; no test comes near.
DEADLINE = 240.0


class Project:
    """A folder with tests, and the home in which pytest runs them."""

    def __init__(self, home: Home) -> None:
        self.home = home
        #: What runs pytest.
        self.python = Path(sys.executable)
        self.write("pytest.ini", "[pytest]\naddopts = -p no:cacheprovider\n")

    def write(self, name: str, text: str) -> None:
        path = self.home.work / name
        path.write_text(textwrap.dedent(text))
        path.chmod(0o644)

    def run(self, *options: str, variables: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        command = [str(self.python), "-m", "pytest", "-rsxXf", *options]
        path = {"PATH": f"{self.python.parent}:{SYSTEM_PATH}"}
        return self.home.run(command, timeout=DEADLINE, variables={**path, **(variables or {})})

    def passes(self, *options: str, count: int, variables: Mapping[str, str] | None = None) -> str:
        done = self.run(*options, variables=variables)
        assert done.returncode == 0 and f"{count} passed" in done.stdout, done.stdout + done.stderr
        return done.stdout

    def fails(self, *options: str, variables: Mapping[str, str] | None = None) -> str:
        done = self.run(*options, variables=variables)
        assert done.returncode == 1, done.stdout + done.stderr
        assert "INTERNALERROR" not in done.stdout
        return done.stdout

    def start(self, *options: str) -> subprocess.Popen[str]:
        """In a process group of its own."""
        command = [sys.executable, "-m", "pytest", *options]
        if self.home.owner is not None:
            command = as_ordinary_user(command)
        return subprocess.Popen(
            command,
            env=self.home.environment(),
            cwd=self.home.work,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            text=True,
        )


@pytest.fixture
def project(home: Home) -> Project:
    """A project of whoever runs this."""
    return Project(home)


@pytest.fixture(params=["as it is", "as an ordinary user"])
def anybodys_project(request: pytest.FixtureRequest) -> Iterator[Project]:
    """A project of whoever runs this, and one of an ordinary user's where this is root."""
    owner = None
    if request.param != "as it is":
        if not is_host_root():
            pytest.skip("the host lacks it: this is an ordinary user already")
        owner = ordinary_user()
        if owner is None:
            pytest.skip("needs an ordinary user: useradd --create-home tester")
    home = Home(owner=owner)
    yield Project(home)
    home.finish()


def project_is_root() -> bool:
    """Whether what `project` runs is root's."""
    return os.geteuid() == 0


def kill_group(process: subprocess.Popen[str]) -> None:
    """Ends a run that a test left."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()


def lines_of(path: Path) -> list[str]:
    """What tests wrote to a common file."""
    return path.read_text().splitlines() if path.exists() else []
