"""Ports are leased host-wide."""

from __future__ import annotations

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
    with testyard.Ports(key="same") as again:
        assert again.take(3) == ports


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
