"""`--testyard-isolate` beside the other ways of keeping tests apart: on empty tests, and on a real suite."""

from __future__ import annotations

import os
import sys
from functools import partial
from pathlib import Path

from fixtures import FEW, MANY
from measure import Goal, NotHere, Report, Row, by_turns, medians, ms, must_work, process

OVERHEAD = Goal("`--testyard-isolate`, more than in-process", 3.0, "ms")
AGAINST_FORKED = Goal("slurm-sdk's 517 unit tests, isolated: against pytest-forked", 1.0, "×")
AGAINST_XDIST = Goal("the same with two workers: against pytest-xdist with two workers", 1.1, "×")
WAYS = {"in-process": [], "isolated": ["--testyard-isolate"], "forked": ["--forked"]}


def measure(report: Report, folder: Path, rounds: int) -> None:
    """Its short row."""
    report.attempt(lambda: overhead(report, folder, max(2, rounds // 4)), OVERHEAD)


def measure_real(report: Report, environments: Path, project: Path, rounds: int) -> None:
    """Its long rows: minutes each."""
    report.attempt(lambda: real_suite(report, environments, project, rounds), AGAINST_FORKED, AGAINST_XDIST)


def overhead(report: Report, folder: Path, rounds: int) -> None:
    """The slope between a small and a large suite of empty tests, for each way."""
    contenders = {}
    ways = dict(WAYS)
    for way, options in WAYS.items():
        for count in (FEW, MANY):
            path = folder / f"test_empty_{count}.py"
            path.write_text("".join(f"def test_{n}():\n    pass\n" for n in range(count)))
            command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(path), *options]
            try:
                must_work(command)
            except NotHere:
                # pytest-forked knows no pytest from 9 on.
                if way != "forked":
                    raise
                ways.pop(way, None)
                continue
            contenders[f"{way} {count}"] = partial(process, command)
    found = medians(by_turns(rounds, contenders))
    each = {way: (found[f"{way} {MANY}"] - found[f"{way} {FEW}"]) / (MANY - FEW) for way in ways}
    behind = ", ".join(f"{way} {ms(seconds)}" for way, seconds in each.items())
    report.add(Row(OVERHEAD, (each["isolated"] - each["in-process"]) * 1000, f"a test: {behind}"))


def real_suite(report: Report, environments: Path, project: Path, rounds: int) -> None:
    """slurm-sdk's unit tests, whole runs by turns."""
    python = environments / "slurm-sdk" / "bin" / "python"
    if not python.exists():
        raise NotHere("the virtual environment `slurm-sdk` could not be made")
    base = [str(python), "-m", "pytest", "-c", "testyard.ini", "-o", "addopts=-q -p no:cacheprovider", "tests/unit"]
    ways = {
        "isolated": ["--testyard-isolate"],
        "forked": ["--forked"],
        "isolated, two workers": ["--testyard-isolate", "-n", "2"],
        "xdist, two workers": ["-n", "2"],
    }

    def one(options: list[str]) -> float:
        before = Path.cwd()
        os.chdir(project)
        try:
            return process([*base, *options])
        finally:
            os.chdir(before)

    found = medians(by_turns(rounds, {way: partial(one, options) for way, options in ways.items()}))
    for names, pair in (
        (AGAINST_FORKED, ("isolated", "forked")),
        (AGAINST_XDIST, ("isolated, two workers", "xdist, two workers")),
    ):
        figure = found[pair[0]] / found[pair[1]]
        report.add(Row(names, figure, f"{ms(found[pair[0]])} / {ms(found[pair[1]])}, {rounds} runs each"))
