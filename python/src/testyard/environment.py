"""Environments: short-lived, isolated places in a machine."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Mapping, NamedTuple, Optional

from . import _given as given
from . import _protocol as protocol
from ._connection import Connection
from ._place import Path, Place, User
from .errors import ConnectionLost, InvalidInput, TestyardError

if TYPE_CHECKING:
    from .machine import Machine
    from .ports import Ports

ISOLATIONS = ("workspace", "namespace")
NETWORKS = ("private", "outbound", "host", "none")
#: The version of the protocol that has `enter-with`.
_SHOWS_THOSE_WHO_ENTER = 4


class Entered(NamedTuple):
    """An environment for a process that already runs. The descriptors are the caller's to close."""

    #: The process id of its init, on the host.
    pid: int
    #: The pidfd of its init.
    pidfd: int
    #: Its namespaces: user, mount, pid, ipc, uts, network, cgroup. Empty on backend `host`.
    namespaces: tuple[int, ...]
    #: One folder a cgroup hierarchy, to write the process into.
    cgroups: tuple[int, ...]


class Change(NamedTuple):
    """A path that is no longer as it was."""

    path: str
    #: `added`, `changed` or `deleted`.
    change: str
    #: `file`, `folder`, `link` or `special`.
    kind: str
    #: Bytes of a file.
    size: int
    #: Whether it is in the working tree; its path is absolute either way.
    in_source: bool


def environment_request(
    *,
    isolation: str = "namespace",
    network: Optional[str] = None,
    user: User = None,
    limits: Optional[Mapping[str, Any]] = None,
    host_name: Optional[str] = None,
    source: Optional[Path] = None,
    strict_limits: bool = False,
    layer: Optional[str] = None,
    cgroups: bool = False,
) -> dict[str, Any]:
    """What an environment is to be, in the protocol's words.

    Raises InvalidInput."""
    given.one_of(isolation, ISOLATIONS, "isolation")
    if network is None:
        network = "private" if isolation == "namespace" else "host"
    given.one_of(network, NETWORKS, "network")
    if isolation == "workspace" and network != "host":
        raise InvalidInput(
            f"isolation 'workspace' shares the machine's network, and cannot have network {network!r}",
            hints=["ask for isolation='namespace', or leave the network out"],
        )
    request: dict[str, Any] = {
        "isolation": isolation,
        "network": network,
        "user": protocol.user_of(user) or caller(),
        "limits": given.limits(limits),
        "strict_limits": given.flag(strict_limits, "strict_limits"),
    }
    if host_name is not None:
        request["host_name"] = given.text(host_name, "host name", empty=False)
    if source is not None:
        request["source"] = given.folder(source)
    if layer is not None:
        request["layer"] = given.text(layer, "name of a layer", empty=False)
    if given.flag(cgroups, "cgroups"):
        request["cgroups"] = True
    return request


def caller() -> Any:
    """Who asks, by number, as the protocol has it."""
    return {"numbered": {"uid": os.geteuid(), "gid": os.getegid(), "groups": os.getgroups()}}


