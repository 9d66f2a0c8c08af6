"""Commands and files in machines and environments."""

from __future__ import annotations

import os
import stat
import threading
from typing import Optional

import pytest

import testyard
from testyard import DEVNULL, PIPE
from testyard._connection import Exchange


def test_a_command_is_given_verbatim_or_to_the_shell(machine):
    assert machine.run(["printf", "%s|", "a b", "$x", ""]).stdout == "a b|$x||"
    assert machine.run("echo $((1+1)) | cat").stdout == "2\n"
    done = machine.run("echo out; echo err >&2; exit 3", check=False)
    assert (done.returncode, done.stdout, done.stderr) == (3, "out\n", "err\n")
    with pytest.raises(testyard.CommandFailed, match=r"exit code 3[\s\S]*out[\s\S]*err"):
        machine.run("echo out; echo err >&2; exit 3")
    assert machine.run("kill -9 $$", check=False).returncode == 137
    assert machine.run("printf '\\377'", text=False).stdout == b"\xff"
    assert machine.run("echo $A; pwd", env={"A": "é"}, cwd="/usr").stdout == "é\n/usr\n"
    if machine.info().backend == "host" and os.geteuid() != 0:
        with pytest.raises(testyard.PermissionRefused):
            machine.run("id -u", user="root")
    else:
        assert machine.run("id -u", user="root").stdout == "0\n"


def test_wrong_commands_are_told(machine):
    with pytest.raises(testyard.CommandNotStarted, match="nonono") as caught:
        machine.run(["nonono"])
    assert caught.value.returncode == 127
    assert machine.run(["nonono"], check=False).returncode == 127
    with pytest.raises(testyard.CommandNotStarted):
        machine.spawn(["nonono"]).wait(30)
    for wrong in ([], ["a\0b"], "a\0b"):
        with pytest.raises(testyard.InvalidInput):
            machine.run(wrong)
    with pytest.raises(testyard.InvalidInput, match="no length of time"):
        machine.run("true", timeout=0)
    assert machine.run("echo still").stdout == "still\n"


def test_time_is_up_for_the_whole_tree(machine):
    with pytest.raises(testyard.CommandTimedOut, match="its time of 1.5 s was up") as caught:
        machine.run("echo before; sleep 1000 & sleep 1000", timeout=1.5)
    assert caught.value.stdout == "before\n" and not caught.value.transient
    done = machine.run("sleep 1000", timeout=0.2, check=False)
    assert done.timed_out and done.returncode == 124
    assert machine.status()["commands"] == 0


def test_large_streams_go_both_ways_at_once(machine):
    data = os.urandom(3_000_000)
    assert machine.run(["cat"], input=data, text=False).stdout == data
    # A command that reads nothing of its input does not hold anybody up.
    assert machine.run("echo done", input=b"x" * 5_000_000).stdout == "done\n"


def test_a_spawned_command_is_talked_to(machine):
    process = machine.spawn("echo ready; read line; echo got $line; echo bad >&2", stdin=PIPE)
    assert process.stdout.readline() == "ready\n" and process.poll() is None
    with pytest.raises(testyard.TimedOut):
        process.wait(0.05)
    process.stdin.write("word\n")
    assert process.wait(30) == 0 and process.poll() == 0
    assert process.output() == "ready\ngot word\n" and process.errors() == "bad\n"
    process.kill()
    with machine.spawn("trap 'echo term; exit 7' TERM; echo up; while :; do sleep 0.05; done") as process:
        assert next(iter(process)) == "up\n"
        process.terminate()
        assert process.wait(30) == 7 and process.output() == "up\nterm\n"
    with machine.spawn("sleep 1000", stdout=DEVNULL, stderr=DEVNULL) as process:
        process.kill(9)
        assert process.wait(30) == 137
        assert process.stdout is None


def test_files_of_this_process_are_handed_over(machine, tmp_path):
    with open(tmp_path / "out", "wb") as out:
        assert machine.spawn("echo into", stdout=out).wait(30) == 0
    assert (tmp_path / "out").read_text() == "into\n"


def test_many_threads_share_a_machine(machine):
    failed: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for turn in range(5):
                assert machine.run(["echo", f"{number}.{turn}"]).stdout == f"{number}.{turn}\n"
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed


def test_a_forked_child_has_connections_of_its_own(machine):
    machine.run("true")
    child = os.fork()
    if child == 0:
        try:
            os._exit(0 if machine.run("echo child").stdout == "child\n" else 1)
        except BaseException:
            os._exit(2)
    assert machine.run("echo parent").stdout == "parent\n"
    assert os.waitpid(child, 0)[1] == 0


