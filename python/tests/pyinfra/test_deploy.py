"""Real deploys by the real program, each twice: changed, then unchanged."""

from __future__ import annotations

from typing import Any, Iterator

import pytest

from support import Home, needs_root, skip
from testyard import Machine

FILES = """
from io import StringIO
from pyinfra.operations import files

files.directory(name="folder", path="/srv/shop/conf.d", mode="750")
files.put(name="put", src=StringIO("port = 80\\n"), dest="/srv/shop/conf.d/main.conf", mode="640")
files.template(name="template", src=StringIO("name = {{ host.data.testyard_name }}\\n"), dest="/srv/shop/name")
files.line(name="line", path="/etc/hosts", line="10.1.2.3 db")
files.link(name="link", path="/srv/current", target="/srv/shop")
files.block(name="block", path="/etc/hosts", content="10.1.2.4 cache", marker="## {mark} SHOP ##")
files.file(name="file", path="/srv/shop/empty", mode="600")
"""

USERS = """
from pyinfra.operations import files, server

server.group(name="group", group="shop")
server.user(name="user", user="shopper", group="shop", home="/home/shopper", create_home=True, shell="/bin/bash")
files.directory(name="owned", path="/srv/owned", user="shopper", group="shop", mode="700")
files.line(name="as the user", path="/home/shopper/.profile", line="export SHOP=1", _su_user="shopper")
"""

PACKAGES = """
from pyinfra.operations import apt

apt.packages(name="packages", packages=["hello"], no_recommends=True)
"""

MOTD = """
from pyinfra import host
from pyinfra.operations import server

server.shell(commands=[f"echo {host.data.motd} > /root/motd"])
"""

INIT_SCRIPT = """#!/bin/sh
### BEGIN INIT INFO
# Provides: shop
# Required-Start:
# Required-Stop:
# Default-Start: 2 3 4 5
# Default-Stop: 0 1 6
# Short-Description: a service without systemd
### END INIT INFO
case "$1" in
start) start-stop-daemon --start --background --make-pidfile --pidfile /run/shop.pid --exec /bin/sleep -- 3600 ;;
stop) start-stop-daemon --stop --oknodo --remove-pidfile --pidfile /run/shop.pid ;;
status) start-stop-daemon --status --pidfile /run/shop.pid ;;
esac
"""

SERVICE = f"""
from io import StringIO
from pyinfra.operations import files, sysvinit

files.put(name="script", src=StringIO('''{INIT_SCRIPT}'''), dest="/etc/init.d/shop", mode="755")
sysvinit.service(name="service", service="shop", running=True)
"""


@pytest.fixture(scope="module")
def web(module_home: Home) -> Iterator[Machine]:
    """A machine that the deploys of this module share."""
    machine = Machine.create("web")
    yield machine
    machine.delete(force=True)


def test_files_deploy_twice(program: Any, web: Machine) -> None:
    totals, changed = program.deploy("@testyard/web", FILES)
    assert totals == {"hosts": 7, "success": 7, "error": 0, "no_change": 0}
    assert changed == ["folder", "put", "template", "line", "link", "block", "file"]
    seen = web.run("cat /srv/current/conf.d/main.conf /srv/shop/name; stat -c %a /srv/shop/conf.d", user="root").stdout
    assert seen == "port = 80\nname = web\n750\n"
    assert program.deploy("@testyard/web", FILES) == ({"hosts": 7, "success": 0, "error": 0, "no_change": 7}, [])


def test_with_sudo_it_is_the_same_also_where_there_is_no_sudo(program: Any, web: Machine) -> None:
    again = FILES.replace("/srv", "/opt").replace("/etc/hosts", "/opt/hosts")
    first, _ = program.deploy("@testyard/web", again, "--sudo")
    assert (first["success"], first["error"]) == (7, 0)
    assert program.deploy("@testyard/web", again, "--sudo")[0]["no_change"] == 7


def test_what_changed_in_between_is_put_right(program: Any, web: Machine) -> None:
    program.deploy("@testyard/web", FILES)
    web.run("rm /srv/shop/name; chmod 777 /srv/shop/conf.d", user="root")
    assert program.deploy("@testyard/web", FILES)[1] == ["folder", "template"]


