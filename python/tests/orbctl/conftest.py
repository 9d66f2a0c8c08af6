"""What the tests of the `orbctl` surface share: the name on PATH, and a Debian to make machines of."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any, Iterator

import pytest

from support import Home, is_host_root, needs_user_namespaces, skip, testyard_program

# Beside what is built; the tests of the command line itself keep it there too.
BUILT = Path(__file__).resolve().parents[3] / "target" / "tmp"
# Seconds that one call may take.
DEADLINE = 240.0


class Orb:
    """`orbctl`, first on this process's PATH, in a home that has `debian:12`."""

    def __init__(self, home: Home) -> None:
        self.home = home
        self.program = home.path / "bin" / "orbctl"
        self.program.parent.mkdir(mode=0o755)
        self.program.symlink_to(testyard_program())

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """One call to its end, with both streams apart."""
        return subprocess.run(
            ["orbctl", *words], capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=DEADLINE, check=False
        )

    def must(self, *words: str) -> str:
        """What a call prints that must succeed."""
        done = self.run(*words)
        assert done.returncode == 0, f"{words} exited with {done.returncode}: {done.stderr}"
        return done.stdout

    def record(self, name: str) -> dict[str, Any]:
        """What `info` says of a machine."""
        record: dict[str, Any] = json.loads(self.must("info", name, "-f", "json"))["record"]
        return record

    def states(self) -> dict[str, str]:
        """Every machine's state, by name."""
        return {one["name"]: one["state"] for one in json.loads(self.must("list", "--format", "json"))}


def debian_archive() -> Path:
    """A root file system of Debian 12 with `sudo`, built once by root."""
    archive = BUILT / "debian-12.tar"
    if archive.exists():
        return archive
    if shutil.which("mmdebstrap") is None:
        skip("program `mmdebstrap` is not installed")
    if not is_host_root():
        skip("only root can build a Debian, which is kept for this test then", host=True)
    BUILT.mkdir(parents=True, exist_ok=True)
    with (BUILT / "debian-12.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if archive.exists():
            return archive
        beside = BUILT / "debian-12.new"
        options = ["--quiet", "--variant=minbase", "--include=sudo,procps,iproute2", "--format=tar"]
        line = ["mmdebstrap", *options, "bookworm"]
        built = subprocess.run([*line, str(beside)], capture_output=True, text=True, timeout=600, check=False)
        if built.returncode != 0:
            skip("the archive of Debian cannot be reached", host=True)
        beside.rename(archive)
    return archive


@pytest.fixture(scope="module")
def orb(module_home: Home) -> Iterator[Orb]:
    """The surface, in a home that this module's tests share. Clients find it as people do: first on PATH."""
    needs_user_namespaces()
    archive = debian_archive()
    made = Orb(module_home)
    module_home.testyard("image", "import", "debian:12", str(archive))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{made.program.parent}{os.pathsep}{os.environ['PATH']}")
        made.must("config", "set", "testyard.image_stand_in", "ubuntu:*=debian:12")
        yield made
        made.must("delete", "--all", "--force")
