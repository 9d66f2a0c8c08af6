"""What runs at the start of Python on a cluster's nodes, there called `_testyard_live`: live sources come first.

It stands alone, in an environment of its own, and reads `_testyard_live.json` beside it. Modules below the roots are
compiled from their source at each start: a cached one is told from its source by its size and its time in whole
seconds, and would hide an edit that changes neither.
"""

from __future__ import annotations

import json
import os
import site
import sys
from importlib.machinery import EXTENSION_SUFFIXES, SOURCE_SUFFIXES, ExtensionFileLoader, FileFinder, SourceFileLoader
from typing import Any, Callable

_INSTALLED = ("site-packages", "dist-packages")


class LiveLoader(SourceFileLoader):
    """Reads the source, whatever was compiled before, and leaves nothing compiled behind."""

    def path_stats(self, path: Any) -> Any:
        """Nothing, so that no cached module is looked for or written."""
        raise OSError(f"{path} is read anew each time")


def _hook(root: str) -> Callable[[str], FileFinder]:
    inside = root.rstrip("/") + "/"

    def finder(path: str) -> FileFinder:
        below = os.path.abspath(path) + "/"
        installed = any(f"/{name}/" in below for name in _INSTALLED)
        # A script's own path is asked for as well.
        if installed or not below.startswith(inside) or not os.path.isdir(path):
            raise ImportError(f"{path} is no live source")
        return FileFinder(path, (ExtensionFileLoader, EXTENSION_SUFFIXES), (LiveLoader, SOURCE_SUFFIXES))

    return finder


def install() -> None:
    """Puts the live sources first, and behind everything else what the client has installed."""
    with open(os.path.join(os.path.dirname(__file__), "_testyard_live.json"), encoding="utf-8") as file:
        told = json.load(file)
    if told["tree"]:
        sys.path_hooks.insert(0, _hook(told["tree"]))
        sys.path_importer_cache.clear()
    for folder in told["packages"]:
        site.addsitedir(folder)
    for folder in reversed(told["sources"]):
        while folder in sys.path:
            sys.path.remove(folder)
        sys.path.insert(0, folder)
