"""Machines: long-lived places for tests."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Any, Iterable, Mapping, NamedTuple, Optional, Union

from . import _binary
from . import _given as given
from ._connection import Connections
from ._place import Path, Place, User
from ._retry import ensured
from .environment import Environment, environment_request
from .errors import (
    ConnectionLost,
    InvalidInput,
    MachineExists,
    MachineNotFound,
    ProtocolMismatch,
    WrongState,
)

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ._late import LateEnvironment
    from ._options import MachineOptions, ParkOptions

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,62}\Z")
Size = Union[None, int, str]
Duration = Union[None, int, float, str]


class MachineInfo(NamedTuple):
    """A machine as it was when somebody looked."""

    #: What people call it.
    name: str
    #: Ten letters and digits, stable across renames.
    id: str
    #: `creating`, `running`, `stopping`, `stopped`, `starting`, `failed` or `deleting`.
    state: str
    #: What made it: `namespace` or `host`.
    backend: str
    #: What it started from.
    image: str
    #: Default user of its commands; None means who asks.
    user: Optional[str]
    #: When it was created, in milliseconds since 1970-01-01 UTC.
    created_ms: int
    #: What it cannot isolate or limit, in sentences.
    limits: tuple[str, ...]
    #: Where it listens while it runs.
    socket: Optional[str]
    #: All that the program's JSON says.
    raw: Mapping[str, Any]


def machine_info(raw: Mapping[str, Any]) -> MachineInfo:
    """A machine of the program's JSON."""
    spec = raw["spec"]
    return MachineInfo(
        name=raw["name"],
        id=raw["id"],
        state=raw["state"],
        backend=spec["backend"],
        image=spec["image"],
        user=spec.get("user"),
        created_ms=raw["created_ms"],
        limits=tuple(raw.get("limits", ())),
        socket=raw.get("socket"),
        raw=raw,
    )


def fresh_name(prefix: str = "machine") -> str:
    """A name that nobody else has, whatever runs at the same time: the prefix and 64 random bits."""
    if not isinstance(prefix, str) or not _NAME.match(prefix[:46]):
        raise given.refused(
            prefix, "beginning of a machine's name", "use letters, digits, `-`, `_` and `.`, first a letter or digit"
        )
    return f"{prefix[:46]}-{os.urandom(8).hex()}"


