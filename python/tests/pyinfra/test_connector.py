"""The connector by itself: what commands see, files, errors, and hosts that do not wait for each other."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import socket
import threading
from pathlib import Path
from typing import Any, Iterator

import pytest

from support import Home, needs_root
from testyard import Machine

# Machines share the host's network: a command says that it runs, and ends once all of them have said so.
MEET = 'exec 3<>/dev/tcp/127.0.0.1/{port} && read -t 120 word <&3 && [ "$word" = together ]'


class Meeting:
    """Answers so many commands, and none before all of them run."""

    def __init__(self, count: int) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.listener.settimeout(120)
        self.command = MEET.format(port=self.listener.getsockname()[1])
        self.thread = threading.Thread(target=self._serve, args=(count,))
        self.thread.start()

    def _serve(self, count: int) -> None:
        with self.listener, contextlib.ExitStack() as open_ones, contextlib.suppress(OSError):
            guests = [open_ones.enter_context(self.listener.accept()[0]) for _ in range(count)]
            for guest in guests:
                guest.sendall(b"together\n")


@pytest.fixture
def three(module_home: Home) -> Iterator[list[str]]:
    """Three machines, in pyinfra's words."""
    machines = [Machine.create(f"meet-{number}") for number in range(3)]
    yield [f"@testyard/{machine.name}" for machine in machines]
    for machine in machines:
        machine.delete(force=True)


@pytest.fixture(scope="module")
def web(module_home: Home) -> Iterator[Machine]:
    """The machine of this module."""
    machine = Machine.create("web")
    yield machine
    machine.delete(force=True)


@pytest.fixture
def host(web: Machine, connect: Any) -> Any:
    """The machine as pyinfra's host."""
    return connect("@testyard/web").inventory.get_host("@testyard/web")


def run(host: Any, command: str, **arguments: Any) -> tuple[bool, str, str]:
    """Whether a command succeeded, and both its streams."""
    from pyinfra.api import StringCommand

    status, output = host.run_shell_command(StringCommand(command), **arguments)
    return status, output.stdout, output.stderr


def test_commands_run_as_root_unless_somebody_says_otherwise(host: Any, connect: Any) -> None:
    assert run(host, "id -un") == (True, "root", "")
    for user in ("nobody", 65534):
        other = connect("@testyard/web", testyard_user=user).inventory.get_host("@testyard/web")
        assert run(other, "id -u")[1] == "65534"


def test_a_machines_own_user_is_whom_commands_run_as(module_home: Home, connect: Any) -> None:
    with Machine.create("owned", user="nobody"):
        host = connect("@testyard/owned").inventory.get_host("@testyard/owned")
        assert run(host, "id -un")[1] == "nobody"
        # Where the machine sees a sudo of the host's, that decides.
        if shutil.which("sudo") is None:
            assert run(host, "id -un", _sudo=True)[1] == "root"


def test_the_global_arguments_mean_what_they_mean_elsewhere(host: Any) -> None:
    assert run(host, "pwd", _chdir="/usr/share")[1] == "/usr/share"
    assert run(host, "echo $A", _env={"A": "it's $HOME"})[1] == "it's $HOME"
    assert run(host, "echo $0", _shell_executable="bash")[1] == "bash"
    assert run(host, "id -un", _sudo=True)[1] == "root"
    assert run(host, "id -un", _sudo=True, _sudo_user="nobody")[1] == "nobody"
    assert run(host, "exit 3")[0] is False
    assert run(host, "exit 3", _success_exit_codes=[0, 3])[0] is True
    assert run(host, "cat", _stdin=["one", "two\n"])[1] == "one\ntwo"
    assert run(host, "cat", _stdin="x" * 1_000_000)[1] == "x" * 1_000_000
    assert run(host, "true", _stdin="x" * 1_000_000)[0] is True
    assert run(host, "tty", _get_pty=True)[1] == "not a tty"


def test_su_becomes_another_user(host: Any) -> None:
    needs_root()
    assert run(host, "id -un; pwd", _su_user="nobody", _su_shell="sh", _chdir="/tmp")[1] == "nobody\n/tmp"


def test_both_streams_come_back_whole_and_apart(host: Any) -> None:
    status, out, err = run(host, "seq 50000; seq 50000 >&2; printf 'no end'; printf '\\377' >&2")
    assert status
    assert out.splitlines() == [*map(str, range(1, 50001)), "no end"]
    assert err.splitlines() == [*map(str, range(1, 50001)), "\N{REPLACEMENT CHARACTER}"]


def test_a_command_whose_time_is_up_is_ended(host: Any, web: Machine) -> None:
    with pytest.raises(TimeoutError):
        run(host, "exec sleep 3599", _timeout=1)
    assert web.run("pgrep -fx 'sleep 3599'", check=False).returncode == 1


def test_a_command_that_cannot_be_started_fails(host: Any) -> None:
    status, _, err = run(host, "true", _sudo=True, _sudo_user="nobody-of-that-name")
    assert not status
    assert "nobody-of-that-name" in err


def test_files_go_there_and_back_equal(host: Any, tmp_path: Path) -> None:
    content = os.urandom(3_000_000)
    source, target = tmp_path / "in", tmp_path / "out"
    source.write_bytes(content)
    name = "/tmp/with space and 'quote'"
    assert host.put_file(str(source), name)
    assert host.get_file(name, str(target))
    assert target.read_bytes() == content
    back = io.BytesIO()
    assert host.put_file(io.StringIO("ä\n"), "/tmp/text")
    assert host.get_file("/tmp/text", back)
    assert back.getvalue() == "ä\n".encode()
    assert host.put_file(io.BytesIO(b""), "/tmp/text")
    assert host.get_file("/tmp/text", str(target))
    assert target.read_bytes() == b""


