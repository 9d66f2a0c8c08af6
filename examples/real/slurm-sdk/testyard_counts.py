"""A pytest plugin that counts what became of the tests of each file.

With TESTYARD_COUNTS_WRITE=FILE the counts are written there. Otherwise, where testyard_counts.json is
present, this run fails unless its counts are the same for each of its files: so a run of one file a
process, each in its own environment, proves that it did what one plain run of pytest did.
"""

import json
import os
import pathlib

COUNTS = pathlib.Path("testyard_counts.json")
outcomes = {}


def pytest_runtest_logreport(report):
    # A test has three phases; the first that did not pass decides.
    before = outcomes.get(report.nodeid, "passed")
    outcomes[report.nodeid] = before if before != "passed" else report.outcome


def counted():
    files = {}
    for nodeid, outcome in outcomes.items():
        counts = files.setdefault(nodeid.split("::")[0], {"passed": 0, "failed": 0, "skipped": 0})
        counts[outcome] += 1
    return files


def pytest_sessionfinish(session):
    files = counted()
    target = os.environ.get("TESTYARD_COUNTS_WRITE")
    if target:
        pathlib.Path(target).write_text(json.dumps(files, indent=1, sort_keys=True) + "\n")
    elif COUNTS.exists():
        expected = json.loads(COUNTS.read_text())
        for file, counts in files.items():
            if counts != expected.get(file):
                print(f"\n{file}: plain pytest counted {expected.get(file)}, this run {counts}")
                session.exitstatus = 1
