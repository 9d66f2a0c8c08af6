"""`orbctl`, asked hundreds of times, beside a bare process; and the concurrent runner."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sysconfig
from functools import partial
from pathlib import Path
from typing import Any

from measure import Goal, NotHere, Report, Row, by_turns, medians, ms, must_work, process, timed

STATUS = Goal("`orbctl status`, against a bare process", 4.0, "×")
LIST = Goal("`orbctl list`, against a bare process", 4.0, "×")
INFO = Goal("`orbctl info`, against a bare process", 4.0, "×")
RUN = Goal("`orbctl run … true`, against a bare process", 6.0, "×")
CREATE = Goal("`orbctl create`, image there", 60.0, "ms")
RUNNER = Goal("100 isolated tests through `ConcurrentTestRunner`", 0.5, "s")
BARE = ["/bin/true"]
MACHINE, IMAGE = "bench", "debian:12"


def measure(report: Report, folder: Path, rounds: int) -> None:
    """All of its rows."""
    report.attempt(lambda: orbctl(report, folder, rounds), STATUS, LIST, INFO, RUN, CREATE)
    report.attempt(lambda: runner(report, rounds), RUNNER)


def orbctl(report: Report, folder: Path, rounds: int) -> None:
    """Whole processes of the program under its other name."""
    testyard = Path(sysconfig.get_path("scripts"), "testyard")
    program = folder / "orbctl"
    program.unlink(missing_ok=True)
    program.symlink_to(testyard)
    name = str(program)
    must_work([name, "status"])
    image = os.environ.get("TESTYARD_BENCH_IMAGE", IMAGE)
    must_work([str(testyard), "image", "build", image], timeout=900)
    must_work([name, "create", image, MACHINE])
    try:
        asked = {
            STATUS: [name, "status"],
            LIST: [name, "list", "-f", "json"],
            INFO: [name, "info", MACHINE, "-f", "json"],
            RUN: [name, "run", "-m", MACHINE, "true"],
        }
        for row, command in asked.items():
            contenders = {"asked": partial(process, command), "bare": partial(process, BARE)}
            found = medians(by_turns(2 * rounds, contenders))
            behind = f"{ms(found['asked'])} / {ms(found['bare'])}"
            report.add(Row(row, found["asked"] / found["bare"], behind))
        report.add(Row(CREATE, created(name, image, rounds) * 1000, f"{image}, until a command can run in it"))
    finally:
        must_work([name, "delete", MACHINE, "--force"])


def created(program: str, image: str, rounds: int) -> float:
    """The median of creating one, each deleted at once."""

    def one() -> float:
        taken = process([program, "create", image, f"{MACHINE}-new"])
        must_work([program, "delete", f"{MACHINE}-new", "--force"])
        return taken

    return medians(by_turns(rounds, {"create": one}))["create"]


def runner(report: Report, rounds: int) -> None:
    """With its machine warm, as its users have it."""
    dev: Any = importlib.import_module("testyard.dev")
    flow = dev.Flow()
    flow.dev.ensure_started()
    try:
        tests = [(f"test-{number}", "true") for number in range(100)]
        concurrent = dev.ConcurrentTestRunner(flow, max_workers=10)

        def one() -> None:
            summary = concurrent.run_tests_concurrently(tests)
            passed = summary["passed"] if isinstance(summary, dict) else summary.passed
            if passed != len(tests):
                raise NotHere(f"only {passed} of {len(tests)} passed")

        taken = by_turns(max(2, rounds // 4), {"runner": lambda: timed(one)})
        report.add(Row(RUNNER, medians(taken)["runner"], "each `true` in an environment of its own, ten at once"))
    finally:
        flow.dev.stop()
