"""The fixture `vm`: a place like a machine, in which a container runtime runs; for each test in milliseconds."""

from __future__ import annotations

import pytest

from support import needs_program, needs_user_namespaces

from .conftest import Project, project_is_root

# A bundle whose root is the place's own /usr, made by the runtime itself and changed a little.
BUNDLE = """
import json
import pytest

def has_group(vm, group):
    ranges = [line.split() for line in vm.run("cat /proc/self/gid_map").stdout.splitlines()]
    return any(int(first) <= group < int(first) + int(count) for first, _, count in ranges)

def bundle(vm, script, *, rootless, limits=None, shares=()):
    vm.run("mkdir -p /root/bundle/rootfs/usr /root/bundle/rootfs/proc /root/bundle/rootfs/sys /root/bundle/rootfs/dev")
    vm.run("for name in bin lib lib64 sbin; do ln -s usr/$name rootfs/$name; done", cwd="/root/bundle")
    vm.run("runc spec" + (" --rootless" if rootless else ""), cwd="/root/bundle")
    config = json.loads(vm.read_file("/root/bundle/config.json"))
    config["process"]["terminal"] = False
    config["process"]["args"] = ["/usr/bin/sh", "-c", script]
    for mount in config["mounts"]:
        # The group of terminals, which a place with a single id does not have.
        if mount["type"] == "devpts" and not has_group(vm, 5):
            mount["options"] = [option for option in mount["options"] if not option.startswith("gid=")]
    config["mounts"].append({"destination": "/usr", "source": "/usr", "type": "bind", "options": ["rbind", "ro"]})
    if shares:
        # The place's own network, and these folders of it.
        kinds = config["linux"]["namespaces"]
        config["linux"]["namespaces"] = [kind for kind in kinds if kind["type"] != "network"]
        config["mounts"] += [{"destination": path, "source": path, "options": ["rbind"]} for path in shares]
    if limits:
        config["linux"]["resources"].update(limits)
    vm.write_file("/root/bundle/config.json", json.dumps(config))

ROOTLESS = __ROOTLESS__
"""


def runc_project(project: Project) -> Project:
    needs_user_namespaces()
    needs_program("runc")
    # Neither a range of ids nor a cgroup to write: what rootless runtimes are made for.
    rootless = project.home.owner is not None or not project_is_root()
    project.write("bundles.py", BUNDLE.replace("__ROOTLESS__", repr(rootless)))
    return project


def test_runc_runs_containers(anybodys_project: Project) -> None:
    project = runc_project(anybodys_project)
    project.write(
        "test_it.py",
        """
        from bundles import ROOTLESS, bundle

        def test_a_container_runs(vm):
            bundle(vm, "hostname; echo $$; ls /dev; cat /proc/self/uid_map; exit 7", rootless=ROOTLESS)
            done = vm.run("runc run one", cwd="/root/bundle", check=False)
            assert done.returncode == 7, done
            assert done.stdout.startswith("runc\\n1\\n"), done
            assert {"null", "zero", "urandom", "pts"} <= set(done.stdout.split()), done
            assert vm.run("runc list -q").stdout == ""

        def test_its_life(vm):
            bundle(vm, "exec sleep 600", rootless=ROOTLESS)
            vm.run("runc create two < /dev/null > /root/log 2>&1", cwd="/root/bundle")
            assert '"status": "created"' in vm.run("runc state two").stdout
            vm.run("runc start two")
            assert '"status": "running"' in vm.run("runc state two").stdout
            assert vm.run("runc exec two echo inside").stdout == "inside\\n"
            vm.run("runc kill two KILL")
            vm.run("while runc state two | grep -q running; do :; done", timeout=60)
            vm.run("runc delete two")
            assert vm.run("runc state two", check=False).returncode != 0

        def test_its_network_is_its_own(vm):
            vm.spawn("python3 -m http.server 80")
            vm._environment.listening(80)
            # Rootless bundles share the network of who runs them.
            bundle(vm, "test $(wc -l < /proc/net/dev) = 3 && echo loopback alone", rootless=ROOTLESS)
            assert vm.run("runc run three", cwd="/root/bundle").stdout == "loopback alone\\n"
        """,
    )
    project.passes(count=3)


