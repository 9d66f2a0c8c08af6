"""Clusters: several machines on one network that work as one system, such as Slurm."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Iterable, Mapping, NamedTuple, Optional

from . import _binary
from . import _given as given
from . import _protocol as protocol
from ._limits import MOST_NODES
from ._place import Path, Place, User
from ._process import Completed, Process, Text
from ._retry import ensured
from .errors import ClusterExists, ClusterNotFound, InvalidInput, WrongState
from .machine import Duration, Machine, Size, checked_name, create_options, fresh_name

if TYPE_CHECKING:
    import builtins

    from typing_extensions import Unpack

    from ._options import ClusterOptions, SpawnOptions

KINDS = ("slurm",)


class SshAddress(NamedTuple):
    """Where a cluster's first node takes SSH connections, and as whom."""

    #: Always an address of this host's loopback.
    host: str
    #: Where it listens there.
    port: int
    #: Who logs in.
    user: str
    #: What opens it; None where only keys do. It holds in this cluster alone.
    password: Optional[str]
    #: A file with the user's private key, which opens it, too.
    identity: Optional[str]


class ClusterNode(NamedTuple):
    """A node as it was when somebody looked."""

    #: Its host name, which every node of the cluster resolves.
    name: str
    #: The machine that it is: `testyard exec MACHINE`, `testyard.Machine.get(MACHINE)`.
    machine: str
    #: Its IPv4 address in the cluster's own network.
    address: Optional[str]
    #: What its machine is: `running`, `cut` (its network leads nowhere), `down` or `absent`.
    state: str
    #: What the controller says of it: `idle`, `mixed`, `down*` …; None where it was not asked.
    slurm: Optional[str]


class ClusterInfo(NamedTuple):
    """A cluster as it was when somebody looked."""

    #: What people call it.
    name: str
    #: `creating`, `running` (it was ready once), `stopped` or `deleting`.
    state: str
    #: What runs it: `slurm`.
    kind: str
    #: Its nodes; the first one is the controller, and takes SSH connections.
    nodes: tuple[ClusterNode, ...]
    #: Where SSH is; None while it does not run.
    ssh: Optional[SshAddress]
    #: Who its commands run as.
    user: str
    #: Its partitions by name; the first is the default.
    partitions: tuple[str, ...]
    #: What its nodes start from.
    image: str
    #: Paths of this host that its nodes see, as `--expose` has them.
    expose: tuple[str, ...]
    #: When it was created, in milliseconds since 1970-01-01 UTC.
    created_ms: int
    #: All that the program's JSON says.
    raw: Mapping[str, Any]


