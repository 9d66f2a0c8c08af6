"""What machines send is hostile: no byte of it makes anything outside of the folder that is meant."""

from __future__ import annotations

import io
import os
import struct

import pytest

import testyard
from testyard import _trees
from testyard._trees import Receiver, Sender

START = b"TYFILES\x03"
TIME = struct.pack("<qI", 0, 0)


def name(text: bytes) -> bytes:
    return struct.pack("<H", len(text)) + text


def folder(text: bytes = b"") -> bytes:
    return b"\x01" + name(text) + struct.pack("<I", 0o755) + TIME


def file(text: bytes, chunks: bytes, mode: int = 0o644) -> bytes:
    return b"\x02" + name(text) + struct.pack("<I", mode) + TIME + struct.pack("<I", 0) + chunks


def chunk(data: bytes) -> bytes:
    return struct.pack("<I", len(data)) + data


@pytest.mark.parametrize("bad", [b"..", b".", b"a/b", b"/etc", b"a\0b", b""])
def test_names_that_lead_elsewhere_are_refused(tmp_path, bad):
    stream = START + folder() + file(bad, chunk(b"x") + chunk(b""))
    with pytest.raises(testyard.InfrastructureError):
        Receiver(io.BytesIO(stream)).tree(str(tmp_path / "out"))
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["out"]


def test_nothing_is_written_through_a_link_that_came_along(tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    link = b"\x03" + name(b"l") + TIME + name(os.fsencode(outside))
    through = START + folder() + link + folder(b"l") + file(b"f", chunk(b"x") + chunk(b"")) + b"\x05\x05"
    with pytest.raises((testyard.TestyardError, OSError)):
        Receiver(io.BytesIO(through)).tree(str(tmp_path / "out"))
    over = START + folder() + link + file(b"l", chunk(b"x") + chunk(b"")) + b"\x05"
    Receiver(io.BytesIO(over)).tree(str(tmp_path / "over"))
    assert not list(outside.iterdir()) and (tmp_path / "over" / "l").read_text() == "x"


def test_set_user_bits_stay_behind(tmp_path):
    Receiver(io.BytesIO(START + file(b"f", chunk(b""), 0o4755))).tree(str(tmp_path))
    assert (tmp_path / "f").stat().st_mode & 0o7777 == 0o755


@pytest.mark.parametrize(
    "bad",
    [b"", b"TYFILES\x04", START, START + b"\x09", START + folder(), START + file(b"f", struct.pack("<I", 5) + b"ab")],
)
def test_streams_cut_short_or_strange_are_told(tmp_path, bad):
    with pytest.raises((testyard.InfrastructureError, EOFError, IndexError)):
        Receiver(io.BytesIO(bad)).tree(str(tmp_path / "out"))


def test_holes_are_bounded(monkeypatch):
    monkeypatch.setattr(_trees, "_MAX_READ", 1000)
    hole = struct.pack("<IQ", 0xFFFF_FFFF, 1 << 60)
    with pytest.raises(testyard.InvalidInput, match="more than 1000 bytes"):
        Receiver(io.BytesIO(START + file(b"", hole))).file()


def test_runs_that_became_shorter_are_cut(tmp_path):
    run = struct.pack("<IQ", 0xFFFF_FFFE, 6) + b"abc\0\0\0" + struct.pack("<Q", 3) + chunk(b"")
    assert Receiver(io.BytesIO(START + file(b"", run))).file() == b"abc"
    Receiver(io.BytesIO(START + file(b"f", run))).tree(str(tmp_path))
    assert (tmp_path / "f").read_bytes() == b"abc"


def test_what_is_packed_is_unpacked(tmp_path):
    out = io.BytesIO()
    Sender(out).bytes_as_file(b"x" * 3_000_000, 0o600)
    out.seek(0)
    assert Receiver(out).file() == b"x" * 3_000_000
