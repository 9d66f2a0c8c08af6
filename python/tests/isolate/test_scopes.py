"""Fixtures of higher scopes are set up once, in the warm interpreter; what tests do to them stays with the tests."""

from __future__ import annotations

from .conftest import Suite

COUNTED = """
    import os, pytest

    def note(text):
        with open(os.environ["NOTES"], "a") as notes:
            notes.write(text + "\\n")

    @pytest.fixture(scope="session", autouse=True)
    def session():
        note("session up")
        yield {"touched": False}
        note("session down")

    @pytest.fixture(scope="package")
    def package(session):
        note("package up")
        yield
        note("package down")

    @pytest.fixture(scope="module", params=["a", "b"])
    def letter(request, package):
        note("letter up " + request.param)
        yield request.param
        note("letter down " + request.param)

    @pytest.fixture
    def own(session):
        assert session["touched"] is False
        session["touched"] = True
        yield session
        assert os.getpid() < 100, "tear-down of a function's fixture is in the test's own process"
"""


def test_each_scope_is_set_up_once_and_in_order(anybodys_suite: Suite) -> None:
    suite = anybodys_suite
    # Written by the warm interpreter only: a test's own file would be another.
    notes = suite.home.path / "home" / "notes"
    suite.write("conftest.py", COUNTED)
    body = """
        def test_first(letter, own): assert own["touched"]
        def test_second(letter, own): assert own["touched"]

        class TestOne:
            @classmethod
            def setup_class(cls):
                from conftest import note
                note("class up")
                cls.items = []

            @classmethod
            def teardown_class(cls):
                from conftest import note
                note("class down")

            def test_in_class(self): self.items.append(1); assert self.items == [1]
            def test_in_class_too(self): self.items.append(1); assert self.items == [1]
    """
    suite.write("test_one.py", body)
    suite.write("test_two.py", "def test_last(own): pass\n")
    variables = {"NOTES": str(notes)}
    for jobs in ("1", "2"):
        suite.told(f"--testyard-isolate={jobs}", variables=variables, passed=7)
        isolated = notes.read_text().splitlines()
        notes.unlink()
        expected = ["session up", "package up", "letter up a", "letter down a", "letter up b"]
        assert isolated[: len(expected)] == expected
        assert [line for line in isolated if "class" in line] == ["class up", "class down"]
        assert sorted(isolated) == sorted(
            ["session up", "session down", "package up", "package down", "class up", "class down"]
            + [f"letter {way} {letter}" for way in ("up", "down") for letter in "ab"]
        )
        assert isolated[-1] == "session down"


def test_temporary_folders_of_higher_scopes_are_seen_by_tests(anybodys_suite: Suite) -> None:
    anybodys_suite.write(
        "test_folders.py",
        """
        import tempfile
        from pathlib import Path
        import pytest

        @pytest.fixture(scope="session")
        def data(tmp_path_factory):
            path = tmp_path_factory.mktemp("data") / "file"
            path.write_text("from the session")
            return path

        @pytest.fixture(scope="module")
        def other():
            with tempfile.TemporaryDirectory() as folder:
                Path(folder, "file").write_text("from the module")
                yield Path(folder)

        @pytest.mark.parametrize("number", range(3))
        def test_seen(data, other, tmp_path, number):
            assert data.read_text() == "from the session" and (other / "file").read_text() == "from the module"
            assert data.parent.parent not in tmp_path.parents
            (tmp_path / "own").write_text("")
        """,
    )
    anybodys_suite.told(passed=3)


def test_errors_of_higher_scopes_are_each_tests_own(suite: Suite) -> None:
    suite.write(
        "test_errors.py",
        """
        import pytest

        @pytest.fixture(scope="module")
        def broken(): raise ValueError("cannot be set up")

        @pytest.fixture(scope="module")
        def absent(): pytest.skip("there is none")

        @pytest.fixture(scope="class")
        def fragile():
            yield
            raise ValueError("cannot be torn down")

        def test_broken(broken): pass
        def test_broken_too(broken): pass
        def test_absent(absent): pass

        class TestFragile:
            def test_first(self, fragile): pass
            def test_last(self, fragile): pass
        """,
    )
    told = suite.told(passed=2, skipped=1, error=3)
    assert "ERROR test_errors.py::TestFragile::test_last - ValueError: cannot be torn down" in told
    assert "ERROR test_errors.py::test_broken_too - ValueError: cannot be set up" in told


def test_unittest_classes_and_doctests(suite: Suite) -> None:
    suite.write(
        "test_classes.py",
        """
        import os, unittest

        class TestOld(unittest.TestCase):
            @classmethod
            def setUpClass(cls):
                cls.process = os.getpid()
                cls.seen = []

            def setUp(self):
                self.seen.append(self.id())
                assert os.getpid() != self.process

            def test_first(self): self.assertEqual(len(self.seen), 1)
            def test_second(self): self.assertEqual(len(self.seen), 1)

            @unittest.skip("not now")
            def test_skipped(self): pass

            @unittest.expectedFailure
            def test_expected(self): self.fail()
        """,
    )
    suite.write("module.py", '"""\n>>> 1 + 1\n2\n"""\n')
    suite.told("--doctest-modules", passed=3, skipped=1, xfailed=1)


def test_fixtures_asked_for_at_run_time(suite: Suite) -> None:
    suite.write(
        "test_dynamic.py",
        """
        import pytest

        @pytest.fixture(scope="session")
        def late(): return []

        @pytest.fixture
        def asks(request): return request.getfixturevalue("late")

        def test_first(asks): asks.append(1); assert asks == [1]
        def test_second(request): assert request.getfixturevalue("late") == []

        @pytest.mark.parametrize("asks", ["direct"])
        def test_overridden(asks): assert asks == "direct"
        """,
    )
    suite.told(passed=3)