class Machine(Place):
    """A machine. As a context manager it is deleted at the end where this object created it, else only let go of."""

    def __init__(self, info: MachineInfo, *, created: bool = False) -> None:
        if not isinstance(info, MachineInfo):
            hint = "find it: testyard.Machine.get(…), or make it: testyard.Machine.create(…)"
            raise given.refused(info, "machine that somebody looked at", hint)
        self._info = info
        self._created = created
        self._known = info.socket
        self._connections = Connections(self._socket, info.name)

    @classmethod
    def create(
        cls,
        name: Optional[str] = None,
        *,
        image: str = "host",
        backend: str = "auto",
        user: User = None,
        cpus: Optional[float] = None,
        memory: Size = None,
        disk: Size = None,
        arch: Optional[str] = None,
        privileged: bool = False,
        expose: Iterable[Path] = (),
        pass_env: Iterable[str] = (),
        idle: Duration = None,
        ttl: Duration = None,
        hold: bool = False,
    ) -> Machine:
        """Creates a machine and starts it; it exists, reachable, once this returns, and else nothing of it does.

        Without a name it gets one that nobody else has. Sizes are bytes or texts such as `"512M"`, durations seconds or
        texts such as `"10m"`: stopped after `idle`, deleted after `ttl`. With `hold` this process holds it from before
        anything of it is made, see `Machine.hold`. Raises MachineExists, InvalidInput, NotSupported (this host cannot),
        NotFound (no such image)."""
        chosen = fresh_name() if name is None else checked_name(name)
        options = create_options(
            image=image,
            backend=backend,
            user=user,
            cpus=cpus,
            memory=memory,
            disk=disk,
            arch=arch,
            privileged=privileged,
            expose=expose,
            pass_env=pass_env,
            idle=idle,
            ttl=ttl,
        )
        if hold:
            from . import _hold

            return cls(machine_info(_hold.create([chosen, *options])), created=True)
        answer = _binary.call(["create", chosen, *options])
        return cls(machine_info(answer["machine"]), created=True)

    @classmethod
    def get(cls, name: str) -> Machine:
        """The machine of this name, in whatever state.

        Raises MachineNotFound."""
        return cls(machine_info(_binary.call(["info", checked_name(name)])["machine"]))

    @classmethod
    def ensure(cls, name: str, **options: Unpack[MachineOptions]) -> Machine:
        """The machine of this name, running: created with these options where there is none, started where it is
        stopped. Whoever else does the same at the same time gets the same machine."""
        given.options(options, cls.create, "Machine.create")
        return ensured(
            f"machine {name}",
            get=lambda: cls.get(name),
            create=lambda: cls.create(name, **options),
            start=cls.start,
            absent=MachineNotFound,
            taken=MachineExists,
        )

    @staticmethod
    def list() -> list[MachineInfo]:
        """All machines of this home."""
        return [machine_info(one) for one in _binary.call(["list"])["machines"]]

    @property
    def name(self) -> str:
        """What people call it."""
        return self._info.name

    @property
    def id(self) -> str:
        """What it is called inside of Testyard, whatever its name."""
        return self._info.id

    @property
    def state(self) -> str:
        """Its state now."""
        return self.info().state

    def info(self) -> MachineInfo:
        """What there is to know about it now.

        Raises MachineNotFound where it was deleted."""
        return self._update(_binary.call(["info", self.name]))

    def start(self) -> None:
        """Starts it; fine when it runs already."""
        self._update(_binary.call(["start", self.name]))

    def stop(self, force: bool = False) -> None:
        """Ends its processes; its files stay. `force` kills at once."""
        self._connections.close()
        self._update(_binary.call(["stop", self.name, *_force(force)]))

    def restart(self, force: bool = False) -> None:
        """Stops and starts it."""
        self._connections.close()
        self._update(_binary.call(["restart", self.name, *_force(force)]))

    def delete(self, force: bool = False, missing_ok: bool = False) -> None:
        """Deletes it with all that is in it; `force` even while commands run in it.

        Raises Busy, and MachineNotFound unless `missing_ok`."""
        self._connections.close()
        try:
            _binary.call(["delete", self.name, *_force(force)])
        except MachineNotFound:
            if not missing_ok:
                raise
        _forget(self.name)

    def rename(self, new: str) -> None:
        """Gives it another name, which is its host name at once."""
        self._connections.close()
        self._update(_binary.call(["rename", self.name, checked_name(new)]))
        self._connections.machine = new

    def clone(self, new: Optional[str] = None) -> Machine:
        """Another machine with the same files, copy-on-write where the file system can."""
        self._connections.close()
        name = fresh_name(self.name) if new is None else checked_name(new)
        return Machine(machine_info(_binary.call(["clone", self.name, name])["machine"]), created=True)

    def logs(self) -> str:
        """What its supervisor and agent wrote."""
        return str(_binary.call(["logs", self.name])["log"])

    def status(self) -> dict[str, Any]:
        """What its agent is doing: clients, commands, environments, parked ones."""
        return dict(self._connections.ask("status")["status"])

    def environment(
        self,
        *,
        isolation: Optional[str] = None,
        network: Optional[str] = None,
        user: User = None,
        limits: Optional[Mapping[str, Any]] = None,
        host_name: Optional[str] = None,
        source: Optional[Path] = None,
        strict_limits: bool = False,
        layer: Optional[str] = None,
        cgroups: bool = False,
        ports: int = 0,
    ) -> Environment:
        """An environment in it, held until it is closed or this process ends, in about a millisecond.

        `limits` are `memory` and `disk` in bytes, `pids`, `cpus`. `source` is a folder of this host, shown at its own
        path, copy-on-write. `layer` names one that `Environment.seal` made. `cgroups` mounts its own control groups at
        `/sys/fs/cgroup`, for container runtimes. `ports` leases so many ports of the host. Without `isolation` it gets
        the strongest that this machine's backend gives: `namespace`, or `workspace` on backend `host`. Its `network` is
        `private` (the default), `outbound`, `host` or `none`; a workspace has the machine's, and asking for another one
        raises InvalidInput, or NotSupported where the backend has no more than workspaces."""
        if ports != 0:
            given.whole(ports, "number of ports", 1, 10_000)
        request = self._environment_request(
            isolation=isolation,
            network=network,
            user=user,
            limits=limits,
            host_name=host_name,
            source=source,
            strict_limits=strict_limits,
            layer=layer,
            cgroups=cgroups,
        )
        return Environment(self, request, ports=ports)

    def _late_environment(self, **options: Any) -> LateEnvironment:
        """The same, made at its first use."""
        from ._late import LateEnvironment

        return LateEnvironment(self, self._environment_request(**options))

    def park(self, count: int, **options: Unpack[ParkOptions]) -> None:
        """Keeps so many environments of this kind made ahead, for whoever asks next. The first are there then."""
        self._connections.ask(self._parking(count, options))

    def _park_meanwhile(self, count: int, **options: Any) -> None:
        """The same, without waiting for them."""
        self._connections.tell(self._parking(count, options))

    def _parking(self, count: int, options: Mapping[str, Any]) -> Any:
        given.whole(count, "number of environments", 0, 1 << 16)
        given.options(options, environment_request, "an environment that is made ahead")
        return {"park": [self._environment_request(**options), count]}

    def _environment_request(
        self, *, isolation: Optional[str] = None, network: Optional[str] = None, **options: Any
    ) -> dict[str, Any]:
        """What an environment of this machine is to be, in the protocol's words."""
        if isolation is None:
            # What a workspace cannot have is not taken from it in silence.
            isolation = self._strongest() if network in (None, "host") else "namespace"
        return environment_request(isolation=isolation, network=network, **options)

    def hold(self) -> None:
        """Deletes it when the last process that holds it is gone, however that ended."""
        from ._hold import hold

        hold(self.name)

    def unhold(self) -> None:
        """Lets go of it. Whoever is the last to do so deletes it."""
        from ._hold import unhold

        unhold(self.name)

    def close(self) -> None:
        """Closes what is open to it; it goes on running."""
        self._connections.close()

    def __enter__(self) -> Machine:
        return self

    def __exit__(self, *_: object) -> None:
        if self._created:
            self.delete(force=True, missing_ok=True)
        self.close()

    def __repr__(self) -> str:
        return f"<Machine {self.name} {self._info.backend}/{self._info.image}>"

    def _strongest(self) -> str:
        return "workspace" if self._info.backend == "host" else "namespace"

    def _place(self) -> Any:
        return "machine"

    def _socket(self) -> str:
        """Where it listens. Asked for again where it was not running when last seen."""
        if self._known is None or not os.path.exists(self._known):
            info = self.info()
            if info.socket is None and info.state == "running":
                raise ProtocolMismatch(
                    "the program testyard is older than this package",
                    causes=[f"{_binary.program()} does not say where machine {self.name} listens"],
                    hints=["install both in one version: pip install --force-reinstall testyard"],
                )
            if info.socket is None:
                kind = ConnectionLost if info.state in ("creating", "starting") else WrongState
                raise kind(f"machine {self.name} is {info.state}", hints=[f"start it: testyard start {self.name}"])
        assert self._known is not None
        return self._known

    def _update(self, answer: Mapping[str, Any]) -> MachineInfo:
        self._info = machine_info(answer["machine"])
        self._known = self._info.socket
        return self._info


