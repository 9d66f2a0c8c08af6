"""What a test's marks ask for, against what a fork of this interpreter in an environment can be."""

from __future__ import annotations

import os
import pwd
from typing import Any, Optional

import pytest
from _pytest.skipping import evaluate_skip_marks, evaluate_xfail_marks

from ..errors import TestyardError
from ..plugin import session_of
from ..plugin._marker import Wishes, wishes_of

#: Why a test is skipped, by name: found out before its fork, told by it.
LACKS = pytest.StashKey[str]()
_SKIPPED = pytest.StashKey[bool]()
_GIVEN_BACKENDS = (None, "auto", "namespace")


def marks_of(item: Any) -> Optional[Wishes]:
    """What its marks ask for; None without any."""
    return wishes_of(item) if item.get_closest_marker("testyard") is not None else None


def needs_are_known(item: Any, wishes: Wishes) -> bool:
    """Asks this host for what a test needs, once, so that its fork knows and does not ask the environment.

    Whether the host has it all."""
    try:
        return session_of(item.config).missing(wishes.needs) is None
    except TestyardError:
        return False


def lacks(wishes: Wishes) -> Optional[str]:
    """Why a test is skipped: its minimum is more than it can have."""
    if wishes.isolation == "machine" and not wishes.mistakes:
        return (
            "isolation `machine` is more than a test of --testyard-isolate has; "
            "the fixtures `isolated_env` and `vm` give it, isolation `none` leaves it out"
        )
    return None


def stays(wishes: Wishes, tree: str) -> Optional[str]:
    """Why a test runs in this process: its own place would be another than its marks say."""
    if wishes.mistakes:
        return None
    if wishes.isolation == "none":
        return 'its mark says isolation="none"'
    asked = None
    if wishes.image not in (None, "host"):
        asked = f"image {wishes.image!r}"
    elif wishes.backend not in _GIVEN_BACKENDS:
        asked = f"backend {wishes.backend!r}"
    elif wishes.user is not None and not _is_caller(wishes.user):
        asked = f"user {wishes.user!r}"
    elif isinstance(wishes.source, str) and not _is_within(wishes.source, tree):
        asked = f"source {wishes.source!r}"
    return f"its mark asks for {asked}, which no fork of this process can have" if asked else None


def is_skipped(item: Any) -> bool:
    """Whether its fork will skip or fail it before any of its fixtures is set up, as far as can be told before.

    Where that is wrong, the fork sets up by itself what it needs."""
    known: Optional[bool] = item.stash.get(_SKIPPED, None)
    if known is None:
        known = item.stash[_SKIPPED] = _will_be_skipped(item)
    return known


def _will_be_skipped(item: Any) -> bool:
    wishes = marks_of(item)
    if wishes is not None and (wishes.mistakes or lacks(wishes) or not needs_are_known(item, wishes)):
        return True
    try:
        if evaluate_skip_marks(item):
            return True
        expected = evaluate_xfail_marks(item)
    except (Exception, pytest.fail.Exception):
        # A condition that cannot be evaluated is told by the fork.
        return True
    return bool(expected is not None and not expected.run and not item.config.option.runxfail)


def _is_caller(user: Any) -> bool:
    if isinstance(user, int) or str(user).isdigit():
        return int(user) == os.geteuid()
    try:
        return pwd.getpwnam(str(user)).pw_uid == os.geteuid()
    except KeyError:
        return False


def _is_within(folder: str, tree: str) -> bool:
    path = os.path.realpath(folder)
    return path == tree or path.startswith(tree.rstrip("/") + "/")
