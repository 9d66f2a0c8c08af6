"""Testyard gives tests real machines: warm ones, with an isolated environment for each test.

    import testyard

    with testyard.Machine.create() as machine, machine.environment() as environment:
        print(environment.run("uname -a").stdout)

Everything here blocks; `testyard.aio` has the same for asyncio."""

from __future__ import annotations

# Not the one of `typing`, whose import would cost more than all of this.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ._process import DEVNULL as DEVNULL
    from ._process import PIPE as PIPE
    from ._process import Completed as Completed
    from ._process import Process as Process
    from .cluster import Cluster as Cluster
    from .cluster import ClusterInfo as ClusterInfo
    from .environment import Change as Change
    from .environment import Environment as Environment
    from .errors import BinaryNotFound as BinaryNotFound
    from .errors import Busy as Busy
    from .errors import ClusterExists as ClusterExists
    from .errors import ClusterNotFound as ClusterNotFound
    from .errors import CommandFailed as CommandFailed
    from .errors import CommandNotStarted as CommandNotStarted
    from .errors import CommandTimedOut as CommandTimedOut
    from .errors import ConnectionLost as ConnectionLost
    from .errors import InfrastructureError as InfrastructureError
    from .errors import InvalidInput as InvalidInput
    from .errors import MachineExists as MachineExists
    from .errors import MachineNotFound as MachineNotFound
    from .errors import NotFound as NotFound
    from .errors import NotSupported as NotSupported
    from .errors import PermissionRefused as PermissionRefused
    from .errors import PortsExhausted as PortsExhausted
    from .errors import ProtocolMismatch as ProtocolMismatch
    from .errors import TestyardError as TestyardError
    from .errors import TimedOut as TimedOut
    from .errors import WrongState as WrongState
    from .image import Image as Image
    from .machine import Machine as Machine
    from .machine import MachineInfo as MachineInfo
    from .pool import Pool as Pool
    from .ports import Ports as Ports

# Where each name is; it is imported at its first use, so that `import testyard` costs next to nothing.
_HOMES = {
    "_process": ("DEVNULL", "PIPE", "Completed", "Process"),
    "cluster": ("Cluster", "ClusterInfo"),
    "environment": ("Change", "Environment"),
    "errors": (
        "BinaryNotFound",
        "Busy",
        "ClusterExists",
        "ClusterNotFound",
        "CommandFailed",
        "CommandNotStarted",
        "CommandTimedOut",
        "ConnectionLost",
        "InfrastructureError",
        "InvalidInput",
        "MachineExists",
        "MachineNotFound",
        "NotFound",
        "NotSupported",
        "PermissionRefused",
        "PortsExhausted",
        "ProtocolMismatch",
        "TestyardError",
        "TimedOut",
        "WrongState",
    ),
    "image": ("Image",),
    "machine": ("Machine", "MachineInfo"),
    "pool": ("Pool",),
    "ports": ("Ports",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [*_HOME_OF, "doctor"]


def __getattr__(name: str) -> Any:
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def doctor(refresh: bool = False) -> dict[str, Any]:
    """What this host can do, found out by doing it: the JSON of `testyard doctor`."""
    from ._binary import call

    return call(["doctor", *(["--refresh"] if refresh else [])])
