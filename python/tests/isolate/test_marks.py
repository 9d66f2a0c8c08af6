"""What the marker asks for, beside the fixtures that it is made for."""

from __future__ import annotations

import re

import pytest

import support

from .conftest import Suite, outcomes

#: Answers `testyard doctor` as this host, or as another where it is asked inside a test's environment.
PROBES = """#!/bin/sh
[ "$1" = doctor ] || exec {program} "$@"
echo called >> "$0.calls"
kvm=no
[ -z "$TESTYARD_ENVIRONMENT" ] || kvm=yes
echo '{{"version": 1, "probes": [
 {{"name": "a", "ability": "kvm", "answer": "'$kvm'", "reason": "nothing ran", "provide": "modprobe kvm"}},
 {{"name": "b", "ability": "git", "answer": "yes", "reason": "it starts"}}]}}'
"""


@pytest.mark.parametrize("how", ["--testyard-isolate", "--testyard-isolate=2"])
def test_what_a_test_needs_is_asked_of_the_host_and_once(suite: Suite, how: str) -> None:
    suite.write(
        "test_needs.py",
        """
        import os
        import pytest
        HERE = os.getpid()

        @pytest.fixture(scope="session")
        def dear(): pytest.exit("set up in vain")

        @pytest.mark.testyard(needs="git")
        def test_there(): assert os.getpid() != HERE

        @pytest.mark.testyard(needs=["git", "kvm"])
        def test_not_there(dear): pass

        @pytest.mark.testyard(needs="kvm")
        def test_not_there_either(): pass

        @pytest.mark.testyard(needs="kmv")
        def test_wrong(dear): pass
        """,
    )
    program = suite.write("program", PROBES.format(program=support.testyard_program()))
    program.chmod(0o755)
    told = suite.told(how, variables={"TESTYARD_BINARY": str(program)}, passed=1, skipped=2, error=1)
    assert "needs kvm: nothing ran; what would provide it: modprobe kvm" in told
    assert "'kmv' is no ability; did you mean 'kvm'?" in told
    assert (suite.folder / "program.calls").read_text().split() == ["called"]


def test_an_answer_that_cannot_be_had_is_asked_for_once(suite: Suite) -> None:
    suite.write(
        "test_needs.py",
        """
        import pytest

        @pytest.mark.testyard(needs="git")
        @pytest.mark.parametrize("number", range(3))
        def test_needs(number): pass

        def test_other(): pass
        """,
    )
    answer = (
        'echo called >> "$0.calls"; [ -z "$TESTYARD_ENVIRONMENT" ] && exit 3; echo \'{"version": 1, "probes": []}\''
    )
    program = suite.write(
        "program", f'#!/bin/sh\n[ "$1" = doctor ] || exec {support.testyard_program()} "$@"\n{answer}\n'
    )
    program.chmod(0o755)
    told = suite.told(variables={"TESTYARD_BINARY": str(program)}, passed=1, error=3)
    assert told.count("\nwhat this host can do is not known\n") == 3, told
    assert (suite.folder / "program.calls").read_text().split() == ["called"]


@pytest.mark.parametrize("how", ["--testyard-isolate", "--testyard-isolate=2"])
def test_what_only_skipped_tests_use_is_not_set_up(suite: Suite, how: str) -> None:
    suite.write(
        "test_skipped.py",
        """
        import pytest

        @pytest.fixture(scope="session")
        def dear(): pytest.exit("set up in vain")

        @pytest.fixture(scope="module")
        def cheap(): return [1]

        def test_before(cheap): assert cheap.pop() == 1

        @pytest.mark.skip(reason="not now")
        def test_skipped(cheap, dear): pass

        @pytest.mark.skipif("True", reason="not here")
        def test_skipped_here(dear): pass

        @pytest.mark.xfail(run=False)
        def test_never_run(dear): pass

        @pytest.mark.testyard(neds="git")
        def test_mistake(dear): pass

        @pytest.mark.testyard(isolation="machine")
        def test_machine(dear): pass

        def test_after(cheap): assert cheap.pop() == 1
        """,
    )
    told = suite.told(how, passed=2, skipped=3, xfailed=1, error=1)
    assert "does not know 'neds'" in told


def test_marks_that_an_isolated_test_cannot_follow_are_told(suite: Suite) -> None:
    suite.write(
        "test_marks.py",
        """
        import os
        import pytest
        HERE = os.getpid()
        mark = pytest.mark.testyard

        @mark(isolation="machine")
        def test_machine(): pass

        @mark(image="debian:12")
        def test_image(): assert os.getpid() == HERE

        @mark(backend="host")
        def test_backend(): assert os.getpid() == HERE

        @mark(user=65_000)
        def test_user(): assert os.getpid() == HERE

        @mark(user="no-such-user")
        def test_nobody(): assert os.getpid() == HERE

        @mark(source="/usr/share")
        def test_source(): assert os.getpid() == HERE

        @mark(isolation="workspace", image="host", backend="namespace", user=os.getuid(), source=True)
        def test_less(): assert os.getpid() != HERE

        @mark(source=os.path.dirname(__file__))
        def test_own_source(): assert os.getpid() != HERE
        """,
    )
    told = suite.told(passed=7, skipped=1)
    assert "isolation `machine` is more than a test of --testyard-isolate has" in told
    for name, asked in (
        ("image", "image 'debian:12'"),
        ("backend", "backend 'host'"),
        ("user", "user 65000"),
        ("nobody", "user 'no-such-user'"),
        ("source", "source '/usr/share'"),
    ):
        line = f"test_marks.py::test_{name} runs in this process, not isolated: its mark asks for {asked}, which"
        assert line in told, (line, told)
    suite.told("--testyard-no-skip", passed=7, error=1)


def test_what_this_host_cannot_give_is_a_skip_as_with_the_fixtures(anybodys_suite: Suite) -> None:
    anybodys_suite.write(
        "test_given.py",
        """
        import pytest

        limited = pytest.mark.testyard(limits={"memory": "256M", "pids": 100})
        outbound = pytest.mark.testyard(network="outbound")

        @limited
        def test_limited(): pass

        @limited
        def test_limited_there(isolated_env): pass

        @outbound
        def test_outbound(): pass

        @outbound
        def test_outbound_there(isolated_env): pass

        def test_other(): pass
        """,
    )
    done = anybodys_suite.run()
    passed = set(re.findall(r"^PASSED test_given.py::test_(\w+)", done.stdout, re.MULTILINE))
    reasons = re.findall(r"^SKIPPED \[\d\] test_given.py:\d+: (.*)", done.stdout, re.MULTILINE)
    for name in ("limited", "outbound"):
        assert (name in passed) == (name + "_there" in passed), done.stdout + done.stderr
    assert "other" in passed and set(outcomes(done)) <= {"passed", "skipped"}, done.stdout + done.stderr
    assert bool(reasons) == (len(passed) < 5), done.stdout
