"""TCP servers inside a sandbox: few connections, not too often, with small buffers, all gone when they are closed."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable

from cupola.sandbox.oci.network.allowance import Allowance

BUFFER = 16 * 1024
"""Bytes that wait in each direction of a connection, in each of the places where they can."""
BURST = 100
CONNECTIONS_PER_SECOND = 50
"""A handshake costs the server more than the sandbox."""
ACCEPT_PAUSE = 0.1
"""Seconds after a failure to accept, such as too many open files."""

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class StreamServer:
    """Serves connections of a listening socket, at most `most` at a time; more wait in the kernel until one ends."""

    def __init__(self, listening: socket.socket, handle: Handler, most: int) -> None:
        self._listening = listening
        self._handle = handle
        self._free = asyncio.Semaphore(most)
        self._allowance = Allowance(BURST, CONNECTIONS_PER_SECOND)
        self._connections: set[asyncio.Task[None]] = set()
        self._accepting: asyncio.Task[None] | None = None

    def open(self) -> None:
        """Begin to accept."""
        self._accepting = asyncio.create_task(self._accept(), name="listener of a sandbox")

    async def close(self) -> None:
        """Stop listening and break every connection off."""
        tasks = [*self._connections, *([] if self._accepting is None else [self._accepting])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._listening.close()

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._free.acquire()
            await asyncio.sleep(self._allowance.missing())
            self._allowance.take()
            try:
                connection, _ = await loop.sock_accept(self._listening)
            except OSError:
                self._free.release()
                await asyncio.sleep(ACCEPT_PAUSE)
                continue
            task = asyncio.create_task(self._serve(connection), name="connection of a sandbox")
            self._connections.add(task)
            task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._connections.discard(task)
        self._free.release()

    async def _serve(self, connection: socket.socket) -> None:
        # Whatever becomes of a connection is the sandbox's business.
        with connection, contextlib.suppress(OSError, EOFError, TimeoutError):
            reader, writer = await asyncio.open_connection(sock=connection, limit=BUFFER)
            async with closing(writer):
                await self._handle(reader, writer)


@contextlib.asynccontextmanager
async def closing(writer: asyncio.StreamWriter) -> AsyncIterator[None]:
    """Close a connection after the block: once everything is sent where that went well, else at once."""
    writer.transport.set_write_buffer_limits(BUFFER)
    try:
        yield
        writer.close()
        await writer.wait_closed()
    finally:
        writer.transport.abort()
