#!/usr/bin/python3 -BISs
"""Listens on port 8080 of every address, and hears itself only."""

import sys

sys.path.insert(0, ".")
import guard  # noqa: F401, E402
import socket  # noqa: E402

listener = socket.socket()
listener.bind(("0.0.0.0", 8080))
listener.listen()
listener.settimeout(10)
client = socket.create_connection(("127.0.0.1", 8080), timeout=10)
client.sendall(b"three")
heard = listener.accept()[0].recv(100)
assert heard == b"three", heard
