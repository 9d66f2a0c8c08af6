"""Markers, options and keys: checked where they are used, and what a host lacks is named."""

from __future__ import annotations

import pytest

from testyard.plugin._settings import seconds

from .conftest import Project


def test_what_is_wrong_with_a_marker_is_told_at_its_test(project: Project) -> None:
    project.write(
        "test_it.py",
        """
        import pytest

        @pytest.mark.testyard(neds="kvm")
        def test_key(): pass

        @pytest.mark.testyard("kvm")
        def test_positional(): pass

        @pytest.mark.testyard(network="privat")
        def test_network(): pass

        @pytest.mark.testyard(isolation="container", limits={"memry": 1, "disk": "many"}, needs=3, user="", image=1)
        def test_many(): pass

        @pytest.mark.testyard(limits={"disk": "many"})
        def test_size(): pass

        @pytest.mark.testyard(needs="kmv")
        def test_ability(): pass

        def test_other(): pass
        """,
    )
    told = project.fails()
    for words in (
        "does not know 'neds'; did you mean 'needs'?",
        "takes names, not 'kvm'",
        "'privat' is none of private, outbound, host, none; did you mean 'private'?",
        "(isolation=…): 'container' is none of",
        "(limits=…): 'memry' is none of memory, pids, cpus, disk; did you mean 'memory'?",
        "(needs=…): a word or a list of words",
        "(limits=…): 'many' is no size",
        "'kmv' is no ability; did you mean 'kvm'?",
        "1 passed, 6 errors",
    ):
        assert words in told, (words, told)


PROBES = """#!/bin/sh
echo called >> "$0.calls"
echo '{"version": 1, "probes": [
 {"name": "a", "ability": "kvm", "answer": "no", "reason": "nothing ran", "provide": "modprobe kvm"},
 {"name": "b", "ability": "git", "answer": "yes", "reason": "it starts"}]}'
"""


def test_what_a_host_lacks_is_skipped_by_name(project: Project) -> None:
    project.write(
        "test_it.py",
        """
        import pytest

        @pytest.mark.testyard(needs="git")
        def test_there(): pass

        @pytest.mark.testyard(needs=["git", "kvm"])
        def test_not_there(): pass

        @pytest.mark.testyard(needs="kvm")
        class TestClass:
            @pytest.mark.testyard(needs="git")
            def test_joined(self): pass
        """,
    )
    project.write("program", PROBES)
    program = project.home.work / "program"
    program.chmod(0o755)
    variables = {"TESTYARD_BINARY": str(program)}
    told = project.run("-rs", variables=variables).stdout
    assert "1 passed, 2 skipped" in told, told
    assert "needs kvm: nothing ran; what would provide it: modprobe kvm" in told, told
    assert "test_it.py:" in told, "a skip names its test"
    calls = project.home.work / "program.calls"
    assert calls.read_text().splitlines() == ["called"], "the probes are read once a session"
    told = project.fails("--testyard-no-skip", variables=variables)
    assert "1 passed, 2 errors" in told and "skips are failures here" in told, told
    project.write("pytest.ini", "[pytest]\naddopts = -p no:cacheprovider\ntestyard_no_skip = true\n")
    assert "1 passed, 2 errors" in project.fails(variables=variables)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--testyard-backend=hots"], "'hots' is none of auto, namespace, host; did you mean 'host'?"),
        (["--testyard-keep-failed=soon"], "'soon' is no duration"),
        (["-o", "testyard_keep_failed=-1s"], "'-1s' is no duration"),
    ],
)
def test_options_that_mean_nothing_are_wrong_usage(project: Project, options: list[str], words: str) -> None:
    project.write("test_it.py", "def test_it(): pass\n")
    done = project.run(*options)
    assert done.returncode == 4 and words in done.stderr, done.stdout + done.stderr


def test_durations() -> None:
    assert [seconds(text) for text in ("90", "90s", "1.5m", "1h", "2d", "100ms")] == [90, 90, 90, 3600, 172800, 0.1]


def test_the_marker_is_declared(project: Project) -> None:
    project.write("test_it.py", "import pytest\n@pytest.mark.testyard(user='root')\ndef test_it(): pass\n")
    project.passes("--strict-markers", count=1)
    assert "@pytest.mark.testyard(needs, image, backend" in project.run("--markers").stdout


def test_a_backend_that_gives_less_is_a_skip_unless_the_user_chose_it(project: Project) -> None:
    project.write(
        "test_it.py",
        """
        import pytest

        def test_any(isolated_env):
            isolated_env.run("true")

        @pytest.mark.testyard(isolation="namespace")
        def test_namespace(isolated_env): pass

        @pytest.mark.testyard(network="none")
        def test_network(isolated_env): pass

        def test_vm(vm): pass
        """,
    )
    told = project.run("--testyard-backend=host").stdout
    assert "1 passed, 3 skipped" in told, told
    assert "network `none` is more than backend `host` gives" in told, told
    assert "isolation `namespace` is more than backend `host` gives" in told, told
