"""The wheel: that it installs anywhere, holds what it should, and that its programs need nothing of their host."""

from __future__ import annotations

import configparser
import os
import re
import stat
import struct
import subprocess
import sys
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest

from support import Home, skip

PYTHON_FOLDER = Path(__file__).resolve().parents[2]
PROGRAMS = ("testyard", "testyard-agent")
# Program headers of ELF, and tags of its dynamic section.
PT_DYNAMIC, PT_INTERP, DT_NEEDED = 2, 3, 1


@pytest.fixture(scope="module")
def wheel() -> Path:
    """The wheel under test."""
    path = os.environ.get("TESTYARD_TEST_WHEEL")
    if path is None:
        skip("no wheel was built: run `cargo xtask python` without --fast")
    return Path(path)


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty virtual environment into which the wheel alone was installed, without a network."""
    folder = tmp_path_factory.mktemp("empty")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    pip = [sys.executable, "-m", "pip", "--isolated", "--python", folder / "bin" / "python", "install", "--quiet"]
    done = subprocess.run([*pip, "--no-index", "--no-deps", wheel], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


def metadata(wheel: Path, name: str) -> str:
    """A file of the wheel's metadata."""
    with zipfile.ZipFile(wheel) as archive:
        (path,) = [path for path in archive.namelist() if path.endswith(f".dist-info/{name}")]
        return archive.read(path).decode()


def headers(wheel: Path, name: str) -> Message:
    """The same, as what stands before each colon."""
    return Parser().parsestr(metadata(wheel, name))


def test_nothing_is_required_at_run_time(wheel: Path) -> None:
    described = headers(wheel, "METADATA")
    assert described["Name"] == "testyard"
    assert described["Requires-Python"] == ">=3.9"
    assert described.get_all("Requires-Dist") is None


def test_the_version_is_the_workspaces(wheel: Path) -> None:
    manifest = (PYTHON_FOLDER.parent / "Cargo.toml").read_text()
    version = re.search(r'^version = "(.+)"', manifest, re.MULTILINE)
    assert version is not None
    assert headers(wheel, "METADATA")["Version"] == version[1]


def test_distributions_of_ten_years_take_it(wheel: Path) -> None:
    tags = headers(wheel, "WHEEL").get_all("Tag") or []
    machine = os.uname().machine
    assert f"py3-none-manylinux_2_17_{machine}" in tags
    assert f"py3-none-manylinux2014_{machine}" in tags


def test_types_and_programs_are_in_it(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        modes = {info.filename: stat.S_IMODE(info.external_attr >> 16) for info in archive.infolist()}
    assert "testyard/py.typed" in modes
    assert "testyard/__init__.py" in modes
    scripts = {Path(name).name: mode for name, mode in modes.items() if "/scripts/" in name}
    assert set(scripts) >= set(PROGRAMS)
    assert all(mode & 0o555 == 0o555 for mode in scripts.values()), scripts
    # What Python or a test left beside the sources is not for users.
    assert not [name for name in modes if "__pycache__" in name or "/tests/" in name]


def test_programs_start_from_an_empty_environment(installed: Path, home: Home) -> None:
    done = home.run([str(installed / "bin" / "testyard"), "--version"])
    assert done.stdout.split()[-1].count(".") == 2, done
    # It is never started by hand, and says so.
    done = home.run([str(installed / "bin" / "testyard-agent")])
    assert done.returncode == 2, done


def test_the_installed_program_makes_a_machine(installed: Path, home: Home) -> None:
    testyard = str(installed / "bin" / "testyard")
    for words in (["create", "m"], ["exec", "m", "--", "true"], ["delete", "m"]):
        done = home.run([testyard, *words])
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", PROGRAMS)
def test_programs_need_no_library_and_no_loader(installed: Path, name: str) -> None:
    interpreter, needed = linkage((installed / "bin" / name).read_bytes())
    assert not interpreter
    assert needed == 0


def test_the_check_for_static_programs_sees_others() -> None:
    interpreter, needed = linkage(Path(sys.executable).read_bytes())
    assert interpreter
    assert needed > 0


def test_it_imports_without_anything_else(installed: Path) -> None:
    code = "import testyard, sys; print(testyard.__file__)"
    done = subprocess.run(
        [installed / "bin" / "python", "-I", "-c", code], capture_output=True, text=True, check=True, cwd="/"
    )
    assert done.stdout.startswith(str(installed))


def test_its_entry_points_are_those_of_the_sources(wheel: Path) -> None:
    declared = configparser.ConfigParser(delimiters=("=",))
    with zipfile.ZipFile(wheel) as archive:
        texts = [archive.read(name).decode() for name in archive.namelist() if name.endswith("entry_points.txt")]
    declared.read_string("\n".join(texts))
    written = re.findall(r'^testyard = "([^"]+)"$', (PYTHON_FOLDER / "pyproject.toml").read_text(), re.MULTILINE)
    assert sorted(value for group in declared.sections() for value in declared[group].values()) == sorted(written)


def linkage(program: bytes) -> tuple[bool, int]:
    """Whether a 64-bit ELF program asks for a loader, and how many libraries it names."""
    assert program[:5] == b"\x7fELF\x02"
    offset, _, _, _, size, count = struct.unpack_from("<QQIHHH", program, 32)
    interpreter, needed = False, 0
    for index in range(count):
        kind, _, place, _, _, length = struct.unpack_from("<IIQQQQ", program, offset + index * size)
        interpreter |= kind == PT_INTERP
        if kind == PT_DYNAMIC:
            tags = [struct.unpack_from("<QQ", program, at)[0] for at in range(place, place + length, 16)]
            needed += tags.count(DT_NEEDED)
    return interpreter, needed
