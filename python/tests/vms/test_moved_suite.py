"""The suite of docs/lifecycle.md, before and after it was moved over: both run, and say the same."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from support import Home

DOCUMENT = Path(__file__).resolve().parents[3] / "docs" / "lifecycle.md"


def blocks() -> list[str]:
    """The document's blocks of Python."""
    return re.findall(r"^```python\n(.*?)^```$", DOCUMENT.read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("which", ["before", "after"])
def test_the_suite_passes(module_home: Home, which: str) -> None:
    (block,) = [block for block in blocks() if block.startswith(f"# {which}: ")]
    suite = module_home.work / which
    suite.mkdir()
    file = suite / block.split(maxsplit=3)[2]
    file.write_text(block)
    done = module_home.run([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(file)])
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 passed" in done.stdout
    assert module_home.machines() == []


def test_the_first_example_prints_the_machines_system(module_home: Home) -> None:
    (block,) = [block for block in blocks() if "uname -a" in block]
    done = module_home.run([sys.executable, "-c", block])
    assert done.stdout.startswith("Linux "), done.stderr
    assert module_home.machines() == []