def test_folders_are_synced_and_fetched(program: Any, web: Machine, module_home: Home) -> None:
    site = module_home.work / "site"
    (site / "sub").mkdir(parents=True)
    (site / "index").write_text("one")
    (site / "sub" / "page").write_bytes(bytes(range(256)))
    script = (
        "from pyinfra.operations import files\n"
        "files.sync(name='sync', src='site', dest='/srv/site', delete=True)\n"
        "files.get(name='get', src='/etc/hostname', dest='fetched')\n"
    )
    assert program.deploy("@testyard/web", script)[1] == ["sync", "get"]
    assert web.run("cat /srv/site/sub/page", user="root", text=False).stdout == bytes(range(256))
    assert (module_home.work / "fetched").read_text() == web.run("cat /etc/hostname").stdout
    assert program.deploy("@testyard/web", script)[0]["no_change"] == 2
    (site / "index").write_text("two")
    assert program.deploy("@testyard/web", script)[1] == ["sync"]


def test_users_deploy_twice(program: Any, web: Machine) -> None:
    needs_root()  # An ordinary user's machine has one id: no user can be added to it.
    assert program.deploy("@testyard/web", USERS)[1] == ["group", "user", "owned", "as the user"]
    seen = web.run("stat -c %U:%G /srv/owned /home/shopper/.profile; . ~/.profile; echo $SHOP; id -un", user="shopper")
    assert seen.stdout == "shopper:shop\nshopper:shop\n1\nshopper\n"
    assert program.deploy("@testyard/web", USERS)[0] == {"hosts": 4, "success": 0, "error": 0, "no_change": 4}


def test_packages_deploy_twice_where_the_machine_has_apt(program: Any, web: Machine) -> None:
    needs_root()  # dpkg gives files to other users than root.
    if web.run("command -v apt-get", check=False).returncode != 0:
        skip("the image `host` has no apt", host=True)
    updated = web.run("apt-get update", user="root", check=False, timeout=120)
    if updated.returncode != 0 or "Err:" in updated.stdout:
        skip("the machine's apt reaches no archive", host=True)
    web.run("dpkg --purge hello", user="root", check=False)
    assert program.deploy("@testyard/web", PACKAGES)[1] == ["packages"]
    assert web.run(["hello"]).stdout == "Hello, world!\n"
    assert program.deploy("@testyard/web", PACKAGES) == ({"hosts": 1, "success": 0, "error": 0, "no_change": 1}, [])


def test_a_service_without_systemd_is_started_once(program: Any, web: Machine) -> None:
    if web.run("command -v start-stop-daemon && test -d /etc/init.d", check=False, user="root").returncode != 0:
        skip("the image `host` has no services of System V", host=True)
    assert program.deploy("@testyard/web", SERVICE)[1] == ["script", "service"]
    running = web.run("cat /run/shop.pid", user="root").stdout
    assert program.deploy("@testyard/web", SERVICE)[0]["no_change"] == 2
    assert web.run("cat /run/shop.pid", user="root").stdout == running
    web.run("/etc/init.d/shop stop", user="root")
    assert program.deploy("@testyard/web", SERVICE)[1] == ["service"]


def test_all_machines_are_deployed_onto_by_one_word(program: Any, web: Machine, module_home: Home) -> None:
    with Machine.create("other"), Machine.create("asleep") as asleep:
        asleep.stop()
        script = FILES.replace("/srv", "/mnt").replace("/etc/hosts", "/mnt/hosts")
        assert program.deploy("@testyard", script)[0] == {"hosts": 14, "success": 14, "error": 0, "no_change": 0}
        assert program.deploy("@testyard", script)[0] == {"hosts": 14, "success": 0, "error": 0, "no_change": 14}


def test_group_data_and_limits_know_the_groups(program: Any, web: Machine, module_home: Home) -> None:
    folder = module_home.work / "group_data"
    folder.mkdir(exist_ok=True)
    (folder / "testyard_image_host.py").write_text("motd = 'of the image'\n")
    with Machine.create("other") as other:
        totals, _ = program.deploy("@testyard", MOTD, "--limit", "@testyard/web")
        assert totals["success"] == 1
        assert web.run("cat /root/motd", user="root").stdout == "of the image\n"
        assert other.run("test -e /root/motd", user="root", check=False).returncode == 1
        program.deploy("@testyard", MOTD, "--limit", f"testyard_backend_{web.info().backend}")
        assert other.run("cat /root/motd", user="root").stdout == "of the image\n"
