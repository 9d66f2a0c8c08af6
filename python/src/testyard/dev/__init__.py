"""The `dev` surface of GPU-cloud SDKs on a machine of Testyard: one machine per developer, each command in a fresh
container on it.

    from testyard.dev import dev

    dev.ensure_started()
    dev.exec("python train.py")

What a command leaves in `/tmp` and at home the next one finds; whatever else it writes goes with it. Nothing is
imported before it is used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .client import Flow as Flow
    from .environment import DevEnvironment as DevEnvironment
    from .environment import DevStatus as DevStatus
    from .environment import DevTask as DevTask
    from .environment import TaskStatus as TaskStatus
    from .errors import DevContainerError as DevContainerError
    from .errors import DevError as DevError
    from .errors import DevVMNotFoundError as DevVMNotFoundError
    from .errors import DevVMStartupError as DevVMStartupError
    from .isolation import IsolatedEnvironment as IsolatedEnvironment
    from .isolation import IsolationManager as IsolationManager
    from .isolation import TestResult as TestResult
    from .isolation import isolated_test_environment as isolated_test_environment
    from .runner import ConcurrentTestRunner as ConcurrentTestRunner
    from .runner import TestSummary as TestSummary

    dev: DevEnvironment

_HOMES = {
    "client": ("Flow",),
    "environment": ("DevEnvironment", "DevStatus", "DevTask", "TaskStatus"),
    "errors": ("DevContainerError", "DevError", "DevVMNotFoundError", "DevVMStartupError"),
    "isolation": ("IsolatedEnvironment", "IsolationManager", "TestResult", "isolated_test_environment"),
    "runner": ("ConcurrentTestRunner", "TestSummary"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "ConcurrentTestRunner",
    "DevContainerError",
    "DevEnvironment",
    "DevError",
    "DevStatus",
    "DevTask",
    "DevVMNotFoundError",
    "DevVMStartupError",
    "Flow",
    "IsolatedEnvironment",
    "IsolationManager",
    "TaskStatus",
    "TestResult",
    "TestSummary",
    "dev",
    "isolated_test_environment",
]


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name == "dev":
        value = import_module(f"{__name__}.environment").DevEnvironment()
    elif name in _HOME_OF:
        value = getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
