"""A machine that speaks something else is told from one that is gone."""

from __future__ import annotations

import json
import socket
import threading
from pathlib import Path
from typing import Any, Callable

import pytest

import testyard
from testyard._connection import Connection
from testyard._protocol import HEADER


def serve(folder: Path, answer: Callable[[socket.socket], None]) -> str:
    """A socket that answers one client so."""
    path = str(folder / "machine.sock")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(path)
    listener.listen()

    def run() -> None:
        client, _ = listener.accept()
        with client, listener:
            client.recv(4096)
            answer(client)

    threading.Thread(target=run, daemon=True).start()
    return path


def message(value: Any) -> bytes:
    payload = json.dumps(value).encode()
    return HEADER.pack(len(payload), 1, 0, 0, 0, 0) + payload


def welcome(version: int) -> bytes:
    return message({"welcome": {"version": version, "server": "other", "generation": 0}})


@pytest.mark.parametrize("version", [1, 99])
def test_another_version_is_told_with_a_hint(tmp_path, version):
    path = serve(tmp_path, lambda client: client.sendall(welcome(version)))
    with pytest.raises(testyard.ProtocolMismatch, match=f"speaks version {version}[\\s\\S]*hint: .*restart"):
        Connection(path, "web")


def test_a_refusal_is_the_machines_own_word(tmp_path):
    refusal = {"failed": {"kind": "protocol", "message": "no common version", "hints": ["upgrade"]}}
    path = serve(tmp_path, lambda client: client.sendall(message(refusal)))
    with pytest.raises(testyard.ProtocolMismatch, match="no common version"):
        Connection(path, "web")


@pytest.mark.parametrize(
    "junk", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", HEADER.pack(1 << 31, 1, 0, 0, 0, 0), message(7)]
)
def test_what_is_no_machine_is_told(tmp_path, junk):
    path = serve(tmp_path, lambda client: client.sendall(junk))
    with pytest.raises(testyard.InfrastructureError):
        Connection(path, "web")


def test_what_a_newer_protocol_has_is_refused_by_name(tmp_path):
    path = serve(tmp_path, lambda client: client.sendall(welcome(2)))
    connection = Connection(path, "web")
    with pytest.raises(testyard.NotSupported, match="too old to take files"):
        connection.require(3, "take files over a pipe")
    connection.close()


def test_nobody_there_is_transient(tmp_path):
    with pytest.raises(testyard.ConnectionLost, match="does not answer") as caught:
        Connection(str(tmp_path / "none"), "web")
    assert caught.value.transient


def test_a_machine_lost_in_the_middle_is_told(machine):
    process = machine.spawn("sleep 1000")
    machine.stop(force=True)
    # The agent still tells how the command ended, unless it was gone first.
    try:
        assert process.wait(30) in (137, 143)
    except testyard.ConnectionLost as error:
        assert error.hints
    with pytest.raises(testyard.WrongState):
        machine.run("true")