def test_environments_are_apart_and_end(machine):
    with machine.environment() as one, machine.environment() as other:
        folder = one.workspace
        one.write_file(f"{folder}/note", "mine")
        assert one.read_text(f"{folder}/note") == "mine"
        if one.isolation == "namespace":
            assert other.run(["ls", other.workspace]).stdout == ""
            assert one.run("hostname").stdout != other.run("hostname").stdout
        assert one.id != other.id
        with pytest.raises(testyard.NotFound):
            other.read_file(f"{other.workspace}/note")
    one.close()
    with pytest.raises(testyard.InvalidInput, match="is closed"):
        one.run("true")
    assert machine.status()["environments"] == 0


def test_files_of_an_environment_belong_to_its_user(machine, tmp_path):
    # On backend `host` nobody else gets into a home of the tests.
    user = 12345 if os.geteuid() == 0 and machine.info().backend != "host" else os.geteuid()
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "file").write_text("pushed")
    with machine.environment(user=user) as one:
        folder = one.workspace
        one.run(["chmod", "777", folder])
        one.write_file(f"{folder}/note", "mine", mode=0o600)
        one.push(tmp_path / "tree", folder)
        one.write_file(f"{folder}/other", "another's", user=os.geteuid())
        seen = one.run(["stat", "-c", "%u", "note", "tree", "tree/file", "other"], cwd=folder).stdout.split()
        assert seen == [str(user)] * 3 + [str(os.geteuid())]
        assert one.run("cat note; echo more >> note; cat tree/file", cwd=folder).stdout == "minepushed"
        # What only another may read is read as nobody else either.
        one.write_file(f"{folder}/secret", "another's", mode=0o600, user=os.geteuid())
        if user != os.geteuid():
            with pytest.raises(testyard.PermissionRefused):
                one.read_file(f"{folder}/secret")
        assert one.read_text(f"{folder}/secret", user=os.geteuid()) == "another's"
        one.run(["rm", "-f", f"{folder}/secret"])


def test_an_environment_leases_ports_and_waits_for_them(machine):
    with machine.environment(ports=2, network="host") as one, machine.environment(ports=2, network="host") as other:
        assert not set(one.ports) & set(other.ports)
        assert one.run("echo $TESTYARD_PORTS").stdout.strip() == ",".join(map(str, one.ports))
    with machine.environment() as one:
        if one.isolation != "namespace":
            return
        with pytest.raises(testyard.TimedOut):
            one.listening(80, timeout=0.1)
        server = "import socket,time; s=socket.create_server(('127.0.0.1',8080)); time.sleep(1000)"
        with one.spawn(["python3", "-c", server]):
            one.listening(8080, timeout=30)


def test_wrong_environments_are_told(machine):
    with pytest.raises(testyard.InvalidInput, match="did you mean 'private'"):
        machine.environment(network="privat")
    with pytest.raises(testyard.InvalidInput, match="did you mean 'memory'"):
        machine.environment(limits={"memroy": 1})
    with pytest.raises(testyard.InvalidInput, match="isolation"):
        machine.environment(isolation="total")


def test_a_network_that_an_environment_cannot_have_is_refused(machine):
    for network in ("private", "outbound", "none"):
        with pytest.raises(testyard.InvalidInput, match=f"'workspace' shares.*{network}"):
            machine.environment(isolation="workspace", network=network)
        if machine.info().backend == "host":
            with pytest.raises(testyard.NotSupported, match="backend `host`"):
                machine.environment(network=network)
    with machine.environment(isolation="workspace") as one, machine.environment(network="host") as other:
        seen = [place.run("readlink /proc/self/ns/net").stdout for place in (machine, one, other)]
        assert len(set(seen)) == 1


def test_changes_forks_and_snapshots(machine):
    with machine.environment() as one:
        if one.isolation != "namespace":
            # Backend `host` keeps no changes apart, and says so.
            for call in (one.changes, one.fork, lambda: one.seal("ready")):
                with pytest.raises(testyard.NotSupported, match="namespace"):
                    call()
            return
        one.write_file("/tmp/new", "text")
        one.run("mkdir /tmp/folder; ln -s new /tmp/link")
        seen = {change.path: (change.change, change.kind) for change in one.changes()}
        assert seen == {
            "/tmp/new": ("added", "file"),
            "/tmp/folder": ("added", "folder"),
            "/tmp/link": ("added", "link"),
        }
        with one.fork() as copy:
            copy.write_file("/tmp/new", "other")
            assert (one.read_text("/tmp/new"), copy.read_text("/tmp/new")) == ("text", "other")
        one.seal("ready")
    with machine.environment(layer="ready") as later:
        assert later.read_text("/tmp/new") == "text"