def _forget(name: str) -> None:
    """A machine that is gone is held no more."""
    import sys

    # Where nothing was ever held, there is nothing to import.
    hold = sys.modules.get(f"{__package__}._hold")
    if hold is not None:
        hold.unhold(name)


def checked_name(name: str) -> str:
    """A machine's name as it was given.

    Raises InvalidInput where it is none."""
    if not isinstance(name, str) or not _NAME.match(name):
        raise InvalidInput(
            f"{name!r} is not a machine's name", hints=["use letters, digits, `-`, `_` and `.`, at most 63"]
        )
    return name


def create_options(**options: Any) -> list[str]:
    """Options of `Machine.create` and `Cluster.create` as the command line has them.

    Raises InvalidInput where one of them is none."""
    words: list[str] = []
    for name, value in options.items():
        flag = "--" + name.replace("_", "-")
        if value is None:
            continue
        if name in _FLAGS:
            words += [flag] if given.flag(value, name) else []
        elif name in _LISTS:
            if isinstance(value, (str, bytes, os.PathLike)) or not isinstance(value, Iterable):
                raise given.refused(value, f"value of {name}, which takes a list, not one text", f"write [{value!r}]")
            for one in value:
                words += [flag, given.text(one, f"part of {name}", empty=False)]
        else:
            words += [flag, _option(name, value)]
    return words


_FLAGS = ("privileged", "accounting", "slurmrestd", "cgroups", "outbound")
_LISTS = ("expose", "pass_env")


def _option(name: str, value: Any) -> str:
    """The value of one option in the command line's words."""
    if name in ("idle", "ttl"):
        return value if isinstance(value, str) else f"{given.milliseconds(value, name)}ms"
    if name == "cpus":
        return str(given.processors(value))
    if name in ("memory", "disk"):
        if not isinstance(value, str) and given.size(value) is None:
            raise given.refused(value, f"size, for {name}", "give bytes, or a text such as '512M'")
        return str(value)
    if name == "user":
        return str(given.user(value))
    if name == "gpus":
        return str(given.whole(value, "number of gpus", 0, 1 << 16))
    if name == "ssh_port":
        return str(given.whole(value, "port", 1, 65_535))
    return given.text(value, f"value of {name}")


def _force(force: bool) -> list[str]:
    return ["--force"] if force else []
