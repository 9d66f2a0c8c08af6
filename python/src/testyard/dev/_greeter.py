"""Version 3 of the SDK takes no machine that it made for started before an sshd greets at its address. Commands go to
the machine's socket and no sshd runs, so this process greets in its place, on a port of loopback, and hangs up."""

from __future__ import annotations

import socket
import threading
from typing import Optional

_GREETING = b"SSH-2.0-testyard_greets_only\r\n"


class Greeter:
    """The one that greets, from the first time its port is asked for until this process ends."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._listener: Optional[socket.socket] = None

    @property
    def port(self) -> int:
        """Where it greets."""
        with self._lock:
            if self._listener is None:
                self._listener = socket.create_server(("127.0.0.1", 0))
                threading.Thread(
                    target=self._greet, args=(self._listener,), name="testyard-greeter", daemon=True
                ).start()
            return int(self._listener.getsockname()[1])

    def close(self) -> None:
        """Greets no more."""
        with self._lock:
            if self._listener is not None:
                # Wakes the thread, which a mere close would not.
                try:
                    self._listener.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass
                self._listener.close()
                self._listener = None

    def _greet(self, listener: socket.socket) -> None:
        while True:
            try:
                guest, _ = listener.accept()
            except OSError:
                return
            with guest:
                try:
                    guest.sendall(_GREETING)
                except OSError:
                    pass
