"""A caller's connection that stops speaking HTTP: the raw bytes after an upgrade to a WebSocket."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

EXTENSION = "cupola.upgrade"
"""The key under which the `extensions` of a request's scope have its Upgrade."""
BUFFER_LIMIT = 64 * 1024
"""Bytes from a caller that are kept before it is made to wait; one read of the socket may come on top."""


class Upgrade:
    """The caller's end of a connection that may be taken over. `detach` tells its HTTP server that it was."""

    def __init__(
        self, transport: asyncio.Transport, drain: Callable[[], Awaitable[None]], detach: Callable[[], None]
    ) -> None:
        self.shutting_down = asyncio.Event()
        """Set when the server is about to end."""
        self.left = asyncio.Event()
        """Set when the caller has closed the connection."""
        self.accepted = False
        self._transport = transport
        self._drain = drain
        self._detach = detach
        self._received = bytearray()
        self._arrived = asyncio.Event()
        self._paused = False

    def accept(self, head: bytes) -> None:
        """Answer the request with the head of a 101. From now on the connection is the application's to close."""
        self.accepted = True
        self._detach()
        self._transport.write(head)

    async def read(self) -> bytes:
        """What came from the caller; nothing when it has closed the connection."""
        while not self._received and not self.left.is_set():
            self._arrived.clear()
            await self._arrived.wait()
        data = bytes(self._received)
        self._received.clear()
        if self._paused and self.open:
            self._paused = False
            self._transport.resume_reading()
        return data

    async def write(self, data: bytes) -> None:
        """Send bytes; waits while the caller is slow to read. Nothing happens when it has closed the connection."""
        if self.open:
            self._transport.write(data)
            await self._drain()

    @property
    def open(self) -> bool:
        """Whether the caller may still read what is sent."""
        return not self.left.is_set() and not self._transport.is_closing()

    def close(self) -> None:
        """Close the connection after what was sent."""
        self._transport.close()

    def feed(self, data: bytes) -> None:
        """Bytes came from the caller."""
        self._received += data
        self._arrived.set()
        if len(self._received) > BUFFER_LIMIT and not self._paused and self.open:
            self._paused = True
            self._transport.pause_reading()

    def feed_eof(self) -> None:
        """The connection is closed."""
        self.left.set()
        self._arrived.set()
