"""The package beside pytest and pytest-xdist alone, with the oldest Python that it is for, too."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from support import needs_environment, needs_python, needs_user_namespaces

from .conftest import Project
from .test_fixtures import THREE_LINES as PLACES
from .test_vms import THREE_LINES as MACHINES

LISTS = Path(__file__).resolve().parents[2] / "requirements"
# What `python -m venv` puts in by itself, and ours.
EVERYWHERE = {"pip", "setuptools", "testyard"}

ISOLATED = """
import os
import sys

def test_first(tmp_path, capsys):
    open("/tmp/left", "w").write("text")
    os.environ["LEFT"] = "text"
    print("told")
    assert capsys.readouterr().out == "told\\n" and not list(tmp_path.iterdir())

def test_second():
    assert not os.path.exists("/tmp/left") and "LEFT" not in os.environ
    assert int(os.readlink("/proc/self")) == os.getpid() < 100

def test_fails():
    assert len(sys.version_info) == "no number"

def test_ends():
    os._exit(3)
"""


def alone(project: Project, environment: str) -> Project:
    """The project, run by the Python of an environment that has what its list names and nothing else."""
    project.python = needs_environment(environment)
    code = "import importlib.metadata as m; print(*(one.metadata['Name'] for one in m.distributions()))"
    there = project.home.run([str(project.python), "-c", code])
    listed = re.findall(r"^([\w-]+)==", (LISTS / f"{environment}.txt").read_text(), re.MULTILINE)
    assert set(there.stdout.split()) <= {*listed, *EVERYWHERE}, there
    return project


def each_fixture(project: Project, *options: str) -> None:
    project.write("test_places.py", PLACES)
    project.write("test_machines.py", MACHINES)
    project.passes(*options, count=8)
    assert project.home.machines() == []


def isolated(project: Project) -> None:
    needs_user_namespaces()
    project.write("test_it.py", ISOLATED)
    for options in ((), ("-n2",)):
        told = project.fails("--testyard-isolate", *options)
        assert "2 failed, 2 passed" in told and "assert 5 == 'no number'" in told, told
    assert project.home.machines() == []


def test_each_fixture_needs_nothing_but_pytest(anybodys_project: Project) -> None:
    project = alone(anybodys_project, "pytest")
    each_fixture(project)
    each_fixture(project, "-n4")


def test_isolation_needs_nothing_but_pytest(project: Project) -> None:
    isolated(alone(project, "pytest"))


@pytest.fixture
def oldest(project: Project) -> Project:
    """A project of whoever runs this, and has that Python."""
    needs_python("3.9")
    return alone(project, "pytest-python3.9")


def test_each_fixture_works_on_the_oldest_python(oldest: Project) -> None:
    each_fixture(oldest, "-n4")


def test_isolation_works_on_the_oldest_python(oldest: Project) -> None:
    isolated(oldest)
