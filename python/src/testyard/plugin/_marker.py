"""The marker: `@pytest.mark.testyard(needs=…, image=…, …)`, checked where it is used and joined from outside in."""

from __future__ import annotations

from typing import Any, Optional, Union

import pytest

from testyard import _given as given

from ._settings import BACKENDS, near

KEYS = ("needs", "image", "backend", "limits", "network", "user", "isolation", "source")
ISOLATIONS = ("none", "workspace", "namespace", "machine")
NETWORKS = ("private", "outbound", "host", "none")
LIMITS = ("memory", "pids", "cpus", "disk")


class Wishes:
    """What the markers of one test ask for; None where they say nothing."""

    __test__ = False

    def __init__(self) -> None:
        #: Abilities of the host, in the words of `testyard doctor`.
        self.needs: list[str] = []
        self.image: Optional[str] = None
        self.backend: Optional[str] = None
        #: `memory` and `disk` in bytes, `pids`, `cpus`.
        self.limits: dict[str, Union[int, float]] = {}
        self.network: Optional[str] = None
        self.user: Union[None, str, int] = None
        self.isolation: Optional[str] = None
        self.source: Union[None, bool, str] = None
        #: What is wrong with the markers, a sentence each.
        self.mistakes: list[str] = []

    def names_machine(self) -> bool:
        """Whether another machine than the session's usual one is asked for."""
        return self.image is not None or self.backend is not None or self.isolation == "machine"


def wishes_of(item: pytest.Item) -> Wishes:
    """The markers of a test, its class, its module: needs and limits are joined, of the rest the nearest wins."""
    wishes = Wishes()
    for marker in reversed(list(item.iter_markers("testyard"))):
        if marker.args:
            wishes.mistakes.append(f"@pytest.mark.testyard takes names, not {marker.args[0]!r}: {', '.join(KEYS)}")
        for key, value in marker.kwargs.items():
            if key not in KEYS:
                wishes.mistakes.append(
                    f"@pytest.mark.testyard does not know {key!r}{near(key, KEYS)} (it knows {', '.join(KEYS)})"
                )
                continue
            try:
                _take(wishes, key, value)
            except ValueError as error:
                wishes.mistakes.append(f"@pytest.mark.testyard({key}=…): {error}")
    return wishes


def _take(wishes: Wishes, key: str, value: Any) -> None:
    if key == "needs":
        for word in [value] if isinstance(value, str) else _list(value):
            if word not in wishes.needs:
                wishes.needs.append(word)
    elif key == "limits":
        if not isinstance(value, dict):
            raise ValueError(f"a dict of {', '.join(LIMITS)} is wanted, not {value!r}")
        for name, limit in value.items():
            wishes.limits[_one_of(name, LIMITS)] = _size(limit) if name in ("memory", "disk") else _number(name, limit)
    elif key == "isolation":
        wishes.isolation = _one_of(value, ISOLATIONS)
    elif key == "network":
        wishes.network = _one_of(value, NETWORKS)
    elif key == "backend":
        wishes.backend = _one_of(value, BACKENDS)
    elif key == "source":
        if not isinstance(value, (bool, str)) and not hasattr(value, "__fspath__"):
            raise ValueError(f"True, False or a folder is wanted, not {value!r}")
        wishes.source = value if isinstance(value, bool) else str(value)
    elif key == "user":
        if isinstance(value, bool) or not isinstance(value, (str, int)) or value == "":
            raise ValueError(f"a user's name or number is wanted, not {value!r}")
        wishes.user = value
    else:
        if not isinstance(value, str) or not value.strip():
            raise ValueError(f"an image such as 'debian:12' is wanted, not {value!r}")
        wishes.image = value


def _list(value: Any) -> list[str]:
    if not isinstance(value, (list, tuple, set, frozenset)) or not all(isinstance(word, str) for word in value):
        raise ValueError(f"a word or a list of words is wanted, not {value!r}")
    return list(value)


def _one_of(word: Any, choices: tuple[str, ...]) -> str:
    if word not in choices:
        raise ValueError(f"{word!r} is none of {', '.join(choices)}{near(word, choices)}")
    return str(word)


def _number(name: str, value: Any) -> Union[int, float]:
    if (
        isinstance(value, bool)
        or not isinstance(value, (int, float))
        or value <= 0
        or (name == "pids" and value != int(value))
    ):
        raise ValueError(f"{name} is a number above 0, not {value!r}")
    return value


def _size(value: Any) -> int:
    found = given.size(value)
    if found is None:
        raise ValueError(f"{value!r} is no size: write bytes, or '512M'")
    return found
