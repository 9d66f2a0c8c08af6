"""The same for asyncio: every call is there, takes the same, and does the same; who is cancelled leaves nothing."""

from __future__ import annotations

import asyncio
import inspect
import os
import re
import threading
from pathlib import Path
from typing import Any, Callable

import pytest

import testyard
from testyard import PIPE, _options, aio
from testyard.environment import environment_request

#: What a blocking object has that one for asyncio has by other names: what reads and writes is awaited.
OTHERWISE = {"Process": {"stdin": ("write", "end_input"), "stdout": ("lines",), "stderr": ("errors",)}}
#: Attributes that objects get when they are made.
ATTRIBUTES = {
    "Environment": ("machine", "ports", "parked"),
    "Process": ("args", "returncode", "usage", "timed_out", "pid", "stdin", "stdout", "stderr"),
}
#: Values, and calls that never wait for anything.
NOT_AWAITED = ("Change", "ClusterInfo", "Completed", "DEVNULL", "MachineInfo", "PIPE", "Ports")


def public(cls: type) -> set[str]:
    return {name for name in dir(cls) if not name.startswith("_")} | set(ATTRIBUTES.get(cls.__name__, ()))


def takes(function: Callable[..., Any]) -> dict[str, Any]:
    """Names and defaults of a call's parameters; options that it hands on among them."""
    found = {}
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind is parameter.VAR_KEYWORD:
            name = re.fullmatch(r"Unpack\[(\w+)\]", str(parameter.annotation))
            assert name, f"{function.__qualname__}: {parameter} has no type"
            found.update(dict.fromkeys(getattr(_options, name.group(1)).__annotations__, "handed on"))
        elif parameter.name not in ("self", "cls"):
            found[parameter.name] = parameter.default
    return found


def test_all_that_blocks_is_there() -> None:
    errors = {name for name in testyard.__all__ if name in vars(testyard.errors)}
    assert set(testyard.__all__) - errors - {*NOT_AWAITED, *aio.__all__} == set()
    for name in ("Cluster", "Environment", "Machine", "Pool", "Process", "Image"):
        blocking, awaited = getattr(testyard, name), getattr(aio, name)
        lacking = public(blocking) - public(awaited) - public(tuple)
        for instead, others in OTHERWISE.get(name, {}).items():
            assert public(awaited) >= set(others)
            lacking.discard(instead)
        # A stored image is a value.
        assert lacking <= set(getattr(blocking, "_fields", ())), (name, lacking)


def test_calls_take_the_same() -> None:
    for name in ("Cluster", "Environment", "Machine", "Pool", "Process", "Image"):
        blocking, awaited = getattr(testyard, name), getattr(aio, name)
        for call in public(blocking) & public(awaited):
            ours, theirs = getattr(awaited, call, None), getattr(blocking, call, None)
            if not callable(theirs) or not callable(ours) or isinstance(theirs, property):
                continue
            mine, wanted = takes(ours), takes(theirs)
            assert set(mine) == set(wanted), (name, call)
            for key, default in mine.items():
                assert default in ("handed on", wanted[key]) or wanted[key] == "handed on", (name, call, key)
    assert set(takes(aio.Pool.create)) == set(takes(testyard.Pool.__init__))


def test_options_that_are_handed_on_are_those_of_the_call() -> None:
    for options, call in (
        (_options.MachineOptions, testyard.Machine.create),
        (_options.ClusterOptions, testyard.Cluster.create),
        (_options.EnvironmentOptions, testyard.Machine.environment),
        (_options.ParkOptions, environment_request),
        (_options.SpawnOptions, testyard.Machine.spawn),
        (_options.PullOptions, testyard.Image.pull),
    ):
        assert set(options.__annotations__) == set(call.__kwdefaults__), options


