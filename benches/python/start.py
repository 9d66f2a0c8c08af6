"""`start.py TEST ROUNDS`: what a pytest of one file costs with the plugin and without, round by round, as JSON.

A whole pytest takes a quarter of a second, and varies by more than the plugin is to take. Here an interpreter that has
pytest imported, and nothing of Testyard's, is forked for each run: what is left is pytest's own setting up, and the
plugin's. Runs take turns; each is told in seconds of processors, which a busy host disturbs least.
"""

from __future__ import annotations

import json
import os
import sys

import pytest


def main(test: str, rounds: int) -> None:
    """Writes two lists."""
    base = ["-q", "-p", "no:cacheprovider", test]
    ways = {"with": ["-p", "testyard.plugin", *base], "without": ["-p", "no:testyard.plugin", *base]}
    taken: dict[str, list[float]] = {way: [] for way in ways}
    for index in range(rounds + 1):
        for way in sorted(ways, reverse=index % 2 == 0):
            seconds = forked(ways[way])
            # The first round brings files into memory.
            if index > 0:
                taken[way].append(seconds)
    assert not [name for name in sys.modules if name.startswith("testyard")]
    sys.stdout.write(json.dumps(taken))


def forked(arguments: list[str]) -> float:
    """One run, which must pass."""
    child = os.fork()
    if child == 0:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        code = int(pytest.main(arguments))
        sys.stdout.flush()
        os._exit(code)
    _, status, used = os.wait4(child, 0)
    if status != 0:
        sys.exit(f"pytest {' '.join(arguments)}: exit code {os.waitstatus_to_exitcode(status)}")
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    main(sys.argv[1], int(sys.argv[2]))
