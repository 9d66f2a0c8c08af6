#!/usr/bin/python3 -BISs
"""Listens on an abstract Unix socket of a fixed name."""

import sys

sys.path.insert(0, ".")
import guard  # noqa: F401, E402
import socket  # noqa: E402

listener = socket.socket(socket.AF_UNIX)
listener.bind("\0quickstart")
listener.listen()
client = socket.socket(socket.AF_UNIX)
client.connect("\0quickstart")
client.sendall(b"one")
heard = listener.accept()[0].recv(100)
assert heard == b"one", heard
