"""`cargo xtask bench python`: the table of the Python package in docs/performance.md.

Everything runs in a `TESTYARD_HOME` of its own, which is gone afterwards. A figure whose feature or peer is missing is
in the table, with the reason.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

import client
import fixtures
import isolation
import programs
from measure import Report

PARTS = ("client", "fixtures", "isolation", "programs", "real")
ROUNDS, QUICK_ROUNDS = 20, 4
# Whole runs of a real suite, minutes each.
REAL_ROUNDS = 3


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="cargo xtask bench python", description="what the Python package costs")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--quick", action="store_true", help="fewer rounds, and nothing that takes minutes")
    parser.add_argument("--only", choices=PARTS, action="append", help="one part")
    parser.add_argument("--environments", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--project", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    wanted = chosen.only or [part for part in PARTS if part != "real" or not chosen.quick]
    rounds = QUICK_ROUNDS if chosen.quick else ROUNDS
    report = Report(lambda line: print(line, file=sys.stderr, flush=True))
    # A short path: sockets inside must fit into 108 bytes.
    folder = Path(tempfile.mkdtemp(prefix="ty-bench-", dir="/tmp"))
    os.environ.update(TESTYARD_HOME=str(folder / "state"))
    os.environ.pop("XDG_RUNTIME_DIR", None)
    try:
        for name, part in (
            ("client", client),
            ("fixtures", fixtures),
            ("isolation", isolation),
            ("programs", programs),
        ):
            if name in wanted:
                part.measure(report, folder, rounds)
        if "real" in wanted:
            real = QUICK_ROUNDS // 4 if chosen.quick else REAL_ROUNDS
            isolation.measure_real(report, chosen.environments, chosen.project, folder, real)
    finally:
        left = remove(folder)
    print(report.as_json() if chosen.json else report.table())
    return 1 if left else 0


def remove(folder: Path) -> bool:
    """Deletes the machines that are left, and the folder where nothing holds it. Whether something is left."""
    testyard = Path(sysconfig.get_path("scripts"), "testyard")
    listed = subprocess.run([testyard, "list", "--names"], capture_output=True, text=True, check=False)
    for name in listed.stdout.split():
        subprocess.run([testyard, "delete", name, "--force"], check=False)
    if subprocess.run([testyard, "reap"], capture_output=True, check=False).returncode != 0:
        print(f"error: something is left below {folder}; testyard reap", file=sys.stderr)
        return True
    shutil.rmtree(folder)
    return False


if __name__ == "__main__":
    sys.exit(main())
