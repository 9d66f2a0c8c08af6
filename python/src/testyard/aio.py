"""The same machines for asyncio: each call is awaited, and done in a thread meanwhile.

    async with await testyard.aio.Machine.create() as machine:
        print((await machine.run("uname -a")).stdout)

A command whose caller is cancelled is ended with all that it started."""

from __future__ import annotations

import asyncio
import functools
from typing import Any, AsyncIterator, Callable, Generic, Optional, TypeVar

from . import cluster as _cluster
from . import environment as _environment
from . import image as _image
from . import machine as _machine
from . import pool as _pool
from ._place import Place as _Place
from ._process import Completed, Text
from ._process import Process as _Process
from ._protocol import Command
from .errors import CommandFailed, CommandNotStarted, CommandTimedOut

__all__ = ["Cluster", "Environment", "Image", "Machine", "Pool", "Process"]

_Inner = TypeVar("_Inner", bound=Any)
_PlaceInner = TypeVar("_PlaceInner", bound=_Place)
_Answer = TypeVar("_Answer")


async def _call(function: Callable[..., _Answer], *arguments: Any, **options: Any) -> _Answer:
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(None, functools.partial(function, *arguments, **options))


async def _spawn(place: _Place, command: Command, options: dict[str, Any]) -> _Process:
    """Starts a command; a caller that is cancelled meanwhile leaves none behind."""
    loop = asyncio.get_running_loop()
    started = loop.run_in_executor(None, functools.partial(place.spawn, command, **options))
    try:
        return await asyncio.shield(started)
    except asyncio.CancelledError:
        started.add_done_callback(_end)
        raise


def _end(made: asyncio.Future[_Process]) -> None:
    if not made.cancelled() and made.exception() is None:
        made.result().kill()


class _Face(Generic[_Inner]):
    def __init__(self, inner: _Inner) -> None:
        #: The object of the blocking interface.
        self.blocking = inner

    def __repr__(self) -> str:
        return f"<async {self.blocking!r}>"


class Process(_Face[_Process]):
    """A command that runs."""

    @property
    def returncode(self) -> Optional[int]:
        """Its exit code once it has ended."""
        return self.blocking.returncode

    @property
    def pid(self) -> int:
        """Its process id on the host; 0 where that is only known inside."""
        return self.blocking.pid

    async def wait(self, timeout: Optional[float] = None) -> int:
        """Waits for its end, at most `timeout` seconds; its exit code."""
        return await _call(self.blocking.wait, timeout)

    async def communicate(self, input: Optional[Text] = None, timeout: Optional[float] = None) -> tuple[Any, Any]:
        """Gives it `input`, waits for its end, and returns what it wrote that was not read."""
        return await _call(self.blocking.communicate, input, timeout)

    async def write(self, data: Text) -> None:
        """Writes to its standard input."""
        await _call(self.blocking.stdin.write, data)

    async def lines(self) -> AsyncIterator[Any]:
        """The lines of its standard output, as they come."""
        while True:
            line = await _call(self.blocking.stdout.readline)
            if not line:
                return
            yield line

    async def kill(self, signal: Optional[int] = None) -> None:
        """Ends it and all that it started; with a signal, only sends it that."""
        await _call(self.blocking.kill, signal)

    async def close(self) -> None:
        """Ends it, if it still runs, and waits for that."""
        await _call(self.blocking.close)

    async def __aenter__(self) -> Process:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


class _AsyncPlace(_Face[_PlaceInner]):
    async def run(
        self, command: Command, *, check: bool = True, input: Optional[Text] = None, text: bool = True, **options: Any
    ) -> Completed:
        """As `Machine.run`. A caller that is cancelled ends the command."""
        from ._process import PIPE

        timeout = options.get("timeout")
        stdin = None if input is None else PIPE
        process = await _spawn(self.blocking, command, {"stdin": stdin, "text": text, **options})
        try:
            out, err = await _call(process.communicate, input)
        except CommandNotStarted as error:
            if check:
                raise
            told = error.message
            return Completed(command, 127, "" if text else b"", told if text else told.encode(), {}, False)
        except asyncio.CancelledError:
            process.kill()
            raise
        code = process.returncode if process.returncode is not None else 255
        if check and process.timed_out:
            raise CommandTimedOut(command, timeout or 0, out, err)
        if check and code != 0:
            raise CommandFailed(command, code, out, err)
        return Completed(command, code, out, err, process.usage, process.timed_out)

    async def spawn(self, command: Command, **options: Any) -> Process:
        """As `Machine.spawn`."""
        return Process(await _spawn(self.blocking, command, options))

    async def write_file(self, path: Any, data: Text, **options: Any) -> None:
        """As `Machine.write_file`."""
        await _call(self.blocking.write_file, path, data, **options)

    async def read_file(self, path: Any, **options: Any) -> bytes:
        """As `Machine.read_file`."""
        return await _call(self.blocking.read_file, path, **options)

    async def read_text(self, path: Any, **options: Any) -> str:
        """As `Machine.read_text`."""
        return await _call(self.blocking.read_text, path, **options)

    async def push(self, source: Any, destination: Any, **options: Any) -> None:
        """As `Machine.push`."""
        await _call(self.blocking.push, source, destination, **options)

    async def pull(self, source: Any, destination: Any, **options: Any) -> None:
        """As `Machine.pull`."""
        await _call(self.blocking.pull, source, destination, **options)