def test_runc_limits_containers_with_the_places_own_cgroups(project: Project) -> None:
    if not project_is_root():
        pytest.skip("the host lacks it: an ordinary user has no cgroup to write")
    runc_project(project)
    project.write(
        "test_it.py",
        """
        import pytest
        from bundles import bundle

        @pytest.mark.testyard(needs=["cgroup-pids", "cgroup-memory"])
        def test_limits_hold(vm):
            few = {"pids": {"limit": 10}}
            bundle(vm, "for i in $(seq 30); do sleep 5 & done; echo all", rootless=False, limits=few)
            done = vm.run("runc run small", cwd="/root/bundle", check=False)
            assert "all" not in done.stdout and "fork" in done.stderr, done

        @pytest.mark.testyard(limits={"pids": 100, "memory": "256M"})
        def test_inside_the_places_own_limits(vm):
            many = "echo fine; for i in $(seq 150); do sleep 5 & done; echo all"
            bundle(vm, many, rootless=False, limits={"memory": {"limit": 1 << 25}})
            done = vm.run("runc run small", cwd="/root/bundle", check=False)
            assert done.stdout == "fine\\n" and "fork" in done.stderr, done
        """,
    )
    project.passes(count=2)


ALONE = """
import pytest
from bundles import ROOTLESS, bundle

@pytest.mark.parametrize("number", range(20))
def test_it(vm, number, tmp_path_factory):
    vm.run("ip address add 10.0.0.1/24 dev lo && mkdir -p /var/lib/mine && touch /root/a /tmp/a /var/lib/mine/a")
    vm.write_file("/srv/web/who", f"{number}")
    vm.spawn("python3 -m http.server 80 --bind 10.0.0.1", cwd="/srv/web")
    serve = "cd /srv/web && exec python3 -m http.server 8080 --bind 10.0.0.1"
    bundle(vm, serve, rootless=ROOTLESS, shares=["/srv"])
    vm.run("runc create web < /dev/null > /root/log 2>&1 && runc start web", cwd="/root/bundle")
    # All twenty are there at the same time, or none of them goes on.
    with open("begun", "a") as file:
        file.write(f"{number}\\n")
    meet(lambda: len(open("begun").readlines()) >= 20)
    for port in (80, 8080):
        meet(lambda: vm.run(f"curl -sf http://10.0.0.1:{port}/who", check=False).stdout == str(number))
    assert vm.run(["pgrep", "-xc", "python3"]).stdout.strip() == "2"
    assert vm.run("runc list -q").stdout == "web\\n"
    assert vm.run("runc exec web cat /srv/web/who").stdout == str(number)
    vm.run("runc kill web KILL")
    meet(lambda: '"stopped"' in vm.run("runc state web").stdout)
    vm.run("runc delete web && test -z $(runc list -q)")

def meet(condition):
    import time
    until = time.monotonic() + 200
    while not condition():
        assert time.monotonic() < until, "nothing came"
        time.sleep(0.05)
"""


def test_twenty_at_once_have_their_own_ports_addresses_processes_and_containers(anybodys_project: Project) -> None:
    needs_program("curl")
    project = runc_project(anybodys_project)
    project.write("test_it.py", ALONE)
    project.passes("-n20", count=20)


def test_the_surface(anybodys_project: Project) -> None:
    needs_user_namespaces()
    anybodys_project.write(
        "test_it.py",
        """
        import pytest
        from testyard.errors import CommandFailed

        def test_files(vm):
            vm.write_file("/root/text", "text")
            vm.write_file("/var/lib/new/bytes", b"\\x00\\xff")
            assert vm.read_file("/root/text") == b"text" and vm.read_file("/var/lib/new/bytes") == b"\\x00\\xff"

        def test_run(vm):
            done = vm.run("echo out; echo err >&2; exit 3", check=False)
            assert (done.returncode, done.stdout, done.stderr) == (3, "out\\n", "err\\n")
            with pytest.raises(CommandFailed, match="(?s)out.*err"):
                vm.run("echo out; echo err >&2; exit 3")
            assert vm.run("echo $A | tr a-z A-Z", env={"A": "b"}, cwd="/tmp", timeout=60).stdout == "B\\n"

        def test_spawn(vm):
            process = vm.spawn("trap 'echo asked; exit 4' TERM; echo begun; while :; do sleep 0.1; done")
            assert process.stdout.readline() == "begun\\n" and process.poll() is None
            process.kill(15)
            assert process.wait() == 4 == process.returncode and process.output() == "begun\\nasked\\n"

        def test_root_inside(vm):
            assert vm.run("id -u; hostname; cat /proc/1/comm").stdout.startswith("0\\n")
            vm.run("mkdir /mnt/a && mount -t tmpfs none /mnt/a && touch /mnt/a/b && umount /mnt/a")
            vm.run("ip link add name there type veth peer name here && ip address add 10.1.1.1/24 dev here")

        def test_fresh_each_time(vm):
            assert vm.run("ls /mnt/a /var/lib/new /root/text", check=False).stdout == ""
        """,
    )
    anybodys_project.passes(count=5)
