"""What the command line and the ini file say of the run's cluster. The command line comes first."""

from __future__ import annotations

from typing import Callable, NamedTuple, Optional

import pytest

from .._limits import MOST_NODES

MODES = ("bind", "sync", "wheel", "none")


class ClusterSettings(NamedTuple):
    """What the fixture `slurm_cluster` is to be."""

    #: A cluster of this name instead of one for this run; it stays.
    name: Optional[str] = None
    #: How many nodes it has.
    nodes: int = 2
    #: What its nodes start from; None where nobody says.
    image: Optional[str] = None
    #: A port of this host's loopback for SSH; None takes a free one.
    ssh_port: Optional[int] = None
    #: Who logs in.
    user: str = "slurm"
    #: What opens it.
    password: str = "slurm"
    #: Whether its jobs are accounted for.
    accounting: bool = False
    #: How the source comes to it.
    mode: str = "bind"
    #: The folder of the source; None is that of the ini file.
    source: Optional[str] = None
    #: What else of this host its nodes see, as `--expose` has it.
    expose: tuple[str, ...] = ()


def cluster_settings_of(config: pytest.Config, said: Callable[[str], Optional[str]]) -> ClusterSettings:
    """What is said; `said` gives an option's text. Raises pytest.UsageError."""
    from ._settings import near

    def number(name: str, most: int) -> Optional[int]:
        text = said(name)
        if text is None:
            return None
        if not text.isdigit() or not 1 <= int(text) <= most:
            raise pytest.UsageError(f"testyard_{name}: {text!r} is no number of 1 to {most}")
        return int(text)

    def noted(name: str) -> Optional[str]:
        return str(config.getini(f"testyard_{name}")).strip() or None

    usual = ClusterSettings()
    mode = said("cluster_mode") or usual.mode
    if mode not in MODES:
        raise pytest.UsageError(f"testyard_cluster_mode: {mode!r} is none of {', '.join(MODES)}{near(mode, MODES)}")
    return ClusterSettings(
        name=said("cluster"),
        nodes=number("cluster_nodes", MOST_NODES) or usual.nodes,
        image=said("cluster_image"),
        ssh_port=number("cluster_ssh_port", 65535),
        user=noted("cluster_user") or usual.user,
        password=noted("cluster_password") or usual.password,
        accounting=bool(config.getini("testyard_cluster_accounting")),
        mode=mode,
        source=noted("cluster_source"),
        expose=tuple(config.getini("testyard_cluster_expose")),
    )
