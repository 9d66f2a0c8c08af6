"""Ports of tests that run side by side, and of those that come after."""

from __future__ import annotations

from .conftest import Project, lines_of

# All begin their search in the same few ports.
FEW = """
import pytest
from testyard import ports as searched

@pytest.fixture(autouse=True)
def few(monkeypatch):
    monkeypatch.setattr(searched, "_candidates", lambda: list(range(20_000, 21_000)))
"""


def test_workers_that_hold_ports_at_once_share_none(project: Project) -> None:
    project.write("conftest.py", FEW)
    project.write(
        "test_it.py",
        """
        import os, time
        import pytest

        @pytest.mark.parametrize("number", range(4))
        def test_at_once(ports, isolated_env, number):
            mine = [*ports.take(150), *isolated_env.ports]
            with open("ports", "a") as out:
                out.write(" ".join(map(str, mine)) + "\\n")
            until = time.monotonic() + 120
            while len(open("ports").readlines()) < 4:
                assert time.monotonic() < until, "the others do not come"
                time.sleep(0.02)
        """,
    )
    project.passes("-n4", count=4)
    taken = [line.split() for line in lines_of(project.home.work / "ports")]
    assert [len(ports) for ports in taken] == [154] * 4
    every = [port for ports in taken for port in ports]
    assert len(set(every)) == len(every)


def test_a_tests_ports_are_free_when_it_has_ended(project: Project) -> None:
    project.write(
        "test_it.py",
        """
        import pytest
        import testyard

        had = {}

        def test_first(ports, isolated_env):
            had[isolated_env.test_id] = {*ports.take(3), *isolated_env.ports}
            assert len(had[isolated_env.test_id]) == 7
            # While it runs nobody is given them, whoever asks by its name.
            with testyard.Ports(isolated_env.test_id) as other:
                assert not set(other.take(7)) & had[isolated_env.test_id]

        def test_second():
            ((node, ports),) = had.items()
            with testyard.Ports(node) as again:
                assert set(again.take(7)) == ports
        """,
    )
    project.passes(count=2)
