"""Rounds by turns, medians, and rows of a table: contenders take turns, so what else the host does hits all of them."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import time
from dataclasses import asdict, dataclass
from typing import Callable, Mapping, Optional, Sequence


class NotHere(Exception):
    """Something that a figure needs is missing: a feature, a peer, an ability of this host. The text says which."""


@dataclass(frozen=True)
class Goal:
    """What is measured, and what it should be. `unit` is `×` for ratios, else `ms` or `s`."""

    name: str
    limit: float
    unit: str
    at_least: bool = False

    def shown(self, value: float) -> str:
        """A value in its unit."""
        return f"{value:.2f}×" if self.unit == "×" else f"{value:.2f} {self.unit}"


@dataclass(frozen=True)
class Row:
    """What came of it; no value where it could not be measured, and then what lies behind is the reason."""

    goal: Goal
    value: Optional[float]
    behind: str

    @property
    def verdict(self) -> str:
        """Whether the goal was met."""
        if self.value is None:
            return "SKIPPED"
        goal = self.goal
        met = self.value >= goal.limit if goal.at_least else self.value <= goal.limit
        return "met" if met else "MISSED"

    def line(self) -> str:
        """As a line of the table."""
        goal = self.goal
        value = "—" if self.value is None else goal.shown(self.value)
        limit = f"{'≥' if goal.at_least else '≤'} {goal.shown(goal.limit)}"
        return f"| {goal.name} | {limit} | {value} | {self.verdict} | {self.behind} |"


class Report:
    """The rows of a run, told as they come."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self.rows: list[Row] = []
        self._tell = tell

    def add(self, row: Row) -> None:
        """One more."""
        self.rows.append(row)
        self._tell(row.line())

    def attempt(self, measure: Callable[[], None], *goals: Goal) -> None:
        """Measures some rows. Where that cannot be done, those that are missing are in the table with the reason."""
        try:
            measure()
        except NotHere as error:
            measured = {row.goal for row in self.rows}
            for goal in goals:
                if goal not in measured:
                    self.add(Row(goal, None, " ".join(str(error).split())[:160]))

    def table(self) -> str:
        """All of them, in Markdown."""
        head = ["| figure | goal | measured | | behind it |", "|---|---|---|---|---|"]
        return "\n".join([*head, *(row.line() for row in self.rows)])

    def as_json(self) -> str:
        """The same for programs."""
        rows = [{**asdict(row), "verdict": row.verdict} for row in self.rows]
        return json.dumps(
            {"format": 1, "kernel": os.uname().release, "processors": os.cpu_count(), "rows": rows}, indent=2
        )


def by_turns(rounds: int, contenders: Mapping[str, Callable[[], float]]) -> dict[str, list[float]]:
    """What each measured in each round, in seconds; the first round only warms caches up.

    Each second round goes backwards: whoever comes after a heavy neighbour does so only half of the time."""
    taken: dict[str, list[float]] = {name: [] for name in contenders}
    for index in range(rounds + 1):
        turns = list(contenders.items())
        for name, contender in turns if index % 2 else reversed(turns):
            seconds = contender()
            if index > 0:
                taken[name].append(seconds)
    return taken


def medians(taken: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """The median of each."""
    return {name: statistics.median(values) for name, values in taken.items()}


def median_difference(one: Sequence[float], other: Sequence[float]) -> float:
    """By how much the first of two that took turns is above the second, in the median round."""
    return statistics.median(a - b for a, b in zip(one, other))


def timed(action: Callable[[], object]) -> float:
    """The seconds that it takes."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def process(command: Sequence[str], environment: Optional[Mapping[str, str]] = None) -> float:
    """The seconds of a whole process, without what Python's own way of starting one costs. It must exit with 0."""
    null = [(os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0), (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)]
    variables = dict(os.environ if environment is None else environment)
    start = time.perf_counter()
    pid = os.posix_spawnp(command[0], list(command), variables, file_actions=null)
    _, status = os.waitpid(pid, 0)
    taken = time.perf_counter() - start
    if status != 0:
        raise NotHere(f"`{' '.join(command)}` exited with {os.waitstatus_to_exitcode(status)}")
    return taken


def must_work(command: Sequence[str], *, timeout: float = 600, cwd: Optional[str] = None) -> str:
    """Runs it to its end, in at most `timeout` seconds; what it printed. Raises `NotHere` with what it said."""
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout, cwd=cwd
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NotHere(str(error)) from None
    if done.returncode != 0:
        raise NotHere(f"`{' '.join(command[:6])}`: {(done.stderr or done.stdout).strip()[-300:]}")
    return done.stdout


def ms(seconds: float) -> str:
    """Seconds as people read them."""
    return f"{seconds * 1000:.2f} ms" if seconds < 1 else f"{seconds:.2f} s"
