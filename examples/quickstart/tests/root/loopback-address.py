#!/usr/bin/python3 -BISs
"""Gives the loopback interface an address of a fixed number, and listens on it."""

import sys

sys.path.insert(0, ".")
import guard  # noqa: F401, E402
import fcntl  # noqa: E402
import socket  # noqa: E402
import struct  # noqa: E402

SET_ADDRESS = 0x8916
listener = socket.socket()
try:
    listener.bind(("10.99.0.1", 8080))
    sys.exit("10.99.0.1 is here already, so another test is not kept apart")
except OSError:
    pass
address = struct.pack("HH4s8x", socket.AF_INET, 0, socket.inet_aton("10.99.0.1"))
fcntl.ioctl(listener, SET_ADDRESS, struct.pack("16s16s8x", b"lo:7", address))
listener.bind(("10.99.0.1", 8080))
