"""The test's side of the gates at which the agent under test waits (agents/script.py)."""

from __future__ import annotations

import contextlib
import socket
from pathlib import Path

TIMEOUT = 15
"""Seconds within which the handler must come to a gate, or leave it."""


class Gate:
    """A handler that waits."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    def open(self) -> None:
        """Lets the handler go on; a handler that has gone is none the worse."""
        with contextlib.suppress(OSError):
            self._connection.sendall(b"go\n")

    def wait_until_left(self) -> None:
        """Returns once the handler no longer waits here. Raises TimeoutError."""
        assert self._connection.recv(1) == b""

    def close(self) -> None:
        self._connection.close()


class Control:
    """Listens for handlers that come to a gate."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(64)
        self._listener.settimeout(TIMEOUT)
        self._waiting: dict[str, Gate] = {}
        self._gates: list[Gate] = []

    def entered(self, name: str) -> Gate:
        """The handler at the gate `name`, once it is there. Raises TimeoutError."""
        while name not in self._waiting:
            connection, _ = self._listener.accept()
            connection.settimeout(TIMEOUT)
            received = b""
            while not received.endswith(b"\n"):
                received += connection.recv(1)
            gate = Gate(connection)
            self._waiting[received.decode().strip()] = gate
            self._gates.append(gate)
        return self._waiting.pop(name)

    def close(self) -> None:
        """Closes every gate too, those that a failed test left."""
        for gate in self._gates:
            gate.close()
        self._listener.close()
