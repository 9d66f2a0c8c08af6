"""The package as a whole: what its import takes, which Pythons it is for, what it declares."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from support import needs_python

PYTHON_FOLDER = Path(__file__).resolve().parents[2]
SOURCES = PYTHON_FOLDER / "src" / "testyard"
# Each costs milliseconds, and most of those who import the package never get to use it.
LATER = (
    "typing",
    "asyncio",
    "subprocess",
    "json",
    "socket",
    "ssl",
    "urllib",
    "logging",
    "tempfile",
    "dataclasses",
    "inspect",
)
# Never but in the modules that serve them.
OTHERS = ("pytest", "_pytest", "pyinfra", "gevent", "flow")
# Each entry point with the module that must be there for it.
ENTRY_POINTS = {
    "pytest11": "plugin/__init__.py",
    "pyinfra.connectors": "pyinfra_connector.py",
    "flow.providers": "dev/flow_provider/__init__.py",
}


def modules_after(statement: str) -> set[str]:
    """What is loaded after a statement in a new interpreter, beyond what one without it has."""
    code = f"import sys; before = set(sys.modules); {statement}; print(*(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_the_import_loads_nothing_that_costs() -> None:
    loaded = modules_after("import testyard")
    assert not loaded & {*LATER, *OTHERS}, loaded & {*LATER, *OTHERS}


def test_every_name_that_is_offered_is_there() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import testyard; [getattr(testyard, name) for name in testyard.__all__]"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_entry_points_come_with_their_modules() -> None:
    text = (PYTHON_FOLDER / "pyproject.toml").read_text()
    for group, module in ENTRY_POINTS.items():
        table = re.search(rf'^\[project\.entry-points\."?{re.escape(group)}"?\]\n(# )?testyard = ', text, re.MULTILINE)
        assert table is not None, group
        exists = (SOURCES / module).exists() or (SOURCES / module.replace("/__init__", "")).exists()
        assert exists == (table[1] is None), f"{group}: uncomment its line in pyproject.toml once {module} is there"


def test_entry_points_can_be_loaded() -> None:
    for point in importlib.metadata.distribution("testyard").entry_points:
        wanted = {"flow.providers": "flow"}.get(point.group)
        if wanted is None or importlib.util.find_spec(wanted) is not None:
            point.load()


PYTHONS = ("3.9", "3.10", "3.12", "3.13")


@pytest.mark.parametrize("version", PYTHONS)
def test_every_module_compiles_and_the_package_imports_on_other_pythons(version: str) -> None:
    python = needs_python(version)
    code = (
        "import ast, json, pathlib, sys\n"
        "sources = pathlib.Path(sys.argv[1])\n"
        "for path in sources.rglob('*.py'):\n"
        "    ast.parse(path.read_text(), str(path))\n"
        "sys.path.insert(0, str(sources.parent))\n"
        "import testyard\n"
        "[getattr(testyard, name) for name in testyard.__all__]\n"
        "print(json.dumps(sys.version_info[:2]))\n"
    )
    done = subprocess.run([python, "-I", "-B", "-c", code, str(SOURCES)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [int(part) for part in version.split(".")]
