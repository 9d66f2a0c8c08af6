"""The same machines for asyncio: each call is awaited, and done in a thread meanwhile.

    async with await testyard.aio.Machine.create() as machine:
        print((await machine.run("uname -a")).stdout)

A command whose caller is cancelled is ended with all that it started."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Mapping, Optional, Sequence

from . import _given as given
from . import cluster as _cluster
from . import doctor as _doctor
from . import environment as _environment
from . import image as _image
from . import machine as _machine
from . import pool as _pool
from ._async import AsyncPlace, Face, Held, Process, call, made, run
from ._place import Path, User
from ._process import Completed, Text
from ._process import Process as _Process
from ._protocol import Command
from .errors import InvalidInput

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ._options import ClusterOptions, EnvironmentOptions, MachineOptions, ParkOptions, PullOptions, SpawnOptions

__all__ = ["Cluster", "Environment", "Image", "Machine", "Pool", "Process", "doctor"]


async def doctor(refresh: bool = False) -> dict[str, Any]:
    """As `testyard.doctor`."""
    return await call(_doctor, refresh)


def _delete(machine: _machine.Machine) -> None:
    machine.delete(force=True, missing_ok=True)


def _delete_cluster(cluster: _cluster.Cluster) -> None:
    cluster.delete(missing_ok=True)


class Environment(AsyncPlace[_environment.Environment]):
    """An environment that this process holds."""

    _of = _environment.Environment

    @property
    def id(self) -> str:
        """Its number as people see it."""
        return self.blocking.id

    @property
    def machine(self) -> Machine:
        """The machine that it is in."""
        return Machine(self.blocking.machine)

    @property
    def isolation(self) -> str:
        """`namespace` or `workspace`."""
        return self.blocking.isolation

    @property
    def parked(self) -> bool:
        """Whether it had been made ahead."""
        return self.blocking.parked

    @property
    def ports(self) -> list[int]:
        """Ports of the host that are leased for it."""
        return self.blocking.ports

    async def workspace(self) -> str:
        """A folder of its own that its commands may write in."""
        return await call(lambda: self.blocking.workspace)

    async def listening(self, port: int, timeout: float = 10.0) -> None:
        """As `Environment.listening`."""
        await call(self.blocking.listening, port, timeout)

    async def keep(self, seconds: float) -> None:
        """As `Environment.keep`."""
        await call(self.blocking.keep, seconds)

    async def fork(self, seconds: float = 3600.0) -> Environment:
        """As `Environment.fork`."""
        return Environment(await made(_environment.Environment.close, self.blocking.fork, seconds))

    async def seal(self, layer: str) -> None:
        """As `Environment.seal`."""
        await call(self.blocking.seal, layer)

    async def changes(self, limit: int = 10_000) -> list[_environment.Change]:
        """As `Environment.changes`."""
        return await call(self.blocking.changes, limit)

    async def enter(self) -> _environment.Entered:
        """As `Environment.enter`."""
        return await call(self.blocking.enter)


class Machine(AsyncPlace[_machine.Machine], Held[_machine.Machine]):
    """A machine."""

    _of = _machine.Machine

    @classmethod
    async def create(cls, name: Optional[str] = None, **options: Unpack[MachineOptions]) -> Machine:
        """As `testyard.Machine.create`. Of one whose caller is cancelled nothing is left."""
        given.options(options, _machine.Machine.create, "Machine.create")
        return cls(await made(_delete, _machine.Machine.create, name, **options))

    @classmethod
    async def get(cls, name: str) -> Machine:
        """As `testyard.Machine.get`."""
        return cls(await call(_machine.Machine.get, name))

    @classmethod
    async def ensure(cls, name: str, **options: Unpack[MachineOptions]) -> Machine:
        """As `testyard.Machine.ensure`."""
        return cls(await call(_machine.Machine.ensure, name, **options))

    @staticmethod
    async def list() -> list[_machine.MachineInfo]:
        """All machines of this home."""
        return await call(_machine.Machine.list)

    @property
    def id(self) -> str:
        """What it is called inside of Testyard, whatever its name."""
        return self.blocking.id

    async def info(self) -> _machine.MachineInfo:
        """What there is to know about it now."""
        return await call(self.blocking.info)

    async def start(self) -> None:
        """Starts it; fine when it runs already."""
        await call(self.blocking.start)

    async def stop(self, force: bool = False) -> None:
        """Ends its processes; its files stay."""
        await call(self.blocking.stop, force)

    async def restart(self, force: bool = False) -> None:
        """Stops and starts it."""
        await call(self.blocking.restart, force)

    async def delete(self, force: bool = False, missing_ok: bool = False) -> None:
        """Deletes it with all that is in it."""
        await call(self.blocking.delete, force, missing_ok)

    async def rename(self, new: str) -> None:
        """Gives it another name."""
        await call(self.blocking.rename, new)

    async def clone(self, new: Optional[str] = None) -> Machine:
        """Another machine with the same files."""
        return Machine(await made(_delete, self.blocking.clone, new))

    async def logs(self) -> str:
        """What its supervisor and agent wrote."""
        return await call(self.blocking.logs)

    async def status(self) -> dict[str, Any]:
        """What its agent is doing: clients, commands, environments, parked ones."""
        return await call(self.blocking.status)

    async def environment(self, **options: Unpack[EnvironmentOptions]) -> Environment:
        """As `testyard.Machine.environment`. Of one whose caller is cancelled nothing is left."""
        given.options(options, _machine.Machine.environment, "Machine.environment")
        return Environment(await made(_environment.Environment.close, self.blocking.environment, **options))

    async def park(self, count: int, **options: Unpack[ParkOptions]) -> None:
        """As `testyard.Machine.park`."""
        await call(self.blocking.park, count, **options)


class Image:
    """Images: as `testyard.Image`, whose objects these calls return."""

    @staticmethod
    async def list() -> list[_image.Image]:
        """As `testyard.Image.list`."""
        return await call(_image.Image.list)

    @staticmethod
    async def build(release: str) -> _image.Image:
        """As `testyard.Image.build`."""
        return await call(_image.Image.build, release)

    @staticmethod
    async def import_(reference: str, archive: Path) -> _image.Image:
        """As `testyard.Image.import_`."""
        return await call(_image.Image.import_, reference, archive)

    @staticmethod
    async def pull(reference: str, **options: Unpack[PullOptions]) -> _image.Image:
        """As `testyard.Image.pull`."""
        given.options(options, _image.Image.pull, "Image.pull")
        return await call(_image.Image.pull, reference, **options)

    @staticmethod
    async def export(reference: str, archive: Path) -> int:
        """As `testyard.Image.export`."""
        return await call(_image.Image.export, reference, archive)

    @staticmethod
    async def delete(reference: str) -> None:
        """As `testyard.Image.delete`."""
        await call(_image.Image.delete, reference)


class Pool(Face[_pool.Pool]):
    """Machines made ahead of need."""

    _of = _pool.Pool

    @classmethod
    async def create(cls, count: int, *, name_prefix: str = "pool", **options: Unpack[MachineOptions]) -> Pool:
        """As `testyard.Pool`. Of one whose caller is cancelled nothing is left."""
        return cls(await made(_pool.Pool.close, _pool.Pool, count, name_prefix=name_prefix, **options))

    @property
    def machines(self) -> Sequence[Machine]:
        """All of them, taken or not."""
        return [Machine(one) for one in self.blocking.machines]

    async def take(self, timeout: Optional[float] = None) -> Machine:
        """One that nobody else has."""
        return Machine(await made(self.blocking.give_back, self.blocking.take, timeout))

    async def give_back(self, machine: Machine) -> None:
        """It is free again."""
        if not isinstance(machine, Machine):
            raise InvalidInput(f"{machine!r} is not taken from this pool", hints=["give back what `take` gave"])
        await call(self.blocking.give_back, machine.blocking)


class Cluster(Held[_cluster.Cluster]):
    """A cluster."""

    _of = _cluster.Cluster

    @classmethod
    async def create(cls, name: Optional[str] = None, **options: Unpack[ClusterOptions]) -> Cluster:
        """As `testyard.Cluster.create`. Of one whose caller is cancelled nothing is left."""
        given.options(options, _cluster.Cluster.create, "Cluster.create")
        return cls(await made(_delete_cluster, _cluster.Cluster.create, name, **options))

    @classmethod
    async def get(cls, name: str) -> Cluster:
        """As `testyard.Cluster.get`."""
        return cls(await call(_cluster.Cluster.get, name))

    @classmethod
    async def ensure(cls, name: str, **options: Unpack[ClusterOptions]) -> Cluster:
        """As `testyard.Cluster.ensure`."""
        return cls(await call(_cluster.Cluster.ensure, name, **options))

    @staticmethod
    async def list() -> list[_cluster.ClusterInfo]:
        """All clusters of this home."""
        return await call(_cluster.Cluster.list)

    @property
    def user(self) -> str:
        """Who its commands run as, and who logs in."""
        return self.blocking.user

    @property
    def ssh(self) -> _cluster.SshAddress:
        """Where its first node takes SSH connections."""
        return self.blocking.ssh

    async def head(self) -> Machine:
        """The first node: the controller."""
        return Machine(await call(lambda: self.blocking.head))

    async def node(self, name: str) -> Machine:
        """As `testyard.Cluster.node`."""
        return Machine(await call(self.blocking.node, name))

    async def nodes(self) -> tuple[Machine, ...]:
        """Its nodes, the first one being the controller."""
        return tuple(Machine(node) for node in await call(lambda: self.blocking.nodes))

    async def info(self) -> _cluster.ClusterInfo:
        """What there is to know about it now."""
        return await call(self.blocking.info)

    async def run(
        self,
        command: Command,
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
        """As `testyard.Cluster.run`. A caller that is cancelled ends the command."""
        place, how = await call(self.blocking._where, node, {"user": user, "cwd": cwd, "env": env})
        return await run(place, command, check=check, timeout=timeout, input=input, text=text, **how)

    async def spawn(self, command: Command, *, node: Optional[str] = None, **options: Unpack[SpawnOptions]) -> Process:
        """As `testyard.Cluster.spawn`."""
        place, how = await call(self.blocking._where, node, options)
        return Process(await made(_Process.kill, place.spawn, command, **how))

    async def scale(self, nodes: int) -> None:
        """As `testyard.Cluster.scale`."""
        await call(self.blocking.scale, nodes)

    async def stop(self) -> None:
        """As `testyard.Cluster.stop`."""
        await call(self.blocking.stop)

    async def start(self) -> None:
        """As `testyard.Cluster.start`."""
        await call(self.blocking.start)

    async def fail(self, node: str) -> None:
        """As `testyard.Cluster.fail`."""
        await call(self.blocking.fail, node)

    async def drain(self, node: str) -> None:
        """As `testyard.Cluster.drain`."""
        await call(self.blocking.drain, node)

    async def cut(self, node: str) -> None:
        """As `testyard.Cluster.cut`."""
        await call(self.blocking.cut, node)

    async def restore(self, node: str) -> None:
        """As `testyard.Cluster.restore`."""
        await call(self.blocking.restore, node)

    async def fork(self, new: Optional[str] = None) -> Cluster:
        """As `testyard.Cluster.fork`."""
        return Cluster(await made(_delete_cluster, self.blocking.fork, new))

    async def delete(self, missing_ok: bool = False) -> None:
        """Deletes it with all that is in it."""
        await call(self.blocking.delete, missing_ok)
