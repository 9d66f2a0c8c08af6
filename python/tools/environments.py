"""Makes the virtual environments that the package is tested in, and puts the package into them.

    environments.py --folder target/python/fast --programs target/debug main flow-old
    environments.py --folder target/python/wheel --wheel testyard-….whl main

Each is named after its list in `requirements/NAME.txt` and made once; a changed list makes it anew. One whose name ends
with `-python3.9` has that Python, the others the distribution's. With `--programs`
it gets links to the sources and to programs that are built already, so that a changed line needs no installing. With
`--wheel` it gets what users get. Nothing but the standard library is used: this runs before anything is installed.

Exits with 0 when all of them are there, with 69 when requirements could not be installed.
"""

from __future__ import annotations

import argparse
import configparser
import fcntl
import hashlib
import os
import pwd
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

PYTHON_FOLDER = Path(__file__).resolve().parent.parent
PROGRAMS = ("testyard", "testyard-agent")
# Not the interpreter of a version manager in somebody's home: environments of ordinary users could not see it.
INTERPRETER = "/usr/bin/python3"
# Environments that are made at once.
AT_ONCE = 3


def interpreter_of(version: str) -> str | None:
    """The Python of that version, such as `3.9`, which the distribution or this user's version manager has here."""
    managed = sorted(Path(pwd.getpwuid(os.getuid()).pw_dir).glob(f".pyenv/versions/{version}.*/bin/python3"))
    candidates = (f"/usr/bin/python{version}", f"/usr/local/bin/python{version}", *map(str, managed))
    return next((candidate for candidate in candidates if os.path.exists(candidate)), None)


class CannotInstall(Exception):
    """Requirements could not be installed; pip has said why."""


class VirtualEnvironment:
    """One virtual environment, below a folder of its kind."""

    def __init__(self, folder: Path, name: str) -> None:
        self.requirements = PYTHON_FOLDER / "requirements" / f"{name}.txt"
        _, _, self.version = name.partition("-python")
        self.folder = folder / name
        self.python = self.folder / "bin" / "python"
        self._done = self.folder / "complete"

    def make(self) -> None:
        """Makes it unless it is there with just these requirements. Raises `CannotInstall`."""
        wanted = hashlib.sha256(self.requirements.read_bytes() + str(self.folder).encode()).hexdigest()
        if self._done.exists() and self._done.read_text() == wanted:
            return
        shutil.rmtree(self.folder, ignore_errors=True)
        interpreter = interpreter_of(self.version) if self.version else os.environ.get("PYTHON") or INTERPRETER
        if interpreter is None:
            raise CannotInstall(f"Python {self.version} is not on this host")
        print(f"making the virtual environment {self.folder}", flush=True)
        if subprocess.call([interpreter, "-m", "venv", str(self.folder)]) != 0:
            raise CannotInstall(f"`{interpreter} -m venv` failed; apt-get install python3-venv")
        if self._pip("--no-deps", "--requirement", str(self.requirements)) != 0:
            raise CannotInstall(f"pip could not install {self.requirements}")
        self._done.write_text(wanted)

    def install_wheel(self, wheel: Path) -> None:
        """Puts a wheel in, as users would, but without looking for anything else."""
        digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
        stamp = self.folder / "wheel"
        if stamp.exists() and stamp.read_text() == digest:
            return
        if self._pip("--no-index", "--no-deps", "--force-reinstall", str(wheel)) != 0:
            raise CannotInstall(f"pip could not install {wheel}")
        stamp.write_text(digest)

    def link_sources(self, programs: Path) -> None:
        """Puts links to the sources and to built programs in, with the metadata that an installed package has."""
        (packages,) = self.folder.glob("lib/python3*/site-packages")
        for old in packages.glob("testyard-*.dist-info"):
            shutil.rmtree(old)
        version = workspace_version()
        (packages / "testyard.pth").write_text(f"{PYTHON_FOLDER / 'src'}\n")
        metadata = packages / f"testyard-{version}.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: testyard\nVersion: {version}\n")
        (metadata / "INSTALLER").write_text("cargo xtask python --fast\n")
        (metadata / "entry_points.txt").write_text(entry_points())
        (metadata / "RECORD").write_text("")
        for name in PROGRAMS:
            link = self.folder / "bin" / name
            link.unlink(missing_ok=True)
            link.symlink_to(programs.resolve() / name)

    def _pip(self, *arguments: str) -> int:
        command = [str(self.python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *arguments]
        return subprocess.call(command)


def workspace_version() -> str:
    """The version of the workspace, which is the package's."""
    text = (PYTHON_FOLDER.parent / "Cargo.toml").read_text()
    found = re.search(r'^\[workspace\.package\]\nversion = "([^"]+)"', text, re.MULTILINE)
    if found is None:
        raise SystemExit("Cargo.toml names no version below [workspace.package]")
    return found[1]


def entry_points() -> str:
    """What pyproject.toml declares, as an installed package has it. Older Pythons cannot read TOML, so these tables."""
    text = (PYTHON_FOLDER / "pyproject.toml").read_text()
    found = configparser.ConfigParser()
    for table in re.finditer(r'^\[project\.entry-points\."?([\w.]+)"?\]\n((?:[^\[\n].*\n|\n)*)', text, re.MULTILINE):
        found[table[1]] = dict(re.findall(r'^([\w-]+) = "([^"]+)"$', table[2], re.MULTILINE))
    lines: list[str] = []
    for section in found.sections():
        lines += [f"[{section}]", *(f"{name} = {value}" for name, value in found[section].items()), ""]
    return "\n".join(lines)


def main() -> int:
    """The command line above."""
    parser = argparse.ArgumentParser(description="virtual environments that the package is tested in")
    parser.add_argument("--folder", type=Path, required=True, help="where they are, each below its name")
    kind = parser.add_mutually_exclusive_group(required=True)
    kind.add_argument("--programs", type=Path, help="link the sources, and the programs in this folder")
    kind.add_argument("--wheel", type=Path, help="install this wheel")
    parser.add_argument("names", nargs="+", metavar="NAME", help="the lists in requirements/NAME.txt")
    chosen = parser.parse_args()
    chosen.folder.mkdir(parents=True, exist_ok=True)

    def provide(name: str) -> str | None:
        try:
            provide_one(chosen.folder.resolve(), name, chosen.wheel, chosen.programs)
        except CannotInstall as error:
            return str(error)
        return None

    # While one waits for its registry another is unpacked.
    with ThreadPoolExecutor(AT_ONCE) as pool:
        errors = [error for error in pool.map(provide, chosen.names) if error is not None]
    for error in errors:
        print(f"error: {error}", file=sys.stderr)
    return 69 if errors else 0


def provide_one(folder: Path, name: str, wheel: Path | None, programs: Path) -> None:
    """Makes one environment, with the wheel, or else the programs, in it. Raises `CannotInstall`."""
    environment = VirtualEnvironment(folder, name)
    # Tests that run side by side may ask for the same one.
    with (folder / f".{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        environment.make()
        if wheel is not None:
            environment.install_wheel(wheel)
        else:
            environment.link_sources(programs)


if __name__ == "__main__":
    sys.exit(main())
