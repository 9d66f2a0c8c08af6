"""The package's operations, deployed by the real `pyinfra` program, make and unmake machines by our `orbctl`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import DEADLINE, Orb

pytest.importorskip("pyinfra_orbstack", reason="pyinfra-orbstack is not installed")


def deploy(folder: Path, target: str, text: str) -> str:
    """Runs a deploy file; everything that pyinfra prints. A failed operation fails the test."""
    file = folder / "deploy.py"
    file.write_text(text)
    program = Path(sys.executable).with_name("pyinfra")
    done = subprocess.run(
        [str(program), "-y", target, str(file)],
        capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=DEADLINE, check=False, cwd=folder,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_machines_are_created_stopped_restarted_cloned_and_deleted(orb: Orb, tmp_path: Path) -> None:
    deploy(
        tmp_path,
        "@local",
        "from pyinfra_orbstack.operations.vm import *\n"
        # By place: pyinfra keeps the word `name` for an operation's own title.
        "vm_create('made', 'ubuntu:22.04', user='dev')\n"
        "vm_stop('made')\n"
        "vm_start('made')\n"
        "vm_restart('made')\n"
        "vm_clone('made', 'copy')\n"
        "vm_rename('copy', 'second')\n"
        "vm_stop('second', force=True)\n"
        "vm_list()\n"
        "ssh_info()\n",
    )
    assert orb.states() == {"made": "running", "second": "stopped"}
    assert orb.record("made")["image"]["stands_in_for"] == "ubuntu:22.04"
    deploy(
        tmp_path,
        "@local",
        "from pyinfra_orbstack.operations.vm import *\nvm_delete('made')\nvm_delete('second', force=True)\n",
    )
    assert orb.states() == {}


def test_a_machine_is_exported_and_imported(orb: Orb, tmp_path: Path) -> None:
    orb.must("create", "debian:12", "first", "--user", "dev")
    orb.must("run", "-m", "first", "sh", "-c", "echo kept > kept")
    archive = tmp_path / "first.tar.zst"
    deploy(
        tmp_path,
        "@local",
        "from pyinfra_orbstack.operations.vm import *\n"
        f"vm_export('first', '{archive}')\n"
        f"vm_import('{archive}', 'again')\n",
    )
    assert archive.stat().st_size > 1_000_000
    assert orb.must("run", "-m", "again", "sh", "-c", "whoami; cat kept") == "dev\nkept\n"
    orb.must("delete", "-f", "first", "again")


def test_settings_are_set_and_shown(orb: Orb, tmp_path: Path) -> None:
    orb.must("create", "debian:12", "one")
    deploy(
        tmp_path,
        "@local",
        "from pyinfra_orbstack.operations.vm import *\n"
        "orbstack_config_set('memory_mib', '2048')\n"
        "orbstack_config_get('memory_mib')\n"
        "orbstack_config_show()\n"
        "vm_username_set('one', 'eve')\n",
    )
    assert orb.must("config", "get", "memory_mib") == "2048\n"
    assert orb.must("run", "-m", "one", "whoami") == "eve\n"
    orb.must("delete", "-f", "one")


def test_real_operations_change_a_machine_once(orb: Orb, tmp_path: Path) -> None:
    orb.must("create", "debian:12", "web")
    (tmp_path / "motd").write_text("from pyinfra\n")
    text = (
        "from pyinfra.operations import files, server\n"
        "files.directory(path='/srv/app', mode='750', _sudo=True)\n"
        "files.put(src='motd', dest='/srv/app/motd', mode='640', _sudo=True)\n"
        "files.line(path='/etc/environment', line='COLOUR=blue', _sudo=True)\n"
        "server.group(group='crew', _sudo=True)\n"
    )
    first = deploy(tmp_path, "@orbstack/web", text)
    assert orb.must("run", "-m", "web", "-u", "root", "cat", "/srv/app/motd") == "from pyinfra\n"
    assert orb.must("run", "-m", "web", "-u", "root", "stat", "-c", "%a", "/srv/app/motd") == "640\n"
    assert "Changed" in first or "Success" in first
    orb.must("run", "-m", "web", "getent", "group", "crew")
    second = deploy(tmp_path, "@orbstack/web", text)
    assert "No changes" in second, second
    orb.must("delete", "-f", "web")
