"""What pytest tells of isolated tests is what it tells of any."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import pytest

from .conftest import Suite, outcomes

OUTCOMES = """
    import logging, warnings
    import pytest

    @pytest.fixture
    def broken_end():
        yield
        raise RuntimeError("at the end")

    def test_passes(record_property):
        record_property("what", ("a", 1))
        print("said by one that passes")

    def test_fails():
        print("on standard output")
        logging.getLogger("own").warning("in the log")
        value = {"key": [1, 2]}
        assert value == {"key": [1, 3]}

    def test_errs(missing): pass
    def test_ends_badly(broken_end): pass
    def test_skips(): pytest.skip("because")

    @pytest.mark.xfail(reason="known")
    def test_expected(): assert False

    @pytest.mark.xfail
    def test_unexpected(): pass

    def test_warns(): warnings.warn(DeprecationWarning("this is old"))

    def test_captures(capfd, caplog):
        print("captured")
        logging.warning("logged")
        assert capfd.readouterr().out == "captured\\n" and caplog.messages == ["logged"]
"""
COUNTS = {"passed": 4, "failed": 1, "error": 2, "skipped": 1, "xfailed": 1, "xpassed": 1}


@pytest.mark.parametrize("how", ["--testyard-isolate", "--testyard-isolate=3"])
def test_every_outcome_and_what_was_said(suite: Suite, how: str) -> None:
    suite.write("test_outcomes.py", OUTCOMES)
    told = suite.told(how, **COUNTS)
    assert outcomes(suite.plain()) == COUNTS
    assert "assert {'key': [1, 2]} == {'key': [1, 3]}" in told
    for text in ("on standard output", "in the log", "said by one that passes", "at the end", "this is old"):
        assert text in told, text
    assert "SKIPPED [1] test_outcomes.py:" in told and "because" in told


def test_junit_files_are_equal_but_for_times(suite: Suite) -> None:
    suite.write("test_outcomes.py", OUTCOMES)
    suite.write(
        "test_attributes.py",
        """
        def test_attribute(record_xml_attribute): record_xml_attribute("assertions", 7)
        def test_property(record_testsuite_property): record_testsuite_property("kind", "isolated")
        """,
    )
    options = ("-o", "junit_family=xunit1")
    suite.run("--junitxml=/dev/null", *options)
    files = []
    for how in ([], ["--testyard-isolate"], ["--testyard-isolate=2"]):
        suite.plain(*how, "--junitxml=told.xml", *options)
        files.append(_without_times(suite, "told.xml"))
    assert files[1:] == files[:1] * 2
    assert 'assertions="7"' in files[0] and 'name="kind"' in files[0]


def test_junit_files_of_workers_tell_the_same_tests(suite: Suite) -> None:
    suite.write("test_outcomes.py", OUTCOMES)
    cases = []
    for how in (["-n2"], ["--testyard-isolate", "-n2"]):
        done = suite.plain(*how, "--junitxml=told.xml", "-o", "junit_family=xunit1")
        assert outcomes(done) == COUNTS, done.stdout + done.stderr
        root = ElementTree.fromstring(_without_times(suite, "told.xml"))
        # In whatever order the workers were.
        cases.append(sorted(ElementTree.tostring(case, encoding="unicode") for case in root.iter("testcase")))
    assert cases[0] == cases[1] and len(cases[0]) == sum(COUNTS.values()) - 1


def _without_times(suite: Suite, name: str) -> str:
    root = ElementTree.parse(suite.folder / name).getroot()
    for element in root.iter():
        for key in ("time", "timestamp", "hostname"):
            element.attrib.pop(key, None)
        if element.tag == "system-out" or element.tag in ("failure", "error"):
            element.text = ""
    return ElementTree.tostring(root, encoding="unicode")


def test_first_failure_ends_the_run_and_is_run_again(suite: Suite) -> None:
    suite.write(
        "test_order.py",
        """
        import os
        def test_one(): pass
        def test_two(): assert os.environ.get("FIXED")
        def test_three(): assert os.environ.get("FIXED")
        def test_four(): pass
        """,
    )
    for how in ("--testyard-isolate", "--testyard-isolate=2"):
        told = suite.told(how, "-x", "-p", "no:randomly", passed=1, failed=1)
        assert "stopping after 1 failures" in told
    suite.told("--maxfail=2", passed=1, failed=2)
    told = suite.told("--lf", failed=2)
    assert "rerun previous 2 failures" in told
    suite.told("--lf", "-n2", failed=2)
    suite.told("--lf", variables={"FIXED": "1"}, passed=2)
    suite.told("--sw", passed=1, failed=1)


def test_a_crash_is_the_tests_own_failure(anybodys_suite: Suite) -> None:
    anybodys_suite.write(
        "test_crash.py",
        """
        import os, signal

        def test_before(): pass

        def test_killed():
            print("its last words", flush=True)
            os.kill(os.getpid(), signal.SIGABRT)

        def test_exits(): os._exit(3)
        def test_after(): pass
        """,
    )
    told = anybodys_suite.told("-p", "no:faulthandler", passed=2, failed=2)
    assert "the test's process was ended by SIGABRT (signal 6), in its call phase" in told
    assert "the test's process exited with status 3 before the test was over" in told
    assert "its last words" in told


def test_a_fork_of_a_test_says_nothing_in_its_place(suite: Suite) -> None:
    suite.write(
        "test_forks.py",
        """
        import os, multiprocessing, time

        def double(number): return 2 * number

        def test_forks():
            pid = os.fork()
            if pid == 0:
                os._exit(0)
            assert os.waitpid(pid, 0)[1] == 0

        def test_pool():
            with multiprocessing.get_context("fork").Pool(2) as pool:
                assert pool.map(double, range(4)) == [0, 2, 4, 6]

        def test_leaves_one():
            multiprocessing.get_context("fork").Process(target=time.sleep, args=(600,), daemon=False).start()
            os._exit(0)
        """,
    )
    suite.told(passed=2, failed=1)


def test_a_hanging_test_is_ended(suite: Suite) -> None:
    pytest.importorskip("pytest_timeout", reason="pytest-timeout is not installed")
    suite.write(
        "test_hang.py",
        """
        import signal, time
        import pytest

        @pytest.mark.timeout(1)
        def test_hangs(): time.sleep(600)

        @pytest.mark.timeout(3)
        def test_hangs_hard():
            signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))
            time.sleep(600)

        @pytest.mark.timeout(1, method="thread")
        def test_hangs_with_a_thread(): time.sleep(600)

        def test_after(): pass
        """,
    )
    told = suite.told(passed=1, failed=3)
    assert "Timeout (>1.0s) from pytest-timeout" in told
    assert "Timeout: the test's process said nothing more" in told


def test_exit_and_stop_reach_the_session(suite: Suite) -> None:
    suite.write("test_exit.py", "import pytest\ndef test_one(): pass\ndef test_exits(): pytest.exit('enough', 9)\n")
    done = suite.run()
    assert done.returncode == 9 and "enough" in done.stdout, done.stdout + done.stderr
    suite.write("test_exit.py", "def test_stops(request): request.session.shouldstop = 'now'\ndef test_two(): pass\n")
    done = suite.run()
    assert "now" in done.stdout and outcomes(done) == {"passed": 1}, done.stdout
