"""What a test may do to its world without the next one noticing."""

from __future__ import annotations

import os

from .conftest import Suite

WORLD = """
    import os, socket, subprocess, sys

    def test_first(tmp_path):
        open("left.txt", "w").write("in the tree")
        open("/tmp/left", "w").write("in the temporary folder")
        os.environ["LEFT"] = "in the environment"
        sys.modules["left"] = sys
        os.chdir("/")
        subprocess.Popen(["sleep", "600"])
        server = socket.create_server(("127.0.0.1", 8080))

    def test_second(tmp_path):
        assert not os.path.exists("left.txt") and not os.path.exists("/tmp/left")
        assert "LEFT" not in os.environ and "left" not in sys.modules
        assert os.getcwd() == os.path.dirname(__file__)
        names = [open(f"/proc/{pid}/comm").read().strip() for pid in os.listdir("/proc") if pid.isdigit()]
        assert "sleep" not in names
        assert int(os.readlink("/proc/self")) == os.getpid() < 100
        server = socket.create_server(("127.0.0.1", 8080))
        assert list(tmp_path.iterdir()) == [] and str(tmp_path).startswith("/tmp/")
"""


def test_nothing_that_a_test_does_reaches_the_next(anybodys_suite: Suite) -> None:
    anybodys_suite.write("test_world.py", WORLD)
    anybodys_suite.told(passed=2)
    assert not (anybodys_suite.folder / "left.txt").exists()


def test_without_isolation_that_suite_fails(suite: Suite) -> None:
    # The host's own folder: what this leaves there is its own, and removed again.
    left = f"/tmp/left-{os.getpid()}"
    suite.write("test_world.py", WORLD.replace('subprocess.Popen(["sleep", "600"])', "pass").replace("/tmp/left", left))
    done = suite.plain()
    assert "1 failed, 1 passed" in done.stdout
    (suite.folder / "left.txt").unlink()
    os.unlink(left)


def test_the_caller_is_the_same_user_inside(anybodys_suite: Suite) -> None:
    owner = anybodys_suite.home.owner
    user = owner.pw_uid if owner is not None else os.geteuid()
    anybodys_suite.write(
        "test_user.py",
        f"""
        import os, pathlib, subprocess

        def test_user():
            assert os.getuid() == os.geteuid() == {user}
            assert subprocess.check_output(["id", "-u"], text=True).strip() == "{user}"
            assert os.stat(__file__).st_uid == {user}
            new = pathlib.Path("new")
            new.write_text("")
            assert new.stat().st_uid == {user}

        def test_rights():
            secret = pathlib.Path("secret")
            secret.write_text("")
            secret.chmod(0)
            if {user}:
                try:
                    secret.read_text()
                except PermissionError:
                    return
                assert False, "whoever is not root may not read it"
            secret.read_text()
        """,
    )
    anybodys_suite.told(passed=2)


def test_root_may_break_its_own_world(suite: Suite) -> None:
    from support import needs_root

    needs_root()
    suite.write(
        "test_break.py",
        """
        import os

        def test_breaks():
            os.remove("/etc/passwd")
            os.rename("/usr/bin/env", "/usr/bin/was-env")
            os.chown(__file__, 1234, 1234)

        def test_whole():
            assert os.path.exists("/etc/passwd") and os.path.exists("/usr/bin/env")
            assert os.stat(__file__).st_uid == 0
        """,
    )
    suite.told(passed=2)


def test_network_and_limits_of_one_test(suite: Suite) -> None:
    suite.write(
        "test_marked.py",
        """
        import os
        import pytest

        OWN = os.readlink("/proc/self/ns/net")

        @pytest.mark.testyard(network="host")
        def test_shares():
            assert os.readlink("/proc/self/ns/net") == OWN

        def test_alone():
            assert os.readlink("/proc/self/ns/net") != OWN

        @pytest.mark.testyard(limits={"disk": "1M"})
        def test_disk():
            with pytest.raises(OSError):
                with open("big", "wb", buffering=0) as file:
                    for _ in range(64):
                        file.write(bytes(1 << 20))
        """,
    )
    suite.told(passed=3)
