"""Machines that have a real sudo: it is asked, with and without a password."""

from __future__ import annotations

import io
from typing import Any, Iterator

import pytest

from support import Home, needs_root, skip
from testyard import Machine

SETUP = """
set -e
useradd --create-home --shell /bin/bash plain
useradd --create-home --shell /bin/bash secret
printf 'secret:pass\\nroot:toor\\n' | chpasswd
printf 'plain ALL=(ALL) NOPASSWD: ALL\\nsecret ALL=(ALL) ALL\\n' > /etc/sudoers.d/test
chmod 440 /etc/sudoers.d/test
echo "127.0.0.1 $(hostname)" >> /etc/hosts
"""


@pytest.fixture(scope="module")
def machine(module_home: Home) -> Iterator[Machine]:
    """A machine with sudo and users that may use it."""
    needs_root()  # A machine with one id has no set-user programs.
    made = Machine.create("asked")
    try:
        if made.run("command -v sudo", check=False).returncode != 0:
            command = "apt-get update && apt-get install --yes --no-install-recommends sudo"
            if made.run(command, user="root", check=False, timeout=240).returncode != 0:
                skip("there is no sudo, and no archive to install it from", host=True)
        made.run(SETUP, user="root")
        yield made
    finally:
        made.delete(force=True)


def run(host: Any, command: str, **arguments: Any) -> tuple[bool, str, str]:
    """Whether a command succeeded, and both its streams."""
    from pyinfra.api import StringCommand

    status, output = host.run_shell_command(StringCommand(command), **arguments)
    return status, output.stdout, output.stderr


def host_of(connect: Any, user: str) -> Any:
    """The machine, connected to as a user."""
    return connect("@testyard/asked", testyard_user=user).inventory.get_host("@testyard/asked")


def test_the_machines_own_sudo_is_asked(machine: Machine, connect: Any) -> None:
    host = host_of(connect, "plain")
    assert run(host, "id -un; echo $SUDO_USER", _sudo=True)[1] == "root\nplain"
    as_other = run(host, "id -un; echo $SUDO_USER; pwd", _sudo=True, _sudo_user="secret", _use_sudo_login=True)
    assert as_other[1] == "secret\nplain\n/home/secret"
    host.put_file(io.StringIO("roots own"), "/root/put", _sudo=True)
    assert machine.run("stat -c %U /root/put; cat /root/put", user="root").stdout == "root\nroots own"


def test_a_password_is_asked_for_and_leaves_nothing(machine: Machine, connect: Any) -> None:
    host = host_of(connect, "secret")
    assert run(host, "id -un; echo $SUDO_USER", _sudo=True, _sudo_password="pass")[1] == "root\nsecret"
    status, _, error = run(host, "id -un", _sudo=True, _sudo_password="wrong")
    assert not status
    assert "incorrect password" in error
    assert run(host, "id -un", _su_user="root", _su_password="toor")[1] == "root"
    host.put_file(io.StringIO("by su"), "/root/by-su", _su_user="root", _su_password="toor")
    back = io.BytesIO()
    host.get_file("/root/by-su", back, _su_user="root", _su_password="toor")
    assert back.getvalue() == b"by su"
    assert machine.run("ls /tmp | grep -c pyinfra", check=False).stdout == "2\n"
    host.disconnect()
    assert machine.run("ls /tmp | grep -c pyinfra", check=False).stdout == "0\n"