class Environment(Place):
    """An environment that this process holds. It ends, with all that runs in it, when it is closed."""

    #: Ports of the host that are leased for it, also told to its commands as `TESTYARD_PORTS`.
    ports: list[int]
    #: Whether it had been made ahead.
    parked: bool
    _number: int
    _holder: Optional[Connection]
    _source: Optional[int]
    _ports: Optional[Ports]
    _work: Optional[str]

    def __init__(self, machine: Machine, request: dict[str, Any], *, ports: int = 0) -> None:
        self._set_up(machine, request)
        self._holder = machine._connections.take()
        try:
            if "source" in request:
                from ._source import open_source

                self._source = open_source(self._holder, request["source"])
            if ports:
                from .ports import Ports

                self._ports = Ports(key=f"{machine.name}/{os.getpid()}")
                # They go with the environment, also where nobody closes that.
                self._ports._lasting = False
                self.ports = self._ports.take(ports)
            self._adopt(self._holder.request({"environment": request}))
        except BaseException:
            self._let_go()
            raise

    def _set_up(self, machine: Machine, request: dict[str, Any]) -> None:
        self.machine = machine
        self._request = request
        self._connections = machine._connections
        self._holder, self._number, self.parked = None, 0, False
        self._source, self._ports, self.ports, self._work = None, None, [], None

    def _adopt(self, answer: Mapping[str, Any]) -> None:
        told = answer["environment"]
        self._number = int(told["id"])
        self.parked = bool(told.get("parked"))

    @property
    def id(self) -> str:
        """Its number as people see it: `e17`."""
        return f"e{self._number}"

    @property
    def isolation(self) -> str:
        """`namespace` or `workspace`."""
        return str(self._request["isolation"])

    @property
    def workspace(self) -> str:
        """A folder of its own that its commands may write in."""
        if self._work is None:
            script = 'd=${TESTYARD_WORKSPACE:-${TMPDIR:-/tmp}/work}; mkdir -p "$d" && printf %s "$d"'
            self._work = self.run(script, cwd="/").stdout
        return self._work

    def listening(self, port: int, timeout: float = 10.0) -> None:
        """Waits until something in its network accepts connections on a port of its loopback; `timeout` in seconds.

        Raises TimedOut."""
        patience = given.milliseconds(timeout, "a timeout")
        given.whole(port, "port", 1, 65_535)
        self._ask({"listening": {"environment": self._number, "port": port, "patience_ms": patience}})

    def keep(self, seconds: float) -> None:
        """Lets it live on for so long, whoever holds it."""
        self._ask({"keep": {"environment": self._number, "for_ms": given.milliseconds(seconds, "a time to keep")}})

    def fork(self, seconds: float = 3600.0) -> Environment:
        """Another environment with the same files, kept for at most so long."""
        lasting = given.milliseconds(seconds, "a time to keep")
        answer = self._ask({"fork": {"environment": self._number, "for_ms": lasting}})
        other = Environment.__new__(Environment)
        other._set_up(self.machine, self._request)
        other._holder, other._work = self._connections.take(), self._work
        other._adopt(answer)
        return other

    def seal(self, layer: str) -> None:
        """A snapshot: keeps what was changed in it as a layer of this name, for environments made with `layer=`.
        Lower-case letters and digits. It lives as long as the machine runs."""
        name = given.text(layer, "name of a layer", empty=False)
        self._ask({"seal": {"environment": self._number, "layer": name}})

    def changes(self, limit: int = 10_000) -> list[Change]:
        """What was written, changed and deleted in it, at most `limit` paths."""
        import json

        given.whole(limit, "number of paths", 0, 1 << 32)
        reading, writing = os.pipe()
        lines: list[bytes] = []

        def read() -> None:
            with open(reading, "rb") as source:
                lines.extend(source)

        import threading

        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        try:
            self._ask({"changes": {"environment": self._number, "limit": limit}}, [writing])
        finally:
            os.close(writing)
            reader.join()
        top = "/"
        found: list[Change] = []
        for line in lines:
            told = json.loads(line)
            if "source" in told:
                top = protocol.unraw(told["source"])
            elif "entry" in told:
                entry = told["entry"]
                inside = entry["part"] == "source"
                path = os.path.join(top if inside else "/", protocol.unraw(entry["path"]))
                found.append(Change(path, entry["change"], entry["file"], entry.get("size", 0), inside))
        return found

    def enter(self) -> Entered:
        """Hands it out to a process that already runs: descriptors of its init, namespaces and cgroups."""
        self._check_open()
        attached: list[int] = []
        if self._source is None or self._holder is None:
            told = self._ask({"enter": self._number}, attached=attached)["entered"]
        elif self._holder.version < _SHOWS_THOSE_WHO_ENTER:
            # The working tree appears with the first command that names it.
            self.run(["/bin/true"], cwd="/", user="root")
            told = self._ask({"enter": self._number}, attached=attached)["entered"]
        else:
            # Over the connection that the source was shown on.
            showing = {"enter-with": {"environment": self._number, "source": self._source}}
            told = self._holder.request(showing, attached=attached)["entered"]
        count = 1 + int(told.get("namespaces", 0))
        if told.get("changes"):
            # Where its changes to the source are, which `changes` tells.
            os.close(attached.pop(count))
        return Entered(int(told["pid"]), attached[0], tuple(attached[1:count]), tuple(attached[count:]))

    def close(self) -> None:
        """Ends it, with all that runs in it. Fine to call twice."""
        holder, self._holder = self._holder, None
        if holder is None:
            return
        try:
            holder.request({"release": self._number})
        except ConnectionLost:
            holder.close()  # The machine is gone, and the environment with it.
        except TestyardError:
            holder.close()
            raise
        else:
            # A source lives as long as its connection.
            if self._source is None:
                self._connections.give_back(holder)
            else:
                holder.close()
        finally:
            self._let_go()

    def _let_go(self) -> None:
        if self._ports is not None:
            self._ports.release()
        holder, self._holder = self._holder, None
        if holder is not None:
            holder.close()

    def __enter__(self) -> Environment:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Environment {self.id} of {self.machine.name}{'' if self._holder else ', closed'}>"

    def _ask(self, request: Any, descriptors: Any = (), attached: Optional[list[int]] = None) -> dict[str, Any]:
        self._check_open()
        return self._connections.ask(request, descriptors, attached)

    def _check_open(self) -> None:
        if self._holder is None:
            raise InvalidInput(f"environment {self.id} of {self.machine.name} is closed")

    def _place(self) -> Any:
        self._check_open()
        return {"environment": self._number}

    def _environment(self) -> Optional[int]:
        self._check_open()
        return self._number

    def _extras(self) -> dict[str, Any]:
        extras: dict[str, Any] = {"ports": self.ports}
        if self._source is not None:
            extras["source"] = self._source
        return extras
