"""The real SDK, flow-compute from its registry, on a machine of Testyard."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from support import Home, needs_environment, needs_ordinary_user, needs_root, needs_user_namespaces, ordinary_user
from testyard.dev._greeter import Greeter

DRIVE = Path(__file__).with_name("drive_flow.py")
SDKS = [("flow-0.0.3", "register"), ("flow-3", "entry-point")]


def driven(home: Home, python: Path, how: str) -> dict:
    variables = {"FLOW_PROVIDER": "testyard", "FCP_API_KEY": "local", "USER": "somebody", "FLOW_DISABLE_KEYCHAIN": "1"}
    done = home.run([str(python), str(DRIVE), how], timeout=240, variables=variables)
    _, mark, seen = done.stdout.rpartition("SEEN ")
    assert done.returncode == 0 and mark, f"{done.stdout}\n{done.stderr}"
    return json.loads(seen)


def check(seen: dict) -> None:
    assert seen["same"] is True
    assert (seen["left"], seen["found"], seen["home"], seen["kept"]) == (0, 0, [0, 0], 0)
    assert seen["fails"] != 0 and seen["unknown image"] != 0
    assert (seen["at once"], seen["in containers"], seen["all"]) == ([0], [0], 0)
    assert seen["status"]["vm"]["status"] == "running" and seen["status"]["vm"]["instance_type"] == "h100"
    assert seen["status"]["active_containers"] == 1
    container = seen["status"]["containers"][0]
    assert {"Names", "Status", "Image", "Command", "CreatedAt", "ID"} <= set(container)
    assert container["Image"] == "ubuntu:22.04"
    assert seen["ended"] != 0 and seen["reset"] == 0
    assert seen["stop"] == [True, False]


@pytest.mark.parametrize("sdk, how", SDKS, ids=[sdk for sdk, _ in SDKS])
def test_flow_dev_works(sdk: str, how: str, home: Home) -> None:
    needs_user_namespaces()
    check(driven(home, needs_environment(sdk), how))


@pytest.mark.parametrize("sdk, how", SDKS, ids=[sdk for sdk, _ in SDKS])
def test_flow_dev_works_for_an_ordinary_user(sdk: str, how: str) -> None:
    needs_root()
    needs_ordinary_user()
    needs_user_namespaces()
    python = needs_environment(sdk)
    home = Home(owner=ordinary_user())
    check(driven(home, python, how))
    home.finish()


def test_something_greets_as_an_sshd_does() -> None:
    import socket

    greeter = Greeter()
    for _ in range(2):
        with socket.create_connection(("127.0.0.1", greeter.port), timeout=10) as guest:
            assert guest.recv(64).startswith(b"SSH-2.0-")
    greeter.close()
    greeter.close()
