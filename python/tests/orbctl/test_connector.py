"""The public `pyinfra-orbstack` package's connector, with its own code, against our `orbctl`."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any, Iterator

import pytest

from .conftest import Orb

pytest.importorskip("pyinfra_orbstack", reason="pyinfra-orbstack is not installed")
from pyinfra.api import Config, Inventory, State, StringCommand  # noqa: E402
from pyinfra.api.connect import connect_all  # noqa: E402
from pyinfra_orbstack.connector import OrbStackConnector  # noqa: E402


@pytest.fixture(scope="module")
def web(orb: Orb) -> Iterator[Any]:
    """A machine as pyinfra has it after it has connected: a host of the inventory `@orbstack/web`."""
    orb.must("create", "debian:12", "web", "--user", "dev")
    state = State(Inventory((["@orbstack/web"], {})), Config())
    connect_all(state)
    hosts = list(state.inventory)
    assert [host.name for host in hosts] == ["web"]
    assert hosts[0].connected
    yield hosts[0]
    orb.must("delete", "-f", "web")


def test_the_inventory_lists_machines_with_their_groups(orb: Orb, web: Any) -> None:
    orb.must("create", "debian:12", "asleep")
    orb.must("stop", "asleep")
    listed = {name: (data, groups) for name, data, groups in OrbStackConnector.make_names_data()}
    assert set(listed) == {"web", "asleep"}
    data, groups = listed["web"]
    assert (data["vm_name"], data["vm_distro"], data["vm_version"]) == ("web", "debian", "12")
    assert (data["vm_status"], data["vm_username"], data["vm_id"]) == ("running", "dev", orb.record("web")["id"])
    assert {"orbstack", "orbstack_running", "orbstack_debian", f"orbstack_{data['vm_arch']}"} == set(groups)
    assert "orbstack_stopped" in listed["asleep"][1]
    assert [name for name, _, _ in OrbStackConnector.make_names_data("web")] == ["web"]
    orb.must("delete", "-f", "asleep")


def test_a_stopped_machine_is_started_when_it_is_connected_to(orb: Orb, web: Any) -> None:
    orb.must("stop", "web")
    assert web.connector.connect() is True
    assert orb.states()["web"] == "running"


def said(outcome: tuple[bool, Any]) -> str:
    """What a command printed that must have succeeded."""
    success, output = outcome
    assert success, output.stderr
    return str(output.stdout)


def test_commands_run_as_the_user_and_in_the_folder_that_are_asked_for(web: Any) -> None:
    assert said(web.run_shell_command(StringCommand("whoami"))) == "dev"
    assert said(web.run_shell_command(StringCommand("pwd"))) == "/home/dev"
    assert said(web.run_shell_command(StringCommand("whoami"), user="root")) == "root"
    assert said(web.run_shell_command(StringCommand("pwd"), workdir="/var/tmp")) == "/var/tmp"
    assert said(web.run_shell_command(StringCommand("pwd; whoami"), user="nobody", workdir="/tmp")) == "/tmp\nnobody"
    assert (
        said(web.run_shell_command(StringCommand("sh", "-c", "echo 'two  words' \"$HOME\""))) == "two  words /home/dev"
    )


def test_a_command_fails_with_what_it_said(web: Any) -> None:
    success, output = web.run_shell_command(StringCommand("echo out; echo oops >&2; exit 3"), max_retries=0)
    assert (success, output.stdout, output.stderr) == (False, "out", "oops")
    assert web.run_shell_command(StringCommand("exit 3"), _success_exit_codes=[0, 3])[0] is True


@pytest.fixture
def sudoer(orb: Orb) -> Iterator[None]:
    """Lets commands run as somebody who can become root: an ordinary user's machine has one id, which is root."""
    if os.geteuid() != 0:
        orb.must("config", "set", "machine.web.username", "root")
    yield
    orb.must("config", "set", "machine.web.username", "dev")


def test_commands_become_root_and_others_by_sudo(web: Any, sudoer: None) -> None:
    assert said(web.run_shell_command(StringCommand("id -u"), _sudo=True)) == "0"
    assert said(web.run_shell_command(StringCommand("whoami"), _sudo=True, _sudo_user="nobody")) == "nobody"
    assert said(web.run_shell_command(StringCommand("sh", "-c", "whoami"), sudo=True)) == "root"


@pytest.mark.parametrize("size", [0, 1, 3_000_000])
def test_files_go_and_come_back_with_equal_content(web: Any, tmp_path: Path, size: int) -> None:
    content = hashlib.shake_128(b"content").digest(size)
    there, back = tmp_path / "there", tmp_path / "back"
    there.write_bytes(content)
    assert web.put_file(str(there), f"/tmp/file-{size}") is True
    assert web.get_file(f"/tmp/file-{size}", str(back)) is True
    assert back.read_bytes() == content


def test_files_go_and_come_back_by_sudo(web: Any, tmp_path: Path, sudoer: None) -> None:
    there, back = tmp_path / "there", tmp_path / "back"
    there.write_text("only root's\n")
    assert web.put_file(str(there), "/etc/only-roots", sudo=True, mode="600") is True
    assert said(web.run_shell_command(StringCommand("stat -c %U:%a /etc/only-roots"), _sudo=True)).endswith(":600")
    assert web.get_file("/etc/only-roots", str(back), sudo=True) is True
    assert back.read_text() == "only root's\n"


def test_what_is_missing_is_told_at_once(web: Any, tmp_path: Path) -> None:
    assert web.get_file("/no/such/file", str(tmp_path / "x")) is False
    assert web.put_file(str(tmp_path / "missing"), "/tmp/x") is False
    assert list(OrbStackConnector.make_names_data("nobody")) == []
