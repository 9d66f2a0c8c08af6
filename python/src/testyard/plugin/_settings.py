"""What the command line and the ini file say. The command line comes first."""

from __future__ import annotations

import re
from typing import NamedTuple, Optional

import pytest

from ._cluster_settings import ClusterSettings, cluster_settings_of

BACKENDS = ("auto", "namespace", "host")
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)?\Z")
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, None: 1.0}


class Settings(NamedTuple):
    """What the command line and the ini file say."""

    #: What machines start from; None where nobody says.
    image: Optional[str]
    #: What makes machines.
    backend: str
    #: A machine of this name instead of one for this run; it stays.
    machine: Optional[str]
    #: For how many seconds environments of failed tests are kept; None: not at all.
    keep_failed: Optional[float]
    #: A test that would be skipped for what this host lacks fails instead.
    no_skip: bool
    #: Environments show the working tree, copy-on-write, unless a marker says otherwise.
    source: bool
    #: The folder that the ini file is in.
    root: str
    #: What `slurm_cluster` is to be.
    cluster: ClusterSettings


def settings_of(config: pytest.Config) -> Settings:
    """What is said. Raises pytest.UsageError."""

    def said(name: str) -> Optional[str]:
        value = config.getoption(f"testyard_{name}") or config.getini(f"testyard_{name}")
        return str(value).strip() or None if value else None

    backend = said("backend") or "auto"
    if backend not in BACKENDS:
        raise pytest.UsageError(
            f"testyard_backend: {backend!r} is none of {', '.join(BACKENDS)}{near(backend, BACKENDS)}"
        )
    kept = said("keep_failed")
    try:
        keep_failed = None if kept is None else seconds(kept)
    except ValueError as error:
        raise pytest.UsageError(f"testyard_keep_failed: {error}") from None
    return Settings(
        image=said("image"),
        backend=backend,
        machine=said("machine"),
        keep_failed=keep_failed,
        no_skip=bool(config.getoption("testyard_no_skip") or config.getini("testyard_no_skip")),
        source=bool(config.getini("testyard_source")),
        root=str(config.rootpath),
        cluster=cluster_settings_of(config, said),
    )


def seconds(text: str) -> float:
    """A duration such as `90s`, `1h` or `1.5m`. Raises ValueError."""
    found = _DURATION.match(text.strip())
    if found is None or float(found.group(1)) <= 0:
        raise ValueError(f"{text!r} is no duration: write 90s, 30m or 1h")
    return float(found.group(1)) * _UNITS[found.group(2)]


def near(word: str, choices: tuple[str, ...]) -> str:
    """The nearest of what there is, as a half-sentence; nothing where none is near."""
    import difflib

    found = difflib.get_close_matches(str(word), choices, 1)
    return f"; did you mean {found[0]!r}?" if found else ""
