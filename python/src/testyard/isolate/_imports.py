"""Modules that a test imported first: imported here as well, so that no later test has to.

Without isolation a module that one test imports is there for all that follow. A fork takes it along when it ends, and
each test would import it anew. So a fork tells which it imported, and its parent imports them while other tests run.
Only what lies in the interpreter's own library or among installed packages, and is found there by the parent too: what
the suite itself has may be made, changed or hidden by a test.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import importlib.util
import itertools
import os
import site
import sys
import sysconfig
import types
import warnings
from typing import Any, Iterable, Iterator


def _libraries() -> tuple[str, ...]:
    paths = sysconfig.get_paths()
    folders = [paths[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    with contextlib.suppress(AttributeError):
        folders += [*site.getsitepackages(), site.getusersitepackages()]
    return tuple({prefix for folder in folders for prefix in (folder + os.sep, os.path.realpath(folder) + os.sep)})


class Imports:
    """What forks imported, and this process is still to import."""

    def __init__(self, config: Any, wanted: bool) -> None:
        self._config = config
        self._wanted = wanted
        self._libraries = _libraries()
        self._coming: dict[str, str] = {}
        self._refused: set[str] = set()

    def since(self, count: int) -> list[tuple[str, str]]:
        """In a fork: names and files of what was imported since there were `count` modules, in order."""
        grown = len(sys.modules) - count
        if not self._wanted or grown <= 0:
            return []
        # The newest are last; to look at the others would copy the pages that they lie on.
        newest = list(itertools.islice(reversed(sys.modules), grown))
        found = []
        for name in reversed(newest):
            module = sys.modules.get(name)
            origin = getattr(getattr(module, "__spec__", None), "origin", None)
            if isinstance(module, types.ModuleType) and self._is_library(origin):
                found.append((name, str(origin)))
        return found

    def hear(self, modules: Iterable[tuple[str, str]]) -> None:
        """Takes what a fork told."""
        for name, origin in modules:
            if name not in sys.modules and name not in self._refused:
                self._coming[name] = origin

    def bring(self) -> None:
        """Imports what was told of. Nothing is printed or raised but KeyboardInterrupt: what cannot be imported is the
        tests' to find out."""
        if not self._coming:
            return
        coming, self._coming = self._coming, {}
        with _quiet(self._config):
            for name, origin in coming.items():
                if name not in sys.modules and not self._import(name, origin):
                    self._refused.add(name)
        gc.freeze()

    def _import(self, name: str, origin: str) -> bool:
        above = name.rpartition(".")[0]
        if above and above not in sys.modules:
            return False
        try:
            spec = importlib.util.find_spec(name)
            if spec is None or spec.origin != origin:
                return False
            importlib.import_module(name)
        except KeyboardInterrupt:
            raise
        except BaseException:
            return False
        return True

    def _is_library(self, origin: Any) -> bool:
        return isinstance(origin, str) and origin.startswith(self._libraries)


@contextlib.contextmanager
def _quiet(config: Any) -> Iterator[None]:
    capture = config.pluginmanager.getplugin("capturemanager")
    if capture is not None:
        capture.resume_global_capture()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        if capture is not None:
            capture.suspend_global_capture(in_=False)
            capture.read_global_capture()
