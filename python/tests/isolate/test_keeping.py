"""Environments of failed tests, kept on request."""

from __future__ import annotations

import re

import pytest

from support.home import settled

from .conftest import Suite

FAILS = """
    import os, signal, time
    import pytest

    def leave():
        for path in ("/tmp/mark", "mark"):
            with open(path, "w") as file:
                file.write(os.environ["PYTEST_CURRENT_TEST"])

    @pytest.fixture
    def broken():
        leave()
        raise ValueError("cannot be set up")

    @pytest.fixture
    def fragile():
        yield
        raise ValueError("cannot be torn down")

    def test_fails(): leave(); assert False
    def test_errs(broken): pass
    def test_crashes(): leave(); os._exit(3)
    def test_passes(): leave()
    def test_ends_badly(fragile): pass
"""
HANGS = """
    import os, signal, time
    import pytest

    @pytest.mark.timeout(3)
    def test_hangs():
        open("/tmp/mark", "w").write("test_hangs")
        signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))
        time.sleep(600)
"""
KEPT = re.compile(
    r"- testyard (\S+/e\d+) -+\nkept for 3600 s; look at it: TESTYARD_HOME=\S+ testyard env enter (\S+)\n"
)


def kept(suite: Suite, told: str) -> list[str]:
    """What is kept, as the run told it and as the command line lists it; both agree."""
    found = KEPT.findall(told)
    assert all(one == other for one, other in found), told
    names = [name for name, _ in found]
    listed = suite.home.testyard("env", "list").stdout
    assert sorted(line.split()[0] for line in listed.splitlines()) == sorted(names), listed + told
    assert suite.home.machines() == [names[0].split("/")[0]], "the machine is kept with them"
    return names


def end(suite: Suite) -> None:
    """Ends what is kept; the machine goes with the last of it."""
    suite.home.testyard("env", "delete", "--all")
    assert settled(suite.home.machines) == []


@pytest.mark.parametrize("how", [("--testyard-isolate",), ("--testyard-isolate=3",), ("--testyard-isolate", "-n2")])
def test_the_environment_of_a_failed_test_is_kept_on_request(suite: Suite, how: tuple[str, ...]) -> None:
    suite.write("test_fails.py", FAILS)
    told = suite.told(*how, "--testyard-keep-failed=1h", passed=2, failed=2, error=2)
    names = kept(suite, told)
    assert len(names) == 3, told
    marks = []
    for name in names:
        command = f"cat /tmp/mark; cd {suite.folder} && cat mark"
        one, other = suite.home.testyard("env", "enter", name, "--", "sh", "-c", command).stdout.split(")")[:2]
        assert one == other
        marks.append(re.sub(r".*::(\w+) \(.*", r"\1", one))
    assert sorted(marks) == ["test_crashes", "test_errs", "test_fails"]
    assert not (suite.folder / "mark").exists()
    end(suite)


def test_a_test_that_hangs_is_kept_and_told(anybodys_suite: Suite) -> None:
    pytest.importorskip("pytest_timeout", reason="pytest-timeout is not installed")
    suite = anybodys_suite
    suite.write("test_hangs.py", HANGS)
    told = suite.told("--testyard-keep-failed=1h", failed=1)
    (name,) = kept(suite, told)
    command = "cat /tmp/mark; cat /proc/[0-9]*/comm"
    inside = suite.home.testyard("env", "enter", name, "--", "sh", "-c", command).stdout
    assert inside.startswith("test_hangs") and "pytest" not in inside and "python" not in inside, inside
    end(suite)


def test_what_is_kept_is_at_most_what_a_machine_keeps(suite: Suite) -> None:
    suite.write(
        "test_many.py",
        """
        import pytest

        @pytest.mark.parametrize("number", range(66))
        def test_fails(number): assert False
        """,
    )
    told = suite.told("--testyard-isolate=2", "--testyard-keep-failed=1h", failed=66)
    assert len(kept(suite, told)) == 64 and told.count("\nnot kept: ") == 2, told
    end(suite)