class Cluster:
    """A cluster. As a context manager it is deleted at the end where this object created it, else only let go of."""

    __test__ = False

    def __init__(self, info: ClusterInfo, *, created: bool = False) -> None:
        if not isinstance(info, ClusterInfo):
            hint = "find it: testyard.Cluster.get(…), or make it: testyard.Cluster.create(…)"
            raise given.refused(info, "cluster that somebody looked at", hint)
        self._info = info
        self._created = created
        self._machines: dict[str, Machine] = {}

    @classmethod
    def create(
        cls,
        name: Optional[str] = None,
        *,
        kind: str = "slurm",
        nodes: int = 1,
        cpus: Optional[int] = None,
        memory: Size = None,
        partitions: Iterable[str] = (),
        accounting: bool = False,
        slurmrestd: bool = False,
        gpus: Optional[int] = None,
        cgroups: bool = False,
        outbound: bool = False,
        ssh_port: Optional[int] = None,
        user: Optional[str] = None,
        password: Optional[str] = None,
        image: Optional[str] = None,
        expose: Iterable[Path] = (),
        ttl: Duration = None,
        hold: bool = False,
    ) -> Cluster:
        """Creates a cluster and starts it: once this returns every node is idle and answers, and else nothing of it is.

        `nodes` is 1 to 200; `cpus` and `memory` (bytes, or texts such as `"4G"`) are what each node declares, whatever
        the host has. `ssh_port` is a port of this host's loopback; without one a free port is taken. `expose` shows
        folders of this host on every node, such as `"/srv/data:ro"`. With `hold` this process holds it from before
        anything of it is made. Raises ClusterExists, InvalidInput, NotSupported, NotFound (no such image)."""
        given.one_of(kind, KINDS, "kind of cluster")
        chosen = fresh_name("cluster")[:40] if name is None else checked_name(name)
        options = cluster_options(
            nodes=nodes,
            cpus=cpus,
            memory=memory,
            partitions=partitions,
            accounting=accounting,
            slurmrestd=slurmrestd,
            gpus=gpus,
            cgroups=cgroups,
            outbound=outbound,
            ssh_port=ssh_port,
            user=user,
            password=password,
            image=image,
            expose=expose,
            ttl=ttl,
        )
        words = [kind, chosen, *options]
        if hold:
            from . import _hold

            return cls(cluster_info(_hold.create_cluster(words)), created=True)
        return cls(cluster_info(_binary.call(["cluster", "create", *words])["cluster"]), created=True)

    @classmethod
    def get(cls, name: str) -> Cluster:
        """The cluster of this name, in whatever state.

        Raises ClusterNotFound."""
        return cls(cluster_info(_binary.call(["cluster", "info", checked_name(name)])["cluster"]))

    @classmethod
    def ensure(cls, name: str, **options: Unpack[ClusterOptions]) -> Cluster:
        """The cluster of this name, running: created with these options where there is none, started where it is
        stopped. Whoever else does the same at the same time gets the same cluster."""
        given.options(options, cls.create, "Cluster.create")
        return ensured(
            f"cluster {name}",
            get=lambda: cls.get(name),
            create=lambda: cls.create(name, **options),
            start=cls.start,
            absent=ClusterNotFound,
            taken=ClusterExists,
        )

    @staticmethod
    def list() -> list[ClusterInfo]:
        """All clusters of this home."""
        return [cluster_info(one) for one in _binary.call(["cluster", "list"])["clusters"]]

    @property
    def name(self) -> str:
        """What people call it."""
        return self._info.name

    @property
    def state(self) -> str:
        """Its state now."""
        return self.info().state

    @property
    def user(self) -> str:
        """Who its commands run as, and who logs in."""
        return self._info.user

    @property
    def ssh(self) -> SshAddress:
        """Where its first node takes SSH connections, and as whom.

        Raises WrongState where it does not run."""
        told = self._info.ssh or self.info().ssh
        if told is None:
            raise WrongState(f"cluster {self.name} is {self._info.state}, and takes no SSH connections")
        return told

    @property
    def nodes(self) -> builtins.list[Machine]:
        """Its nodes, each a machine; the first one is the controller."""
        return [self._machine(node) for node in self._info.nodes]

    @property
    def head(self) -> Machine:
        """The first node: the controller, and where SSH connections end."""
        return self._machine(self._info.nodes[0])

    def node(self, name: str) -> Machine:
        """The node of this host name, or of this machine's name.

        Raises InvalidInput, which names those that there are."""
        for node in self._info.nodes:
            if name in (node.name, node.machine):
                return self._machine(node)
        there = ", ".join(node.name for node in self._info.nodes)
        raise InvalidInput(f"cluster {self.name} has no node {name!r}", hints=[f"it has {there}"])

    def info(self) -> ClusterInfo:
        """What there is to know about it now.

        Raises ClusterNotFound where it was deleted."""
        return self._update(_binary.call(["cluster", "info", self.name])["cluster"])

    def run(
        self,
        command: protocol.Command,
        *,
        node: Optional[str] = None,
        user: User = None,
        check: bool = True,
        timeout: Optional[float] = None,
        cwd: Optional[Path] = None,
        env: Optional[Mapping[str, str]] = None,
        input: Optional[Text] = None,
        text: bool = True,
    ) -> Completed:
        """Runs a command on a node, the first one unless another is named, as the cluster's user in their home.

        As `Machine.run` otherwise."""
        place, chosen = self._where(node, {"user": user, "cwd": cwd})
        return place.run(command, check=check, timeout=timeout, env=env, input=input, text=text, **chosen)

    def spawn(
        self, command: protocol.Command, *, node: Optional[str] = None, **options: Unpack[SpawnOptions]
    ) -> Process:
        """Starts a command on a node, as `Machine.spawn`."""
        given.options(options, Place.spawn, "Cluster.spawn")
        place, chosen = self._where(node, options)
        return place.spawn(command, **chosen)

    def scale(self, nodes: int) -> None:
        """Makes it so many nodes, 1 to 200: the last ones go, or new ones come."""
        _checked_nodes(nodes)
        self._update(_binary.call(["cluster", "scale", self.name, f"--nodes={nodes}"])["cluster"])

    def stop(self) -> None:
        """Ends its daemons in good order, then its nodes. Its files stay: `start` goes on with them."""
        self.close()
        self._update(_binary.call(["cluster", "stop", self.name])["cluster"])

    def start(self) -> None:
        """Starts it, or what of it is down; once this returns every node answers."""
        self.close()
        self._update(_binary.call(["cluster", "start", self.name])["cluster"])

    def fail(self, node: str) -> None:
        """Ends everything on a node at once, as if its power had failed. Its files stay."""
        self._change("fail", node)

    def drain(self, node: str) -> None:
        """Takes a node out of service: its jobs go on, it gets no others."""
        self._change("drain", node)

    def cut(self, node: str) -> None:
        """Cuts a node off from the others: it goes on alone."""
        self._change("cut", node)

    def restore(self, node: str) -> None:
        """Brings a node back that was failed, drained or cut off; once this returns it would get a job."""
        self._change("restore", node)

    def fork(self, new: Optional[str] = None) -> Cluster:
        """Another cluster with the same files, with keys, addresses and daemons of its own. This one must be stopped.

        Raises WrongState where it is not, ClusterExists."""
        name = fresh_name(self.name)[:40] if new is None else checked_name(new)
        return Cluster(cluster_info(_binary.call(["cluster", "fork", self.name, name])["cluster"]), created=True)

    def delete(self, missing_ok: bool = False) -> None:
        """Deletes it with all that is in it.

        Raises ClusterNotFound unless `missing_ok`."""
        self.close()
        try:
            _binary.call(["cluster", "delete", self.name])
        except ClusterNotFound:
            if not missing_ok:
                raise

    def hold(self) -> None:
        """Deletes it when the last process that holds it is gone, however that ended."""
        from . import _hold

        _hold.hold_cluster(self.name)

    def unhold(self) -> None:
        """Lets go of it. Whoever is the last to do so deletes it."""
        from . import _hold

        _hold.unhold_cluster(self.name)

    def close(self) -> None:
        """Closes what is open to its nodes; it goes on running."""
        machines, self._machines = self._machines, {}
        for machine in machines.values():
            machine.close()

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *_: object) -> None:
        if self._created:
            self.delete(missing_ok=True)
        self.close()

    def __repr__(self) -> str:
        return f"<Cluster {self.name} {self._info.kind}, {len(self._info.nodes)} nodes>"

    def _where(self, node: Optional[str], options: Mapping[str, Any]) -> tuple[Machine, dict[str, Any]]:
        """The node, and the options of a command there: the cluster's user in their home where nobody else is named."""
        place = self.head if node is None else self.node(node)
        user = options.get("user") or self.user
        home = f"/home/{self.user}" if user == self.user else None
        return place, {**options, "user": user, "cwd": options.get("cwd") or home}

    def _change(self, how: str, node: str) -> None:
        # One that ends takes its connections with it.
        self.close()
        self._update(_binary.call(["cluster", "node", how, self.name, checked_name(node)])["cluster"])

    def _machine(self, node: ClusterNode) -> Machine:
        known = self._machines.get(node.machine)
        if known is None:
            known = self._machines[node.machine] = Machine.get(node.machine)
        return known

    def _update(self, raw: Mapping[str, Any]) -> ClusterInfo:
        self._info = cluster_info(raw)
        for gone in set(self._machines) - {node.machine for node in self._info.nodes}:
            self._machines.pop(gone).close()
        return self._info


