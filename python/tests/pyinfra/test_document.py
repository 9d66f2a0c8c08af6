"""What docs/pyinfra.md shows, run."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path
from typing import Any, Iterator

import pytest

from support import Home
from testyard import Machine

DOCUMENT = Path(__file__).resolve().parents[3] / "docs" / "pyinfra.md"


def blocks(language: str) -> list[str]:
    """The document's blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", DOCUMENT.read_text(), re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def web(module_home: Home) -> Iterator[Machine]:
    """The machine of the document."""
    (create,) = [line for block in blocks("sh") for line in block.splitlines() if line.startswith("testyard ")]
    module_home.testyard(*shlex.split(create)[1:])
    machine = Machine.get("web")
    yield machine
    machine.delete(force=True)


def test_every_pyinfra_command_runs_as_written(program: Any, web: Machine, module_home: Home) -> None:
    (module_home.work / "deploy.py").write_text(blocks("python")[0])
    commands = [line for block in blocks("sh") for line in block.splitlines() if line.startswith("pyinfra ")]
    told = [program.run(*shlex.split(command)[1:]) for command in commands]
    assert "Linux web" in told[0]
    totals = [re.search(r"Grand total +(\S+) +(\S+) +(\S+) +(\S+)", text) for text in told]
    assert [total and total.groups() for total in totals[1:]] == [("4", "4", "-", "-"), ("4", "-", "-", "4")]


def test_the_library_runs_as_written(web: Machine, module_home: Home) -> None:
    web.run("rm -rf /srv/shop", user="root")
    done = module_home.run([sys.executable, "-c", blocks("python")[1]])
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert web.run("test -d /srv/shop", user="root", check=False).returncode == 0
