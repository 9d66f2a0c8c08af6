"""The package's own test suite, unmodified, against our `orbctl`.

Its tests of real machines run only on the system that OrbStack is for, and wait for fixed times: a plugin beside it
says that this is such a system, and lets nobody sleep for long. What is left out or may fail is named below, with the
reason.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from support import skip

from .conftest import BUILT, Orb

VERSION = "0.11.0"
# Seconds: the suite starts pyinfra some dozen times.
PATIENCE = 900
PLUGIN = """
import platform, sys, time

_system, _sleep = platform.system, time.sleep

def _is_suites(depth=2):
    return "/tests/" in sys._getframe(depth).f_code.co_filename

platform.system = lambda: "Darwin" if _is_suites() else _system()
time.sleep = lambda seconds: _sleep(seconds if seconds < 1 else 0.05)
"""
# These run programs on this host that it may lack, one of them to ask the host's own resolver for `.orb.local`.
NEEDS = {
    "test_vm_test_connectivity_ping": "ping",
    "test_vm_test_connectivity_nc": "nc",
    "test_vm_dns_lookup_a_record": "host",
    "test_vm_dns_lookup_aaaa_record": "host",
    "test_vm_dns_lookup_mx_record": "host",
    "test_cross_vm_connectivity_orb_local": "host",
}
# It wants the user name `invalid-user` to be refused, which every Linux takes.
WRONG = {"test_vm_invalid_user_integration"}


def source() -> Path:
    """The released source, fetched once through pip."""
    folder = BUILT / "pyinfra-orbstack"
    unpacked = folder / f"pyinfra_orbstack-{VERSION}"
    if unpacked.exists():
        return unpacked
    if not os.access(BUILT, os.W_OK):
        skip("who may write beside what is built fetches the package's source, which is kept then", host=True)
    fetch = [
        sys.executable,
        *"-m pip download --quiet --no-deps --no-binary=pyinfra-orbstack --dest".split(),
        str(folder),
    ]
    fetched = subprocess.run([*fetch, f"pyinfra-orbstack=={VERSION}"], capture_output=True, timeout=240, check=False)
    archives = list(folder.glob("*.tar.gz"))
    if fetched.returncode != 0 or not archives:
        skip("pip cannot reach its registry", host=True)
    shutil.unpack_archive(archives[0], folder)
    return unpacked


@pytest.mark.timeout(PATIENCE)
def test_the_packages_own_suite_passes(orb: Orb, tmp_path: Path) -> None:
    pytest.importorskip("pyinfra_orbstack", reason="pyinfra-orbstack is not installed")
    suite = tmp_path / "suite"
    shutil.copytree(source(), suite)
    (tmp_path / "another_system.py").write_text(PLUGIN)
    missing = {test for test, program in NEEDS.items() if shutil.which(program) is None}
    line = [sys.executable, "-m", "pytest", "tests", "-q", "-rfE", "-p", "another_system", "-p", "no:cacheprovider"]
    # Its configuration asks for plugins that only measure, its benchmarks for one that is not installed here.
    line += ["-o", "addopts=", "--timeout=120", "--ignore=tests/test_benchmarks.py"]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    path = os.pathsep.join([str(orb.program.parent), path])
    done = subprocess.run(
        line,
        cwd=suite, env={**os.environ, "PATH": path, "PYTHONPATH": str(tmp_path)}, capture_output=True, text=True,
        stdin=subprocess.DEVNULL, timeout=PATIENCE, check=False,
    )  # fmt: skip
    failed = set(re.findall(r"^(?:FAILED|ERROR) \S+::(\w+)", done.stdout, re.MULTILINE))
    counted = re.search(r"(\d+) passed", done.stdout)
    assert counted, done.stdout[-3000:] + done.stderr[-3000:]
    assert failed <= missing | WRONG, done.stdout[-6000:]
    assert int(counted[1]) >= 318, done.stdout[-3000:]
    print(f"{counted[0]}, {len(failed)} failed as named")
    # Which the one that should have been refused does not delete.
    assert set(orb.states()) <= {"test-invalid-user"}
