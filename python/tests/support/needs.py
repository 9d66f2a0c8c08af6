"""Skips that nobody can overlook: each has a reason, is counted, and says whether installing something would help."""

from __future__ import annotations

import functools
import os
import pwd
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import pytest

from .user import is_host_root, ordinary_user

# A reason that begins so is forced by the host: continuous integration accepts no other.
LACKS = "the host lacks it: "
TOOLS = Path(__file__).resolve().parents[2] / "tools"


def skip(reason: str, *, host: bool = False) -> NoReturn:
    """Skips the test. `host` says that nothing which could be installed would help."""
    pytest.skip(LACKS + reason if host else reason)


def needs_program(name: str) -> str:
    """The program's path; the test is skipped where it is not installed."""
    path = shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if path is None:
        skip(f"program `{name}` is not installed")
    return path


def needs_root() -> None:
    """Skips unless this is root of the host."""
    if not is_host_root():
        # The suite runs as root and as an ordinary user: each round forces the other's skips.
        skip("needs root of the host", host=True)


def needs_ordinary_user() -> None:
    """Skips unless this is an ordinary user or may become one."""
    if ordinary_user() is None:
        skip("needs an ordinary user: useradd --create-home tester")


def needs_user_namespaces() -> None:
    """Skips unless a user namespace can be made."""
    if not _has_user_namespaces():
        skip(
            "user namespaces cannot be made here (kernel.unprivileged_userns_clone, user.max_user_namespaces)",
            host=True,
        )


def needs_plain_root() -> None:
    """Skips where `/` is an overlay already: the kernel stacks no third one for what runs inside a machine's own."""
    types = [
        line.split(" ")[2] for line in Path("/proc/self/mounts").read_text().splitlines() if line.split(" ")[1] == "/"
    ]
    if types and types[-1] == "overlay":
        skip("needs a root that is no overlay itself", host=True)


def needs_python(version: str) -> str:
    """An interpreter of that version, wherever a version manager of this user's or the distribution put it."""
    found: str | None = runpy.run_path(str(TOOLS / "environments.py"))["interpreter_of"](version)
    if found is None:
        # Debian has one version; ruff and vermin look at the sources everywhere.
        skip(f"Python {version} is not one of this distribution's", host=True)
    return found


def needs_environment(name: str) -> Path:
    """The interpreter of the virtual environment that `requirements/NAME.txt` describes, with the package in it.

    `cargo xtask python` makes them beforehand. With `--fast` it is made when first asked for, which takes a network.
    """
    environments = os.environ.get("TESTYARD_TEST_ENVIRONMENTS")
    if environments is None:
        skip(f"no virtual environment `{name}`: run this through `cargo xtask python`")
    python = Path(environments, name, "bin", "python")
    programs = os.environ.get("TESTYARD_TEST_PROGRAMS")
    if not python.exists() and programs is not None:
        command = [
            sys.executable,
            str(TOOLS / "environments.py"),
            "--folder",
            environments,
            "--programs",
            programs,
            name,
        ]
        subprocess.run(command, check=False)
    if not python.with_name("testyard").exists():
        skip(f"virtual environment `{name}` could not be made: pip must reach its registry")
    return python


def needs_cluster() -> None:
    """Skips where nobody can make a Slurm cluster, or this user cannot: its daemons take several ids."""
    needs_plain_root()
    for program in ("slurmctld", "slurmd", "srun", "munged", "sshd"):
        needs_program(program)
    if not is_host_root():
        needs_program("newuidmap")
        if not _has_granted_ids():
            skip("needs a range of ids: usermod --add-subuids 100000-165535 --add-subgids 100000-165535 USER")


def _has_granted_ids() -> bool:
    """Whether this user has one, of user and of group ids."""
    name, number = pwd.getpwuid(os.geteuid()).pw_name, str(os.geteuid())
    return all(
        path.exists() and any(line.split(":")[0] in (name, number) for line in path.read_text().splitlines())
        for path in (Path("/etc/subuid"), Path("/etc/subgid"))
    )


@functools.cache
def _has_user_namespaces() -> bool:
    unshare = shutil.which("unshare")
    command = [unshare or "unshare", "--user", "--map-root-user", "true"]
    return unshare is not None and subprocess.run(command, capture_output=True, check=False).returncode == 0
