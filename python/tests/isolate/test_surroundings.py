"""What a test sees of this host: its network, its homes, and what is exposed."""

from __future__ import annotations

import pytest

from support import needs_root

from .conftest import Suite, outcomes

SERVER = """
    import socket
    import pytest

    @pytest.fixture(scope="session")
    def port():
        # Nobody need accept: the kernel answers for whoever listens.
        with socket.create_server(("127.0.0.1", 0)) as server:
            yield server.getsockname()[1]

    def test_reaches(port): socket.create_connection(("127.0.0.1", port), timeout=60).close()

    def test_names(): socket.getaddrinfo("there-is-none.invalid", 80)
"""
HINT = '--testyard-isolate-network=outbound or host, or @pytest.mark.testyard(network="host")'


def test_a_server_of_the_session_is_in_the_network_of_the_host(suite: Suite) -> None:
    suite.write("test_server.py", SERVER)
    told = suite.told(failed=2)
    assert told.count(HINT) == 2, "each is told that it had a network of its own"
    suite.write("pytest.ini", "[pytest]\ntestyard_isolate_network = host\n")
    assert HINT not in suite.told("-k", "reaches", passed=1, deselected=1)
    # The command line comes first.
    told = suite.told("--testyard-isolate", "--testyard-isolate-network=none", failed=2)
    assert told.count(HINT) == 2


@pytest.mark.parametrize("how", ["--testyard-isolate", "--testyard-isolate=2"])
def test_a_key_that_names_no_network_is_wrong_usage(suite: Suite, how: str) -> None:
    suite.write("pytest.ini", "[pytest]\ntestyard_isolate_network = hots\n")
    suite.write("test_one.py", "def test_one(): pass\n")
    done = suite.run(how)
    assert done.returncode == 4 and "'hots'" in done.stderr and "'host'" in done.stderr, done.stdout + done.stderr
    assert "Traceback" not in done.stderr and outcomes(done) == {}


def test_homes_are_masked_and_what_is_exposed_is_shown(suite: Suite) -> None:
    # For an ordinary user another list of exposed paths costs another view of the host, which takes long.
    needs_root()
    home = suite.home.user_home
    for name in ("shown", "secret"):
        (home / name).mkdir(exist_ok=True)
        (home / name / "file").write_text(name)
    suite.write("pytest.ini", "[pytest]\ntestyard_expose =\n    ~/shown\n")
    suite.write(
        "test_homes.py",
        """
        import contextlib, os, pwd
        from pathlib import Path

        HOME = Path.home()
        OWN = Path(pwd.getpwuid(os.getuid()).pw_dir)
        FILES = {path.name for path in OWN.iterdir() if path.is_file()}
        assert (HOME / "secret" / "file").exists()

        def test_masked():
            assert not (HOME / "secret" / "file").exists()
            assert not OWN.exists() or not FILES & set(os.listdir(OWN))

        def test_shown():
            assert (HOME / "shown" / "file").read_text() == "shown"
            with contextlib.suppress(OSError):
                (HOME / "shown" / "file").write_text("other")
        """,
    )
    suite.told(passed=2)
    assert (home / "shown" / "file").read_text() == "shown"