def test_machines_and_environments(machine: testyard.Machine, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("pushed")

    async def main() -> None:
        same = await aio.Machine.get(machine.name)
        assert (same.id, await same.state()) == (machine.id, "running")
        await same.park(1)
        assert (await same.status())["commands"] == 0
        async with await same.environment() as one:
            assert one.machine.name == machine.name and one.isolation == one.blocking.isolation
            folder = await one.workspace()
            await one.push(tmp_path / "file", folder)
            await one.pull(f"{folder}/file", tmp_path / "back")
            assert await one.read_text(f"{folder}/file") == "pushed" == (tmp_path / "back").read_text()
            await one.keep(60)
            if one.isolation == "namespace":
                await one.write_file("/tmp/mark", "mark", mode=0o600)
                await one.seal("marked")
                async with await one.fork() as other, await same.environment(layer="marked") as later:
                    assert await other.read_file("/tmp/mark") == b"mark" == await later.read_file("/tmp/mark")
                assert "/tmp/mark" in [change.path for change in await one.changes()]
                entered = await one.enter()
                for descriptor in (entered.pidfd, *entered.namespaces, *entered.cgroups):
                    os.close(descriptor)
        with pytest.raises(testyard.InvalidInput, match="did you mean 'image'"):
            await aio.Machine.create(imge="host")
        await same.close()

    asyncio.run(main())


def test_commands(machine: testyard.Machine) -> None:
    async def main() -> None:
        same = await aio.Machine.get(machine.name)
        # Text for bytes and bytes for text, as the blocking call takes them.
        assert (await same.run("cat", input=b"bytes")).stdout == "bytes" == machine.run("cat", input=b"bytes").stdout
        assert (await same.run("cat", input="text", text=False)).stdout == b"text"
        done = await same.run("true", cwd="/no/such/folder", check=False)
        assert done[:4] == machine.run("true", cwd="/no/such/folder", check=False)[:4]
        with pytest.raises(testyard.CommandTimedOut, match="its time of 0.2 s was up"):
            await same.run("sleep 600", timeout=0.2)
        async with await same.spawn("read a; echo got $a; cat >&2", stdin=PIPE) as process:
            assert process.poll() is None and process.args.startswith("read")
            await process.write("one\n")
            await process.write(b"two\n")
            await process.end_input()
            assert await process.wait(30) == 0 == process.poll()
            assert (process.output(), process.errors()) == ("got one\n", "two\n")
            assert process.usage and not process.timed_out
        async with await same.spawn("trap 'exit 7' TERM; echo up; while :; do sleep 0.05; done") as process:
            assert [line async for line in _until(process, "up\n")] == ["up\n"]
            await process.terminate()
            assert await process.wait(30) == 7
            await process.send_signal(15)
        async with await same.spawn("true", stdout=testyard.DEVNULL) as process:
            with pytest.raises(testyard.InvalidInput, match="stdout=PIPE"):
                await process.lines().__anext__()
            with pytest.raises(testyard.InvalidInput, match="stdin=PIPE"):
                await process.write("x")

    async def _until(process: aio.Process, last: str) -> Any:
        async for line in process:
            yield line
            if line == last:
                return

    asyncio.run(main())


def test_pools(home: object) -> None:
    async def main() -> None:
        async with await aio.Pool.create(1, name_prefix="some") as pool:
            one = await pool.take()
            assert [other.name for other in pool.machines] == [one.name] and one.name.startswith("some-")
            with pytest.raises(testyard.TimedOut):
                await pool.take(timeout=0.05)
            with pytest.raises(testyard.InvalidInput, match="not taken"):
                await pool.give_back(one.name)  # type: ignore[arg-type]
            await pool.give_back(one)
        with pytest.raises(testyard.InvalidInput, match="is closed"):
            await pool.take()
        assert (await aio.doctor())["probes"]

    asyncio.run(main())
    assert testyard.Machine.list() == []


def test_nothing_is_left_of_a_machine_whose_caller_is_cancelled(home: object, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, create = threading.Event(), testyard.Machine.create

    def noticed(*arguments: Any, **options: Any) -> testyard.Machine:
        begun.set()
        return create(*arguments, **options)

    noticed.__kwdefaults__ = create.__kwdefaults__
    monkeypatch.setattr(testyard.Machine, "create", noticed)

    async def main() -> None:
        making = asyncio.ensure_future(aio.Machine.create("web"))
        await asyncio.get_running_loop().run_in_executor(None, begun.wait, 60)
        making.cancel()
        with pytest.raises(asyncio.CancelledError):
            await making

    asyncio.run(main())
    assert testyard.Machine.list() == []