def test_the_working_tree_is_shown_copy_on_write(machine, shown_folder):
    (shown_folder / "file").write_text("before")
    with machine.environment(source=shown_folder) as one:
        if one.isolation != "namespace":
            assert one.run("cat file", cwd=shown_folder).stdout == "before"
            return
        assert one.run("pwd; cat file; echo after > file; cat file").stdout == f"{shown_folder}\nbeforeafter\n"
        entered = one.enter()
        assert len(entered.namespaces) == 7
        for descriptor in (entered.pidfd, *entered.namespaces, *entered.cgroups):
            os.close(descriptor)
        # As above, before anything has run in it.
        with machine.environment(source=shown_folder) as other:
            before = len(os.listdir("/proc/self/fd"))
            entered = other.enter()
            seen = f"/proc/{entered.pid}/root{shown_folder}/file"
            assert os.geteuid() != 0 or open(seen).read() == "before"
            for descriptor in (entered.pidfd, *entered.namespaces, *entered.cgroups):
                os.close(descriptor)
            assert len(os.listdir("/proc/self/fd")) == before
    assert (shown_folder / "file").read_text() == "before"


def test_trees_go_in_and_out_as_they_are(machine, tmp_path):
    tree = tmp_path / "tree"
    (tree / "empty").mkdir(parents=True)
    (tree / "data").write_bytes(os.urandom(2_500_000))
    (tree / "run.sh").write_text("#!/bin/sh\n")
    (tree / "run.sh").chmod(0o755)
    (tree / "link").symlink_to("data")
    os.link(tree / "data", tree / "hard")
    os.utime(tree / "run.sh", (1_000_000_000, 1_000_000_000))
    with machine.environment() as one:
        folder = one.workspace
        one.push(tree, folder)
        assert one.run("find tree | sort | tr '\\n' ' '", cwd=folder).stdout == (
            "tree tree/data tree/empty tree/hard tree/link tree/run.sh "
        )
        (tmp_path / "back").mkdir()
        one.pull(f"{folder}/tree", tmp_path / "back")
        one.push(f"{tree}/.", f"{folder}/tree")
        with pytest.raises(testyard.NotFound):
            one.pull(f"{folder}/nothing", tmp_path / "back")
        with pytest.raises(testyard.NotFound):
            one.push(tmp_path / "nothing", folder)
        with pytest.raises(testyard.InvalidInput, match="no folder to copy into"):
            one.pull(f"{folder}/tree", tmp_path / "none" / "x")
        with pytest.raises(testyard.TestyardError):
            one.push(tree, f"{folder}/no/such/folder")
        assert one.run("echo fine").stdout == "fine\n"
    back = tmp_path / "back" / "tree"
    assert (back / "data").read_bytes() == (tree / "data").read_bytes()
    assert os.readlink(back / "link") == "data"
    assert (back / "hard").stat().st_ino == (back / "data").stat().st_ino
    facts = (back / "run.sh").stat()
    assert stat.S_IMODE(facts.st_mode) == 0o755 and int(facts.st_mtime) == 1_000_000_000
    assert not [name for name in os.listdir(back) if name.startswith(".")]


def test_files_are_written_whole_with_their_mode(machine):
    with machine.environment() as one:
        path = f"{one.workspace}/file"
        one.write_file(path, b"\x00\xff", mode=0o600)
        assert one.run(["stat", "-c", "%a", path]).stdout == "600\n"
        one.write_file(path, "")
        assert one.read_file(path) == b""
        one.run(["truncate", "-s", "3M", path])
        assert one.read_file(path) == bytes(3 << 20)
        with pytest.raises(testyard.TestyardError):
            one.write_file("/no/such/folder/file", "x")
        with pytest.raises(testyard.InvalidInput, match="is a folder"):
            one.read_file(one.workspace)


def test_a_transfer_that_waits_for_its_environment_can_be_ended(machine):
    with machine.environment() as one:
        connection = one._connections.take()
        reading, writing = os.pipe()
        stream = connection.stream()
        transfer = {"path": one.workspace, "carrier": "pipe", "environment": one._number}
        connection.send(stream, {"push": transfer}, [reading])
        connection.send(stream, "kill")
        os.close(reading)
        with pytest.raises(testyard.TestyardError) as caught:
            connection.event(stream)
        assert caught.value.kind != "protocol"
        os.close(writing)
        connection.close()
        assert one.run("echo fine").stdout == "fine\n"


class _Closing:
    """A connection that is closed while something is being sent: the command's end was heard meanwhile."""

    machine = "web"

    def __init__(self) -> None:
        self.exchange: Optional[Exchange] = None

    def stream(self) -> int:
        return 1

    def send(self, *_: object) -> None:
        pass

    def send_frame(self, *_: object) -> None:
        assert self.exchange is not None
        self.exchange.finish()
        raise testyard.ConnectionLost("it was closed")


def test_input_for_a_command_that_just_ended_is_a_broken_pipe() -> None:
    connection = _Closing()
    connection.exchange = Exchange(connection, {})  # type: ignore[arg-type]
    with pytest.raises(BrokenPipeError):
        connection.exchange.feed(memoryview(b"more"))
