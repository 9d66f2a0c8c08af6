"""What the client costs: commands one after another, and the imports."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from measure import Goal, Report, Row, by_turns, median_difference, medians, ms, must_work, process, timed

COMMANDS = Goal("100 commands, one after another, from Python", 0.25, "s")
IMPORT = Goal("import of `testyard`", 15.0, "ms")
PLUGIN = Goal("start of the plugin when no test uses it", 15.0, "ms")
# Some of its pairs meet something else that happens on the host.
PLUGIN_ROUNDS = 40


def measure(report: Report, folder: Path, rounds: int) -> None:
    """All of its rows."""
    report.attempt(lambda: commands(report, rounds), COMMANDS)
    report.attempt(lambda: import_time(report, rounds), IMPORT)
    report.attempt(lambda: plugin_start(report, folder, rounds), PLUGIN)


def commands(report: Report, rounds: int) -> None:
    """In a warm machine, beside bare processes that the standard library starts."""
    import testyard

    def bare() -> None:
        for _ in range(100):
            subprocess.run(["/bin/true"], check=True)

    with testyard.Machine.create() as machine:

        def inside() -> None:
            for _ in range(100):
                machine.run(["/bin/true"])

        found = medians(by_turns(max(2, rounds // 4), {"inside": lambda: timed(inside), "bare": lambda: timed(bare)}))
    behind = f"{found['inside'] / found['bare']:.2f}× of `subprocess.run`, {ms(found['bare'])}"
    report.add(Row(COMMANDS, found["inside"], behind))


def import_time(report: Report, rounds: int) -> None:
    """A whole interpreter with the import, against one without."""
    without = [sys.executable, "-c", "pass"]
    taken = by_turns(2 * rounds, {"with": lambda: process([sys.executable, "-c", "import testyard"]),
                                  "without": lambda: process(without)})  # fmt: skip
    found = medians(taken)
    more = median_difference(taken["with"], taken["without"]) * 1000
    report.add(Row(IMPORT, more, f"{ms(found['with'])} / {ms(found['without'])}"))


def plugin_start(report: Report, folder: Path, rounds: int) -> None:
    """A pytest of one empty test with this plugin, against one without: see `start.py`."""
    test = folder / "test_nothing.py"
    test.write_text("def test_nothing():\n    pass\n")
    program = str(Path(__file__).with_name("start.py"))
    taken = json.loads(must_work([sys.executable, program, str(test), str(max(PLUGIN_ROUNDS, 2 * rounds))]))
    found = medians(taken)
    more = median_difference(taken["with"], taken["without"]) * 1000
    report.add(Row(PLUGIN, more, f"{ms(found['with'])} / {ms(found['without'])} of processors, pytest imported"))
