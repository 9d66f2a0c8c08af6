"""Options and ini keys of `--testyard-isolate`. Light: read whenever the plugin is there, used or not."""

from __future__ import annotations

import argparse
from typing import Any, Optional, Sequence, Union

_MOST = 64


class _Isolate(argparse.Action):
    """`--testyard-isolate`, and `--testyard-isolate=N` without taking the next argument for N."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Union[str, Sequence[Any], None],
        option_string: Optional[str] = None,
    ) -> None:
        _, _, count = (option_string or "").partition("=")
        setattr(namespace, self.dest, count or "1")


def add_options(parser: Any) -> None:
    """Adds them, once."""
    group = parser.getgroup("testyard", "Testyard")
    name = "--testyard-isolate"
    try:
        group.addoption(
            name,
            action=_Isolate,
            nargs=0,
            dest="testyard_isolate",
            default=None,
            help="run each test in an environment of its own, forked from this warm interpreter; with =N, or =auto, "
            "so many tests at once",
        )
    except ValueError:
        return
    counts = ["auto", *map(str, range(1, _MOST + 1))]
    group.addoption(
        *(f"{name}={count}" for count in counts),
        action=_Isolate,
        nargs=0,
        dest="testyard_isolate",
        default=None,
        help=argparse.SUPPRESS,
    )
    group.addoption(
        "--testyard-isolate-network",
        choices=("private", "outbound", "host", "none"),
        default=None,
        help="the network of isolated tests (default: private, a loopback of each test's own)",
    )
    parser.addini(
        "testyard_outputs", "patterns of files that isolated tests leave in the tree, beside caches", type="linelist"
    )
    parser.addini(
        "testyard_isolate_imports",
        "installed modules that an isolated test imports first are imported once for all tests after it",
        type="bool",
        default=True,
    )
    parser.addini("testyard_isolate_network", "as --testyard-isolate-network", default="private")
    parser.addini("testyard_expose", "paths of this host that isolated tests see although masked", type="linelist")