class Environment(_AsyncPlace[_environment.Environment]):
    """An environment that this process holds."""

    @property
    def id(self) -> str:
        """Its number as people see it."""
        return self.blocking.id

    @property
    def ports(self) -> list[int]:
        """Ports of the host that are leased for it."""
        return self.blocking.ports

    async def workspace(self) -> str:
        """A folder of its own that its commands may write in."""
        return await _call(lambda: self.blocking.workspace)

    async def listening(self, port: int, timeout: float = 10.0) -> None:
        """As `Environment.listening`."""
        await _call(self.blocking.listening, port, timeout)

    async def keep(self, seconds: float) -> None:
        """As `Environment.keep`."""
        await _call(self.blocking.keep, seconds)

    async def fork(self, seconds: float = 3600.0) -> Environment:
        """As `Environment.fork`."""
        return Environment(await _call(self.blocking.fork, seconds))

    async def seal(self, layer: str) -> None:
        """As `Environment.seal`."""
        await _call(self.blocking.seal, layer)

    async def changes(self, limit: int = 10_000) -> list[_environment.Change]:
        """As `Environment.changes`."""
        return await _call(self.blocking.changes, limit)

    async def close(self) -> None:
        """Ends it, with all that runs in it."""
        await _call(self.blocking.close)

    async def __aenter__(self) -> Environment:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


class Machine(_AsyncPlace[_machine.Machine]):
    """A machine."""

    @classmethod
    async def create(cls, name: Optional[str] = None, **options: Any) -> Machine:
        """As `testyard.Machine.create`."""
        return cls(await _call(_machine.Machine.create, name, **options))

    @classmethod
    async def get(cls, name: str) -> Machine:
        """As `testyard.Machine.get`."""
        return cls(await _call(_machine.Machine.get, name))

    @classmethod
    async def ensure(cls, name: str, **options: Any) -> Machine:
        """As `testyard.Machine.ensure`."""
        return cls(await _call(_machine.Machine.ensure, name, **options))

    @staticmethod
    async def list() -> list[_machine.MachineInfo]:
        """All machines of this home."""
        return await _call(_machine.Machine.list)

    @property
    def name(self) -> str:
        """What people call it."""
        return self.blocking.name

    async def info(self) -> _machine.MachineInfo:
        """What there is to know about it now."""
        return await _call(self.blocking.info)

    async def start(self) -> None:
        """Starts it; fine when it runs already."""
        await _call(self.blocking.start)

    async def stop(self, force: bool = False) -> None:
        """Ends its processes; its files stay."""
        await _call(self.blocking.stop, force)

    async def restart(self, force: bool = False) -> None:
        """Stops and starts it."""
        await _call(self.blocking.restart, force)

    async def delete(self, force: bool = False, missing_ok: bool = False) -> None:
        """Deletes it with all that is in it."""
        await _call(self.blocking.delete, force, missing_ok)

    async def rename(self, new: str) -> None:
        """Gives it another name."""
        await _call(self.blocking.rename, new)

    async def clone(self, new: Optional[str] = None) -> Machine:
        """Another machine with the same files."""
        return Machine(await _call(self.blocking.clone, new))

    async def logs(self) -> str:
        """What its supervisor and agent wrote."""
        return await _call(self.blocking.logs)

    async def environment(self, **options: Any) -> Environment:
        """As `testyard.Machine.environment`."""
        return Environment(await _call(self.blocking.environment, **options))

    async def __aenter__(self) -> Machine:
        return self

    async def __aexit__(self, *_: object) -> None:
        await _call(self.blocking.__exit__, None, None, None)


