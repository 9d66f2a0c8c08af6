"""What an isolated environment for each test costs, as pytest users pay it."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

from measure import Goal, Report, Row, by_turns, medians, ms, must_work, process
from peers import podman_run

OVER_TMP_PATH = Goal("`isolated_env` per test, more than the same test with `tmp_path`", 2.0, "ms")
UNDER_PODMAN = Goal(
    "`isolated_env`, more than `tmp_path`: how many times less than `podman run`", 50.0, "×", at_least=True
)
# The cost of one test is the slope between a small suite and a large one: the session's own cost falls out.
FEW, MANY, MANY_CONTAINERS = 10, 210, 20

HEAD = "import subprocess\nimport pytest\n"
TESTS = {
    "isolated_env": "def test_{n}(isolated_env):\n    isolated_env.run(['/bin/true'])\n",
    "tmp_path": "def test_{n}(tmp_path):\n    subprocess.run(['/bin/true'], check=True, cwd=tmp_path)\n",
    "podman": "def test_{n}(tmp_path):\n    subprocess.run({command!r}, check=True, capture_output=True)\n",
}


def measure(report: Report, folder: Path, rounds: int) -> None:
    """All of its rows."""
    report.attempt(lambda: slopes(report, folder, max(2, rounds // 4)), OVER_TMP_PATH, UNDER_PODMAN)


def slopes(report: Report, folder: Path, rounds: int) -> None:
    """Suites of the same test, with each way of being apart."""
    contenders = {}
    for name in ("isolated_env", "tmp_path"):
        for count in (FEW, MANY):
            command = pytest(suite(folder, name, count))
            must_work(command)
            contenders[f"{name} {count}"] = partial(process, command)
    found = medians(by_turns(rounds, contenders))
    each = {
        name: (found[f"{name} {MANY}"] - found[f"{name} {FEW}"]) / (MANY - FEW) for name in ("isolated_env", "tmp_path")
    }
    more = (each["isolated_env"] - each["tmp_path"]) * 1000
    report.add(Row(OVER_TMP_PATH, more, f"{ms(each['isolated_env'])} / {ms(each['tmp_path'])} a test, both run `true`"))
    container = podman_run(folder)
    peers = {
        str(count): partial(process, pytest(suite(folder, "podman", count, container)))
        for count in (FEW // 5, MANY_CONTAINERS)
    }
    few, many = medians(by_turns(2, peers)).values()
    podman = (many - few) / (MANY_CONTAINERS - FEW // 5)
    ratio = (podman - each["tmp_path"]) * 1000 / more
    whole = f"whole tests {ms(podman)} / {ms(each['isolated_env'])}: {podman / each['isolated_env']:.1f}×"
    report.add(Row(UNDER_PODMAN, ratio, f"{ms(podman - each['tmp_path'])} / {ms(more / 1000)} more a test; {whole}"))


def suite(folder: Path, name: str, count: int, command: object = None) -> Path:
    """A file of so many equal tests."""
    path = folder / f"test_{name}_{count}.py"
    path.write_text(HEAD + "".join(TESTS[name].format(n=n, command=command) for n in range(count)))
    return path


def pytest(path: Path) -> list[str]:
    """One process, nothing kept."""
    return [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(path)]