def cluster_info(raw: Mapping[str, Any]) -> ClusterInfo:
    """A cluster of the program's JSON."""
    spec = raw["spec"]
    users = spec.get("users") or [{"name": "root"}]
    nodes = tuple(
        ClusterNode(one["name"], one["name"], one.get("address"), one["state"], one.get("slurm"))
        for one in raw["nodes"]
    )
    ssh = raw.get("ssh")
    address = None
    if ssh:
        passwords = {user["name"]: user.get("password") for user in users}
        address = SshAddress(
            ssh["host"], int(ssh["port"]), ssh["user"], passwords.get(ssh["user"]), ssh.get("identity")
        )
    return ClusterInfo(
        name=raw["name"],
        state=raw["state"],
        kind=raw["kind"],
        nodes=nodes,
        ssh=address,
        user=users[0]["name"],
        partitions=tuple(str(one).split(":")[0] for one in spec.get("partitions", ())),
        image=spec.get("image", "host"),
        expose=tuple(spec.get("expose", ())),
        created_ms=raw["created_ms"],
        raw=raw,
    )


def cluster_options(*, nodes: int, partitions: Iterable[str], **options: Any) -> list[str]:
    """Options of `Cluster.create` as the command line has them."""
    if isinstance(partitions, (str, bytes)) or not isinstance(partitions, Iterable):
        hint = f"write [{partitions!r}]"
        raise given.refused(partitions, "value of partitions, which takes a list, not one text", hint)
    named = [given.text(one, f"partition in {partitions!r}", empty=False) for one in partitions]
    words = ["--nodes", str(_checked_nodes(nodes))]
    if named:
        words += ["--partitions", ",".join(named)]
    return words + create_options(**options)


def _checked_nodes(count: int) -> int:
    return given.whole(count, "number of nodes", 1, MOST_NODES)