class Image:
    """Images: as `testyard.Image`, whose objects these calls return."""

    @staticmethod
    async def list() -> list[_image.Image]:
        """As `testyard.Image.list`."""
        return await _call(_image.Image.list)

    @staticmethod
    async def build(release: str) -> _image.Image:
        """As `testyard.Image.build`."""
        return await _call(_image.Image.build, release)

    @staticmethod
    async def import_(reference: str, archive: Any) -> _image.Image:
        """As `testyard.Image.import_`."""
        return await _call(_image.Image.import_, reference, archive)

    @staticmethod
    async def pull(reference: str, **options: Any) -> _image.Image:
        """As `testyard.Image.pull`."""
        return await _call(_image.Image.pull, reference, **options)

    @staticmethod
    async def export(reference: str, archive: Any) -> int:
        """As `testyard.Image.export`."""
        return await _call(_image.Image.export, reference, archive)

    @staticmethod
    async def delete(reference: str) -> None:
        """As `testyard.Image.delete`."""
        await _call(_image.Image.delete, reference)


class Pool(_Face[_pool.Pool]):
    """Machines made ahead of need."""

    @classmethod
    async def create(cls, count: int, **options: Any) -> Pool:
        """As `testyard.Pool`."""
        return cls(await _call(_pool.Pool, count, **options))

    async def take(self, timeout: Optional[float] = None) -> Machine:
        """One that nobody else has."""
        return Machine(await _call(self.blocking.take, timeout))

    async def give_back(self, machine: Machine) -> None:
        """It is free again."""
        await _call(self.blocking.give_back, machine.blocking)

    async def __aenter__(self) -> Pool:
        return self

    async def __aexit__(self, *_: object) -> None:
        await _call(self.blocking.close)


class Cluster(_Face[_cluster.Cluster]):
    """A cluster."""

    @classmethod
    async def create(cls, name: Optional[str] = None, **options: Any) -> Cluster:
        """As `testyard.Cluster.create`."""
        return cls(await _call(_cluster.Cluster.create, name, **options))

    @classmethod
    async def get(cls, name: str) -> Cluster:
        """As `testyard.Cluster.get`."""
        return cls(await _call(_cluster.Cluster.get, name))

    @classmethod
    async def ensure(cls, name: str, **options: Any) -> Cluster:
        """As `testyard.Cluster.ensure`."""
        return cls(await _call(_cluster.Cluster.ensure, name, **options))

    @staticmethod
    async def list() -> list[_cluster.ClusterInfo]:
        """All clusters of this home."""
        return await _call(_cluster.Cluster.list)

    @property
    def name(self) -> str:
        """What people call it."""
        return self.blocking.name

    @property
    def ssh(self) -> _cluster.SshAddress:
        """Where its first node takes SSH connections."""
        return self.blocking.ssh

    async def nodes(self) -> tuple[Machine, ...]:
        """Its nodes, the first one being the controller."""
        return tuple(Machine(node) for node in await _call(lambda: self.blocking.nodes))

    async def info(self) -> _cluster.ClusterInfo:
        """What there is to know about it now."""
        return await _call(self.blocking.info)

    async def run(self, command: Command, *, node: Optional[str] = None, **options: Any) -> Completed:
        """As `testyard.Cluster.run`. A caller that is cancelled ends the command."""
        place, options = await _call(self.blocking._where, node, options)
        return await Machine(place).run(command, **options)

    async def scale(self, nodes: int) -> None:
        """As `testyard.Cluster.scale`."""
        await _call(self.blocking.scale, nodes)

    async def stop(self) -> None:
        """As `testyard.Cluster.stop`."""
        await _call(self.blocking.stop)

    async def start(self) -> None:
        """As `testyard.Cluster.start`."""
        await _call(self.blocking.start)

    async def fail(self, node: str) -> None:
        """As `testyard.Cluster.fail`."""
        await _call(self.blocking.fail, node)

    async def drain(self, node: str) -> None:
        """As `testyard.Cluster.drain`."""
        await _call(self.blocking.drain, node)

    async def cut(self, node: str) -> None:
        """As `testyard.Cluster.cut`."""
        await _call(self.blocking.cut, node)

    async def restore(self, node: str) -> None:
        """As `testyard.Cluster.restore`."""
        await _call(self.blocking.restore, node)

    async def fork(self, new: Optional[str] = None) -> Cluster:
        """As `testyard.Cluster.fork`."""
        return Cluster(await _call(self.blocking.fork, new))

    async def delete(self, missing_ok: bool = False) -> None:
        """Deletes it with all that is in it."""
        await _call(self.blocking.delete, missing_ok)

    async def __aenter__(self) -> Cluster:
        return self

    async def __aexit__(self, *_: object) -> None:
        await _call(self.blocking.__exit__, None, None, None)