def test_an_existing_file_keeps_its_mode_and_a_users_file_is_the_users(host: Any, web: Machine) -> None:
    web.run("install -m 751 /dev/null /tmp/kept; mkdir -m 777 -p /tmp/open", user="root")
    host.put_file(io.StringIO("new"), "/tmp/kept")
    assert web.run("stat -c %a /tmp/kept; cat /tmp/kept", user="root").stdout == "751\nnew"
    host.put_file(io.StringIO("theirs"), "/tmp/open/theirs", _sudo=True, _sudo_user="nobody")
    assert web.run("cat /tmp/open/theirs", user="nobody").stdout == "theirs"


def test_files_that_cannot_be_written_or_read_are_errors_with_their_cause(host: Any) -> None:
    with pytest.raises(OSError, match="(?i)no such file|nonexistent"):
        host.put_file(io.StringIO("x"), "/nowhere/at/all")
    with pytest.raises(OSError, match="No such file"):
        host.get_file("/nowhere/at/all", io.BytesIO())
    with pytest.raises(OSError, match="Is a directory"):
        host.get_file("/etc", io.BytesIO(), _sudo=True, _sudo_user="nobody")


def test_there_is_no_rsync(host: Any) -> None:
    with pytest.raises(NotImplementedError, match="rsync"):
        host.check_can_rsync()


def test_hosts_of_a_library_do_not_wait_for_each_other(three: list[str], connect: Any) -> None:
    import gevent

    state = connect(*three)
    meeting = Meeting(len(three))
    running = [
        gevent.spawn(run, host, meeting.command, _shell_executable="bash", _timeout=150) for host in state.inventory
    ]
    gevent.joinall(running)
    meeting.thread.join()
    assert [greenlet.value for greenlet in running] == [(True, "", "")] * len(three)


def test_hosts_of_the_program_do_not_wait_for_each_other(program: Any, three: list[str]) -> None:
    meeting = Meeting(len(three))
    script = (
        "from pyinfra.operations import server\n"
        f"server.shell(commands=[{meeting.command!r}], _shell_executable='bash', _timeout=150)\n"
    )
    totals, _ = program.deploy(",".join(three), script)
    meeting.thread.join()
    assert (totals["success"], totals["error"]) == (len(three), 0)


def test_a_machine_that_goes_away_is_an_error_of_its_host(module_home: Home, connect: Any) -> None:
    machine = Machine.create("going")
    host = connect("@testyard/going").inventory.get_host("@testyard/going")

    def delete_once_it_runs() -> None:
        machine.run("until test -e /tmp/runs; do sleep 0.05; done", timeout=120, user="root")
        machine.delete(force=True)

    deleting = threading.Thread(target=delete_once_it_runs)
    deleting.start()
    # Its command may still be told to have been killed, or the connection be gone before.
    try:
        status = run(host, "touch /tmp/runs; exec sleep 3600")[0]
    except OSError:
        status = False
    deleting.join()
    assert not status
    with pytest.raises(OSError, match="machine going"):
        run(host, "true")


def test_the_inventory_has_groups_and_data(program: Any, web: Machine) -> None:
    text = program.run("@testyard/web", "debug-inventory")
    info = web.info()
    for told in (f"testyard_backend_{info.backend}", "testyard_image_host", "testyard_state_running", info.id):
        assert told in text


@pytest.mark.parametrize(
    ("inventory", "told"),
    [
        ("@testyard/nobody", "there is no machine nobody (see those there are: testyard list"),
        ("@testyard/no good", "is not a machine's name"),
    ],
)
def test_a_name_that_is_no_machine_is_an_inventory_error(program: Any, web: Machine, inventory: str, told: str) -> None:
    assert told in program.run(inventory, "exec", "--", "true", code=1)


def test_without_a_machine_that_runs_there_is_no_inventory(home: Home) -> None:
    from pyinfra.api import Inventory
    from pyinfra.api.exceptions import InventoryError

    with pytest.raises(InventoryError, match="no machine runs .*testyard create web"):
        Inventory((["@testyard"], {}))
    Machine.create("asleep").stop()
    with pytest.raises(InventoryError, match="asleep is stopped"):
        Inventory((["@testyard"], {}))


def test_a_stopped_machine_cannot_be_connected_to(module_home: Home, program: Any, connect: Any) -> None:
    from pyinfra.api.exceptions import ConnectError

    machine = Machine.create("resting")
    machine.stop()
    assert "machine resting is stopped" in program.run("@testyard/resting", "exec", "--", "true", code=1)
    machine.start()
    host = connect("@testyard/resting").inventory.get_host("@testyard/resting")
    host.disconnect()
    machine.stop()
    with pytest.raises(ConnectError, match="resting is stopped .*testyard start resting"):
        host.connect(raise_exceptions=True, show_errors=False)
    machine.delete()


def test_a_user_that_does_not_exist_is_a_connect_error(program: Any, web: Machine) -> None:
    text = program.run("@testyard/web", "exec", "--data", "testyard_user=whoever", "--", "true", code=1)
    assert "whoever" in text


def test_a_missing_program_is_told_without_a_traceback(
    program: Any, web: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TESTYARD_BINARY", "/nowhere/testyard")
    assert "TESTYARD_BINARY names /nowhere/testyard" in program.run("@testyard/web", "exec", "--", "true", code=1)
