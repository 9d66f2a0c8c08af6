"""`--testyard-isolate` beside the other ways of keeping tests apart: on empty tests, and on a real suite."""

from __future__ import annotations

import os
import sys
from functools import partial
from pathlib import Path
from typing import Mapping

from fixtures import FEW, MANY
from measure import Goal, NotHere, Report, Row, by_turns, medians, ms, must_work, process

OVERHEAD = Goal("`--testyard-isolate`, more than in-process", 3.0, "ms")
EMPTY_FORKED = Goal("`--testyard-isolate` on empty tests: against pytest-forked", 1.0, "×")
AGAINST_FORKED = Goal("slurm-sdk's 517 unit tests, isolated: against pytest-forked", 1.0, "×")
AGAINST_XDIST = Goal("the same with two workers: against pytest-xdist with two workers", 1.0, "×")
AS_WORKERS = Goal("the same in two workers of pytest-xdist: against the same without isolation", 1.1, "×")


def measure(report: Report, folder: Path, rounds: int) -> None:
    """Its short row."""
    report.attempt(lambda: overhead(report, folder, max(2, rounds // 4)), OVERHEAD)


def measure_real(report: Report, environments: Path, project: Path, folder: Path, rounds: int) -> None:
    """Its long rows, minutes each, and pytest-forked's: it needs pytest 8, which is in the real suite's environment."""
    python = environments / "slurm-sdk" / "bin" / "python"
    if not python.exists():
        report.attempt(partial(missing, "slurm-sdk"), EMPTY_FORKED, AGAINST_FORKED, AGAINST_XDIST, AS_WORKERS)
        return
    report.attempt(lambda: empty_forked(report, python, folder, max(2, rounds)), EMPTY_FORKED)
    report.attempt(lambda: real_suite(report, python, project, rounds), AGAINST_FORKED, AGAINST_XDIST, AS_WORKERS)


def missing(name: str) -> None:
    """Says so."""
    raise NotHere(f"the virtual environment `{name}` could not be made")


def overhead(report: Report, folder: Path, rounds: int) -> None:
    """In-process and isolated."""
    each = slopes(Path(sys.executable), folder, rounds, {"in-process": [], "isolated": ["--testyard-isolate"]})
    behind = ", ".join(f"{way} {ms(seconds)}" for way, seconds in each.items())
    report.add(Row(OVERHEAD, (each["isolated"] - each["in-process"]) * 1000, f"a test: {behind}"))


def empty_forked(report: Report, python: Path, folder: Path, rounds: int) -> None:
    """Isolated and forked."""
    each = slopes(python, folder, rounds, {"isolated": ["--testyard-isolate"], "forked": ["--forked"]})
    report.add(
        Row(EMPTY_FORKED, each["isolated"] / each["forked"], f"{ms(each['isolated'])} / {ms(each['forked'])} a test")
    )


def slopes(python: Path, folder: Path, rounds: int, ways: Mapping[str, list[str]]) -> dict[str, float]:
    """The seconds of one empty test more, for each way: the slope between a small and a large suite of them."""
    contenders = {}
    for way, options in ways.items():
        for count in (FEW, MANY):
            path = folder / f"test_empty_{count}.py"
            path.write_text("".join(f"def test_{n}():\n    pass\n" for n in range(count)))
            command = [str(python), "-m", "pytest", "-q", "-p", "no:cacheprovider", str(path), *options]
            must_work(command)
            contenders[f"{way} {count}"] = partial(process, command)
    found = medians(by_turns(rounds, contenders))
    return {way: (found[f"{way} {MANY}"] - found[f"{way} {FEW}"]) / (MANY - FEW) for way in ways}


def real_suite(report: Report, python: Path, project: Path, rounds: int) -> None:
    """slurm-sdk's unit tests, whole runs by turns, each once before that to fill what is cached."""
    base = [str(python), "-m", "pytest", "-c", "testyard.ini", "-o", "addopts=-q -p no:cacheprovider", "tests"]
    # Some of its tests build wheels, for which pip fetches the build tools.
    isolated = ["--testyard-isolate", "--testyard-isolate-network=host"]
    ways = {
        "isolated": isolated,
        "forked": ["--forked"],
        "two isolated": ["--testyard-isolate=2", *isolated[1:]],
        "two workers, isolated": [*isolated, "-n", "2"],
        "two workers": ["-n", "2"],
    }
    # Its tests start `python`.
    environment = {**os.environ, "PATH": f"{python.parent}:{os.environ['PATH']}"}

    def one(options: list[str]) -> float:
        before = Path.cwd()
        os.chdir(project)
        try:
            return process([*base, *options], environment)
        finally:
            os.chdir(before)

    found = medians(by_turns(rounds, {way: partial(one, options) for way, options in ways.items()}))
    for goal, pair in (
        (AGAINST_FORKED, ("isolated", "forked")),
        (AGAINST_XDIST, ("two isolated", "two workers")),
        (AS_WORKERS, ("two workers, isolated", "two workers")),
    ):
        figure = found[pair[0]] / found[pair[1]]
        report.add(Row(goal, figure, f"{ms(found[pair[0]])} / {ms(found[pair[1]])}, {rounds} runs each"))
