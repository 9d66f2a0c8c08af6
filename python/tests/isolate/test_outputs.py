"""What comes back to the working tree, and what does not."""

from __future__ import annotations

import pytest

from .conftest import Suite


def test_caches_and_what_is_named_come_back(anybodys_suite: Suite) -> None:
    suite = anybodys_suite
    suite.write("pytest.ini", "[pytest]\ntestyard_outputs =\n    reports/**/*.txt\n    *.golden\n")
    suite.write("late.py", "VALUE = 1\n")
    suite.write(
        "test_writes.py",
        """
        import os
        from pathlib import Path

        def test_writes(cache):
            import late
            cache.set("own/key", [1, 2])
            Path("reports/deep").mkdir(parents=True)
            Path("reports/deep/one.txt").write_text("one")
            Path("reports/other.log").write_text("no")
            Path("deep").mkdir()
            Path("deep/a.golden").write_text("golden")
            Path("plain.txt").write_text("no")
            Path(".hypothesis").mkdir()
            Path(".hypothesis/example").write_text("found")
            Path("snapshots").mkdir()
            Path("snapshots/one").write_text("new")
            Path("snapshots/one").chmod(0o4755)
            os.symlink("/etc/passwd", "snapshots/link")
            os.mkfifo("snapshots/pipe")

        def test_sees(cache):
            assert cache.get("own/key", None) == [1, 2]
            assert Path("reports/deep/one.txt").read_text() == "one"
            assert not Path("plain.txt").exists()
        """,
    )
    suite.told(passed=2)
    there = {
        str(path.relative_to(suite.folder))
        for path in suite.folder.rglob("*")
        if not path.is_dir() or path.is_symlink()
    }
    wanted = {
        "reports/deep/one.txt",
        "deep/a.golden",
        ".hypothesis/example",
        "snapshots/one",
        ".pytest_cache/v/own/key",
    }
    assert wanted <= there and any(path.startswith("__pycache__/late.") for path in there)
    assert not there & {"plain.txt", "reports/other.log", "snapshots/link", "snapshots/pipe"}
    assert (suite.folder / "snapshots/one").stat().st_mode & 0o7777 == 0o755
    assert not [path for path in there if "testyard-returning" in path]


def test_what_is_deleted_or_renamed_stays_and_what_is_new_comes(suite: Suite) -> None:
    for name in ("snapshots/old", "__snapshots__/deep/renamed", ".benchmarks/all/one"):
        suite.write(name, "old")
    suite.write(
        "test_deletes.py",
        """
        import os, shutil
        from pathlib import Path

        def test_deletes():
            os.remove("snapshots/old")
            Path("snapshots/new").write_text("new")
            os.rename("__snapshots__/deep/renamed", "__snapshots__/deep/name")
            shutil.rmtree(".benchmarks")
            Path(".benchmarks").mkdir()
            Path(".benchmarks/two").write_text("new")
        """,
    )
    suite.told(passed=1)
    found = {
        str(path.relative_to(suite.folder)): path.read_text()
        for folder in ("snapshots", "__snapshots__", ".benchmarks")
        for path in (suite.folder / folder).rglob("*")
        if path.is_file()
    }
    assert found == {
        "snapshots/old": "old",
        "snapshots/new": "new",
        "__snapshots__/deep/renamed": "old",
        "__snapshots__/deep/name": "old",
        ".benchmarks/all/one": "old",
        ".benchmarks/two": "new",
    }


def test_links_of_the_tree_lead_nowhere(suite: Suite) -> None:
    outside = suite.home.path / "home" / "outside"
    outside.mkdir(exist_ok=True)
    (suite.folder / "snapshots").symlink_to(outside)
    suite.write(
        "test_link.py",
        """
        import os
        from pathlib import Path

        def test_replaces():
            os.remove("snapshots")
            Path("snapshots").mkdir()
            Path("snapshots/secret").write_text("")
        """,
    )
    suite.told(passed=1)
    assert list(outside.iterdir()) == []


def test_coverage_is_what_it_is_without_isolation(suite: Suite) -> None:
    pytest.importorskip("pytest_cov", reason="pytest-cov is not installed")
    suite.write(
        "covered.py",
        """
        def one(flag):
            if flag:
                return 1
            return 2

        def two():
            return 3
        """,
    )
    suite.write(
        "test_covered.py",
        """
        import pytest, covered

        @pytest.fixture(scope="session", autouse=True)
        def higher(): covered.two()

        def test_true(): assert covered.one(True) == 1
        def test_false(): assert covered.one(False) == 2
        """,
    )
    options = ("--cov=covered", "--cov-report=term-missing", "--cov-branch")
    lines = []
    ways = ([], ["--testyard-isolate"], ["--testyard-isolate=2"], ["--testyard-isolate", "-n2"])
    for how in ways:
        done = suite.plain(*how, *options)
        lines.append([line for line in done.stdout.splitlines() if line.startswith("covered.py")])
        assert done.returncode == 0, done.stdout + done.stderr
    assert lines[0] and "100%" in lines[0][0]
    assert lines[1:] == lines[:1] * (len(ways) - 1)


def test_hypothesis_keeps_its_examples(suite: Suite) -> None:
    pytest.importorskip("hypothesis", reason="hypothesis is not installed")
    suite.write(
        "test_property.py",
        """
        from hypothesis import given, strategies

        @given(strategies.integers())
        def test_property(number): assert number < 1000
        """,
    )
    suite.told(failed=1)
    assert any(path.is_file() for path in (suite.folder / ".hypothesis" / "examples").rglob("*"))
