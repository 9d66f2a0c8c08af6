"""Ports of this host that nobody else who asks Testyard is given at the same time, whatever home, user or process.

A lease of port n is the abstract Unix socket `testyard/port/<n>`, bound and never listened on (docs/adr/0002). The
kernel ends it with its holder."""

from __future__ import annotations

import errno
import os
import socket
import zlib
from typing import Optional

from .errors import InvalidInput, PortsExhausted

_STANDARD = ((20_000, 32_767), (61_000, 65_535), (1_024, 65_535))


class Ports:
    """Leases of ports, until they are released or this process ends."""

    __test__ = False

    def __init__(self, key: Optional[str] = None) -> None:
        """The same key gets the same ports, whenever they are free."""
        if key is not None and not isinstance(key, str):
            raise InvalidInput(f"{key!r} is no key of ports", hints=["give a text, such as a test's name"])
        self._key = key or f"{os.getpid()}/{os.urandom(8).hex()}"
        self._leases: dict[int, socket.socket] = {}
        #: Whether its leases outlive the last name that somebody has for it.
        self._lasting = True

    @property
    def taken(self) -> list[int]:
        """Those that it holds."""
        return sorted(self._leases)

    def take(self, n: int = 1) -> list[int]:
        """Leases so many ports, free on loopback and on all addresses, for TCP and UDP.

        Raises PortsExhausted; none of them is kept then."""
        if not isinstance(n, int) or isinstance(n, bool) or not 1 <= n <= 10_000:
            raise InvalidInput(f"{n!r} is no number of ports", hints=["ask for 1 to 10,000"])
        candidates = _candidates()
        start = zlib.crc32(self._key.encode()) % len(candidates)
        found: dict[int, socket.socket] = {}
        for port in candidates[start:] + candidates[:start]:
            if len(found) == n:
                break
            if port in self._leases:
                continue
            try:
                lease = _try_lease(port)
            except OSError as error:
                raise _refused(n, found, error) from None
            if lease is not None:
                found[port] = lease
        if len(found) < n:
            for lease in found.values():
                lease.close()
            raise PortsExhausted(
                f"{n} ports wanted, {len(found)} free in {candidates[0]}-{candidates[-1]}",
                hints=["see who holds them: ss -xa | grep testyard/port; ss -tulpn", "run fewer tests at once"],
            )
        self._leases.update(found)
        if self._lasting:
            _taken.add(self)
        return list(found)

    def release(self) -> None:
        """Gives all of them back. Fine to call twice."""
        leases, self._leases = self._leases, {}
        _taken.discard(self)
        for lease in leases.values():
            lease.close()

    def __enter__(self) -> Ports:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


_TOO_MANY = (errno.EMFILE, errno.ENFILE)
#: Those that hold ports: `Ports().take()` leases for longer than that line, though nobody keeps the object.
_taken: set[Ports] = set()


def _refused(wanted: int, found: dict[int, socket.socket], error: OSError) -> PortsExhausted:
    """The error where the host refuses a lease; what was found is given back."""
    for lease in found.values():
        lease.close()
    many = error.errno in _TOO_MANY
    return PortsExhausted(
        f"{wanted} ports wanted, and the host refused after {len(found)}",
        causes=[error.strerror or str(error)],
        hints=["each takes a descriptor: raise the limit, ulimit -n", "ask for fewer"] if many else [],
    )


def _candidates() -> list[int]:
    """The ports of the standard range that the kernel does not give out by itself, ascending."""
    with open("/proc/sys/net/ipv4/ip_local_port_range") as file:
        low, high = (int(word) for word in file.read().split())
    for first, last in _STANDARD:
        usable = [port for port in range(first, last + 1) if not low <= port <= high]
        if usable:
            return usable
    raise PortsExhausted(
        "the kernel gives out all ports by itself",
        hints=["narrow its range: sysctl net.ipv4.ip_local_port_range='32768 60999'"],
    )


def _try_lease(port: int) -> Optional[socket.socket]:
    """The name first: then nobody else bind-tests this port at the same time and takes our test for a use."""
    lease = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        lease.bind(b"\0testyard/port/%d" % port)
    except OSError as error:
        lease.close()
        if error.errno != errno.EADDRINUSE:
            raise
        return None
    free = False
    try:
        free = all(_is_bindable(family, kind, host, port) for family, kind, host in _TESTS)
    finally:
        if not free:
            lease.close()
    return lease if free else None


_TESTS = [
    (family, kind, host)
    for family, host in (
        (socket.AF_INET, "127.0.0.1"),
        (socket.AF_INET, "0.0.0.0"),
        (socket.AF_INET6, "::1"),
    )
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM)
]


def _is_bindable(family: int, kind: int, host: str, port: int) -> bool:
    try:
        with socket.socket(family, kind) as trial:
            if family == socket.AF_INET6:
                trial.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            trial.bind((host, port))
    except OSError as error:
        if error.errno in _TOO_MANY:
            raise
        # IPv6 is compiled in but switched off, or there is none.
        return error.errno in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL)
    return True
