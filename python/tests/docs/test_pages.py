"""Every command and every test that a page of the documentation shows, run as its reader would.

A fence says what becomes of its block:

    python run              run by Python
    python test             a file of tests, run by pytest; all of them must pass
    sh run                  run by `sh -eu`
    toml file=suite.toml    written to that file, whatever its language

The blocks of a page share a folder and a `TESTYARD_HOME`, and run in the order of the page. Others are only shown.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from support import Home, needs_cluster

TOP = Path(__file__).resolve().parents[3]
PAGES = [TOP / "README.md", *sorted((TOP / "docs").glob("*.md"))]
FENCE = re.compile(r"^```(?P<language>\w+) (?P<use>run|test|file=\S+)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
# Words after a language that are none of ours, most likely misspelt.
UNKNOWN = re.compile(r"^```(?:python|sh|toml|ini)[ \t]+(?!(?:run|test|file=\S+)$)(.*)$", re.MULTILINE)
# Fences of what can be run.
PLAIN = re.compile(r"^```(?:python|sh|toml|ini)$", re.MULTILINE)
# Pages about Python: each block is run, so many of them by a test of their own.
PYTHON_PAGES = {
    "python.md": 0,
    "python-client.md": 0,
    "pytest.md": 0,
    "isolate.md": 0,
    "clusters-python.md": 0,
    "dev.md": 3,  # tests/dev/test_document.py; what version 0.0.3 needs besides: tests/dev/drive_flow.py
    "lifecycle.md": 4,  # tests/vms/test_moved_suite.py
    "pyinfra.md": 4,  # tests/pyinfra/test_document.py
}
# What a page takes of the host.
NEEDS = {"clusters-python.md": needs_cluster}
# Seconds that one block may take; some make an image first.
DEADLINE = 240.0


@dataclass
class Block:
    """One block that is to be run."""

    language: str
    use: str
    text: str
    line: int


def blocks(text: str) -> list[Block]:
    """Those of a page."""
    return [
        Block(found["language"], found["use"], found["text"], text.count("\n", 0, found.start()) + 1)
        for found in FENCE.finditer(text)
    ]


def command(block: Block, folder: Path) -> list[str]:
    """What runs it; for a file, nothing that fails."""
    if block.use.startswith("file="):
        path = folder / block.use.partition("=")[2]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(block.text)
        return ["true"]
    if block.language == "sh":
        return ["sh", "-euc", block.text]
    if block.use == "run":
        return [sys.executable, "-c", block.text]
    path = folder / f"test_line_{block.line}.py"
    path.write_text(block.text)
    return [sys.executable, "-m", "pytest", "-q", str(path)]


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page.read_text())], ids=lambda page: page.name)
def test_what_a_page_shows_works(page: Path, home: Home) -> None:
    NEEDS.get(page.name, lambda: None)()
    text = page.read_text()
    assert not UNKNOWN.findall(text), "fences that nothing is done with"
    for block in blocks(text):
        done = home.run(command(block, home.work), timeout=DEADLINE)
        said = f"{page.name}:{block.line}: exited with {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert done.returncode == 0, said
        # A skipped test has shown nothing.
        assert block.use != "test" or (" skipped" not in done.stdout and " passed" in done.stdout), said


def test_every_block_of_pythons_pages_is_run() -> None:
    plain = {name: len(PLAIN.findall((TOP / "docs" / name).read_text())) for name in PYTHON_PAGES}
    assert plain == PYTHON_PAGES, "a fence that only shows: say `run` or `test`, or have a test of its own run it"


def test_fences_are_understood() -> None:
    text = "a\n```python run\nprint()\n```\n```sh\nshown\n```\n```toml file=a/b.toml\n[a]\n```\n"
    found = blocks(text)
    assert [(block.language, block.use, block.line) for block in found] == [
        ("python", "run", 2),
        ("toml", "file=a/b.toml", 8),
    ]
    assert found[0].text == "print()\n"
    assert UNKNOWN.findall("```sh runs\n```\n") == ["runs"]
    assert UNKNOWN.findall(text) == []
