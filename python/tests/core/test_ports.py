"""Ports are leased host-wide."""

from __future__ import annotations

import os
import resource
import socket

import pytest

import testyard


def test_no_port_is_given_twice():
    with testyard.Ports() as one, testyard.Ports() as other:
        mine, theirs = one.take(20), other.take(20)
        assert len({*mine, *theirs}) == 40
        assert one.take(1)[0] not in mine
    with testyard.Ports(key="same") as first:
        ports = first.take(3)
    # Nobody keeps the object, and still they are leased.
    kept = testyard.Ports(key="kept").take(3)
    with testyard.Ports(key="kept") as other:
        assert not set(other.take(3)) & set(kept)
    with testyard.Ports(key="same") as again:
        assert again.take(3) == ports


def test_no_port_is_given_twice_across_processes():
    """Two that begin their search at the same port, each holding what it has until both have."""
    told: list[set[int]] = []
    children = []
    for _ in range(2):
        reading, writing = os.pipe()
        release, done = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                os.close(done)
                ports = testyard.Ports(key="same").take(50)
                os.write(writing, " ".join(map(str, ports)).encode())
                os.close(writing)
                os.read(release, 1)  # its end: every holder of `done` is gone
            finally:
                os._exit(0)
        os.close(writing)
        os.close(release)
        with os.fdopen(reading) as answer:
            told.append(set(map(int, answer.read().split())))
        children.append((child, done))
    try:
        assert [len(ports) for ports in told] == [50, 50] and not told[0] & told[1]
        # This process is a third; while they are held it gets none of them.
        with testyard.Ports(key="same") as third:
            assert not {*told[0], *told[1]} & set(third.take(50))
    finally:
        # The second has the first one's end, too.
        for _, done in children:
            os.close(done)
        for child, _ in children:
            os.waitpid(child, 0)
    with testyard.Ports(key="same") as again:
        assert set(again.take(50)) == told[0]


def test_too_few_descriptors_are_told():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    ports = testyard.Ports()
    # The lowest that is free, and a few more.
    lowest = os.dup(0)
    os.close(lowest)
    try:
        for more in (5, 6):
            resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + more, hard))
            with pytest.raises(testyard.PortsExhausted, match="ulimit -n"):
                ports.take(100)
            assert ports.taken == []
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert len(ports.take(100)) == 100
    ports.release()


def test_a_port_in_use_is_passed_over():
    with testyard.Ports(key="used") as one:
        (port,) = one.take()
    with socket.socket() as server:
        server.bind(("127.0.0.1", port))
        with testyard.Ports(key="used") as one:
            assert one.take() != [port]


def test_wrong_counts_are_told_and_keep_nothing():
    ports = testyard.Ports()
    for wrong in (0, -1, 10_001, "2", True):
        with pytest.raises(testyard.InvalidInput):
            ports.take(wrong)
    with testyard.Ports() as most:
        most.take(10_000)
        with pytest.raises(testyard.PortsExhausted, match="testyard/port"):
            ports.take(10_000)
    assert ports.taken == []
    ports.release()
    ports.release()
