"""What the marker asks for, beside the fixtures that it is made for."""

from __future__ import annotations

import pytest

import support

from .conftest import Suite

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

        @pytest.mark.testyard(needs="git")
        def test_there(): assert os.getpid() != HERE

        @pytest.mark.testyard(needs=["git", "kvm"])
        def test_not_there(): pass

        @pytest.mark.testyard(needs="kvm")
        def test_not_there_either(): pass

        @pytest.mark.testyard(needs="kmv")
        def test_wrong(): pass
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
