#!/usr/bin/python3 -BISs
"""Takes the port of the SSH server."""

import sys

sys.path.insert(0, ".")
import guard  # noqa: F401, E402
import socket  # noqa: E402

listener = socket.socket()
listener.bind(("0.0.0.0", 22))
listener.listen()
