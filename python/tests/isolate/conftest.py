"""Suites made for one behaviour each, run by the real pytest with `--testyard-isolate`, as either kind of user."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path
from typing import Iterator, Mapping

import pytest

from support import Home, is_host_root, needs_user_namespaces, ordinary_user

#: As long may one run of pytest take, in seconds; no test comes near.
DEADLINE = 240.0


class Suite:
    """A folder with tests, and the home in which pytest runs them isolated."""

    def __init__(self, home: Home) -> None:
        self.home = home
        self.folder = Path(tempfile.mkdtemp(prefix="suite-", dir=home.work))
        if home.owner is not None:
            os.chown(self.folder, home.owner.pw_uid, home.owner.pw_gid)
        self.write("pytest.ini", "[pytest]\n")

    def write(self, name: str, text: str) -> Path:
        """Writes a file of the suite."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
        for one in (path, *path.parents):
            if one == self.folder:
                break
            if self.home.owner is not None:
                os.chown(one, self.home.owner.pw_uid, self.home.owner.pw_gid)
        return path

    def run(self, *options: str, variables: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        """Runs it isolated; `options` may say how many at once."""
        how = [] if any(option.startswith("--testyard-isolate") for option in options) else ["--testyard-isolate"]
        return self.plain(*how, *options, variables=variables)

    def plain(self, *options: str, variables: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        """Runs it as it always was."""
        script = 'cd "$1" && shift && exec "$@"'
        command = ["sh", "-c", script, "sh", str(self.folder), sys.executable, "-m", "pytest", "-rA", *options]
        return self.home.run(command, timeout=DEADLINE, variables=variables)

    def told(self, *options: str, variables: Mapping[str, str] | None = None, **counts: int) -> str:
        """The output of an isolated run that has exactly these outcomes."""
        done = self.run(*options, variables=variables)
        assert outcomes(done) == counts, done.stdout + done.stderr
        assert "INTERNALERROR" not in done.stdout
        return done.stdout


def outcomes(done: subprocess.CompletedProcess[str]) -> dict[str, int]:
    """The counts of pytest's last line, by word; warnings are left out."""
    lines = [line for line in done.stdout.splitlines() if re.search(r" in \d+\.\d+s", line)]
    found = re.findall(r"(\d+) ([a-z]+)", lines[-1].split(" in ")[0]) if lines else []
    singular = {"errors": "error", "warnings": "warning"}
    counts = {singular.get(word, word): int(number) for number, word in found}
    counts.pop("warning", None)
    return counts


@pytest.fixture(scope="session")
def own_home() -> Iterator[Home]:
    """A home for all suites: what a user's first machine costs is paid once."""
    home = Home()
    yield home
    home.finish()


@pytest.fixture(scope="session")
def users_home() -> Iterator[Home | None]:
    """A home of an ordinary user's, where this is root and there is one."""
    owner = ordinary_user() if is_host_root() else None
    home = Home(owner=owner) if owner is not None else None
    yield home
    if home is not None:
        home.finish()


@pytest.fixture
def suite(own_home: Home) -> Iterator[Suite]:
    """A suite of whoever runs this. No run leaves a machine."""
    needs_user_namespaces()
    yield Suite(own_home)
    assert own_home.machines() == []


@pytest.fixture(params=["as it is", "as an ordinary user"])
def anybodys_suite(request: pytest.FixtureRequest, own_home: Home) -> Iterator[Suite]:
    """A suite of whoever runs this, and one of an ordinary user's where this is root."""
    needs_user_namespaces()
    home = own_home
    if request.param != "as it is":
        if not is_host_root():
            pytest.skip("the host lacks it: this is an ordinary user already")
        home = request.getfixturevalue("users_home")
        if home is None:
            pytest.skip("needs an ordinary user: useradd --create-home tester")
    yield Suite(home)
    assert home.machines() == []
