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
    told = json.loads(seen)
    assert told["commands"]["shell"] == [None, None] and "in the shell\n" in done.stdout
    return told


def check(seen: dict, sdk: str) -> None:
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
    check_tasks(seen["tasks"], seen["status"]["vm"]["name"])
    check_commands(seen["commands"])
    if sdk == "flow-3":
        check_copied(seen["files"])
        assert seen["tasks"]["dry run"][0] == "ProviderError" and "no dry run" in seen["tasks"]["dry run"][-1]
        # It was paused, and nothing ran.
        assert seen["shell then"][0] == "RemoteTransportError" and "stopped" in seen["shell then"][-1]
    else:
        check_retrieved(seen["files"])
        # Here `stop` deletes it.
        assert seen["shell then"][0] == "TaskNotFoundError"


def check_tasks(told: dict, name: str) -> None:
    assert told["tasks"] == {"running": [name]} and told["of several"] == told["of the sdk"] == [name]
    assert [missing[0] for missing in told["missing"]] == ["TaskNotFoundError"] * 2
    for refused, said in (("other task", "developer's machines only"), ("volumes", "no volumes")):
        assert told[refused][0] == "ProviderError" and said in told[refused][-1], told[refused]
    assert told["logs"][0] == "str" and told["logs"][1][0] == "TaskNotFoundError"


def check_commands(told: dict) -> None:
    assert told["said"] == "said\n"
    assert told["fails"][0] == "RemoteExecutionError" and "why (exit code: 3)" in told["fails"][-1]
    assert told["too long"][0] in ("TimeoutError", "FlowTimeoutError") and "longer than 1 s" in told["too long"][-1]
    assert "RemoteExecutionError" in told["shell fails"] and "exit code: 3" in told["shell fails"][-1]
    assert told["no command"][0] == told["no shell"][0] == "TaskNotFoundError"


def check_retrieved(told: dict) -> None:
    assert told["file"] == told["below home"] == "content\n"
    # By this class the SDK knows that a function has left no result.
    assert told["missing"][0] == "FileNotFoundError" and "/no/such/file" in told["missing"][-1]
    assert told["folder"][0] == "RemoteExecutionError" and told["of nobody"][0] == "TaskNotFoundError"


def check_copied(told: dict) -> None:
    assert told["equal"] is True and told["mode"] == "640" and told["exec"] == [3, "said\n", "wrong\n"]
    assert (told["up"], told["down"]) == (True, 256_000)
    assert {name: refused and refused[0] for name, refused in told["refused"].items()} == {
        "put missing": "FileNotFoundError",
        "put folder": "IsADirectoryError",
        "put pipe": "ValidationError",
        "put of no size": "ValidationError",
        "put nowhere": "ValidationError",
        "put on folder": "RemoteExecutionError",
        "put for nobody": "TaskNotFoundError",
        "get missing": "RemoteExecutionError",
        "get on folder": "IsADirectoryError",
        "get into nothing": "FileNotFoundError",
        "get nothing": "ValidationError",
        "get of nobody": "TaskNotFoundError",
    }
    # Nothing came of what was refused, here or there.
    assert told["untouched"] == ["back", "down", "here", "pipe"] and told["not there"] == ""


@pytest.mark.parametrize("sdk, how", SDKS, ids=[sdk for sdk, _ in SDKS])
def test_flow_dev_works(sdk: str, how: str, home: Home) -> None:
    needs_user_namespaces()
    check(driven(home, needs_environment(sdk), how), sdk)


@pytest.mark.parametrize("sdk, how", SDKS, ids=[sdk for sdk, _ in SDKS])
def test_flow_dev_works_for_an_ordinary_user(sdk: str, how: str) -> None:
    needs_root()
    needs_ordinary_user()
    needs_user_namespaces()
    python = needs_environment(sdk)
    home = Home(owner=ordinary_user())
    check(driven(home, python, how), sdk)
    home.finish()


def test_something_greets_as_an_sshd_does() -> None:
    import socket

    greeter = Greeter()
    for _ in range(2):
        with socket.create_connection(("127.0.0.1", greeter.port), timeout=10) as guest:
            assert guest.recv(64).startswith(b"SSH-2.0-")
    greeter.close()
    greeter.close()
