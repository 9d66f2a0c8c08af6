"""`testyard.Cluster`: real clusters, and what is told where there is none."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys

import pytest

from support import Home, needs_cluster
from support.home import settled
from testyard import Cluster, ClusterExists, ClusterNotFound, InvalidInput, WrongState, _binary
from testyard._limits import MOST_NODES
from testyard.cluster import cluster_options


def test_what_a_cluster_tells_of_itself(lab: Cluster) -> None:
    info = lab.info()
    assert (info.kind, info.state, info.user, info.partitions) == ("slurm", "running", "slurm", ("debug",))
    assert [node.state for node in info.nodes] == ["running", "running"]
    assert [machine.run("hostname").stdout.strip() for machine in lab.nodes] == [node.name for node in info.nodes]
    assert lab.head.name == info.nodes[0].name and lab.name in [one.name for one in Cluster.list()]
    assert lab.ssh.host == "127.0.0.1" and lab.ssh.password == "slurm"
    with socket.create_connection((lab.ssh.host, lab.ssh.port), timeout=10) as connection:
        assert connection.recv(64).startswith(b"SSH-2.0-")
    with pytest.raises(InvalidInput, match="no node"):
        lab.node("absent")


def test_commands_run_as_the_clusters_user(lab: Cluster) -> None:
    last = lab.info().nodes[-1].name
    assert lab.run("id -un; pwd").stdout == "slurm\n/home/slurm\n"
    assert lab.run("id -un", user="root", cwd="/").stdout == "root\n"
    assert lab.run("hostname", node=last).stdout.strip() == last
    assert set(lab.run("srun -N2 hostname").stdout.split()) == {node.name for node in lab.info().nodes}
    with lab.spawn(["sleep", "60"]) as process:
        assert process.poll() is None


def test_there_is_one_cluster_of_a_name(lab: Cluster) -> None:
    with pytest.raises(ClusterExists):
        Cluster.create(lab.name)
    same = Cluster.ensure(lab.name)
    assert same.info().created_ms == lab.info().created_ms
    with pytest.raises(ClusterNotFound):
        Cluster.get("absent")
    with pytest.raises(ClusterNotFound):
        Cluster.get("absent").delete()


def test_asyncio_has_the_same(lab: Cluster) -> None:
    async def main() -> None:
        cluster = await testyard.aio.Cluster.get(lab.name)
        hosts = await asyncio.gather(*(node.run("hostname") for node in await cluster.nodes()))
        assert [done.stdout.strip() for done in hosts] == [node.name for node in (await cluster.info()).nodes]
        assert (await cluster.run("id -un")).stdout == "slurm\n"

    import testyard.aio

    asyncio.run(main())


@pytest.mark.parametrize(
    "options",
    [{"nodes": 0}, {"nodes": 201}, {"nodes": True}, {"kind": "pbs"}, {"partitions": "debug"}, {"expose": "/srv"}],
)
def test_what_no_cluster_can_be_is_refused(options: dict[str, object]) -> None:
    with pytest.raises(InvalidInput):
        Cluster.create(**options)  # type: ignore[arg-type]


def test_as_many_nodes_may_be_asked_for_as_the_program_makes(home: Home) -> None:
    with pytest.raises(InvalidInput, match=f"ask for 1 to {MOST_NODES}$"):
        _binary.call(["cluster", "create", "slurm", "none", "--nodes=0"])
    assert cluster_options(nodes=MOST_NODES, partitions=[]) == ["--nodes", str(MOST_NODES)]


def test_a_clusters_life(home: Home) -> None:
    needs_cluster()
    with Cluster.create("life") as cluster:
        cluster.scale(2)
        assert [node.name for node in cluster.info().nodes] == ["life-1", "life-2"]
        assert sorted(cluster.run("srun -N2 hostname").stdout.split()) == ["life-1", "life-2"]
        cluster.fail("life-2")
        assert [node.state for node in cluster.info().nodes] == ["running", "down"]
        cluster.restore("life-2")
        cluster.run("echo kept > kept", node="life-2")
        with pytest.raises(WrongState):
            cluster.fork("copy")
        cluster.stop()
        assert cluster.state == "stopped"
        with cluster.fork("copy") as copy:
            assert copy.run("cat kept; srun hostname").stdout == "kept\ncopy-1\n"
        assert Cluster.ensure("life").run("cat kept").stdout == "kept\n"
    assert Cluster.list() == [] and home.machines() == []


HOLDER = """
import sys, testyard
with_one = testyard.Cluster.create("held", hold=True)
print("held", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("how", ["kill", "end"])
def test_a_held_cluster_ends_with_its_holder(home: Home, how: str) -> None:
    needs_cluster()
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=home.environment(), text=True
    )
    assert holder.stdin is not None and holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    assert Cluster.get("held").state == "running"
    if how == "kill":
        os.kill(holder.pid, signal.SIGKILL)
    holder.stdin.close()
    holder.wait()
    assert settled(lambda: [one.name for one in Cluster.list()]) == []
    assert settled(home.machines) == []
