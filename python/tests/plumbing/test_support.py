"""The tests' own home: that it is apart, and that it notices what is left."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from support import Home, as_ordinary_user, needs_ordinary_user, ordinary_user


def test_a_session_never_uses_the_users_own_home() -> None:
    assert os.environ["TESTYARD_HOME"].startswith("/tmp/ty-")
    assert os.environ["HOME"].startswith("/tmp/ty-")


def test_machines_of_a_home_are_deleted_with_it() -> None:
    home = Home()
    home.testyard("create", "left")
    assert home.machines() == ["left"]
    home.finish()
    assert not home.path.exists()


def test_what_a_test_leaves_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("support.home.SETTLED_WITHIN", 0.1)
    home = Home()
    left = subprocess.Popen(["sleep", "1000"], env=home.environment())
    try:
        with pytest.raises(AssertionError, match=f"process {left.pid}"):
            home.finish()
    finally:
        left.kill()
        left.wait()
    assert home.path.exists()
    home.finish()


def test_a_home_can_belong_to_the_ordinary_user() -> None:
    needs_ordinary_user()
    user = ordinary_user()
    assert user is not None
    home = Home(owner=user)
    done = home.run(["sh", "-c", "echo x > file && id -u"])
    assert done.stdout == f"{user.pw_uid}\n", done.stderr
    assert (home.work / "file").stat().st_uid == user.pw_uid
    home.finish()


def test_an_ordinary_user_stays_one() -> None:
    if os.geteuid() != 0:
        assert as_ordinary_user(["id", "-u"]) == ["id", "-u"]
    else:
        needs_ordinary_user()
        command = as_ordinary_user(["id", "-u"])
        assert subprocess.run(command, capture_output=True, text=True, cwd=Path("/")).stdout.strip() != "0"
